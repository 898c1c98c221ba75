"""The same page on 127.0.0.1, following a run that is still going on. It answers GET to local browsers, nothing else.

No request names a file: there are two addresses, and both answer from the run folder given at the start.
"""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gristmill.base.errors import UsageError
from gristmill.report.page import policy, render
from gristmill.report.run_folder import ReportData, collect

HOSTS = {"127.0.0.1", "localhost", "[::1]"}  # any other Host is a foreign page that rebound its name to this machine
SKIPPED = {"report", "checkpoints"}  # folders whose files the page does not show


class Source:
    """The report of one run, collected again only when a file of the run has changed."""

    def __init__(self, run: Path, seed: int = 0) -> None:
        self.run, self.seed = run, seed
        self._lock = threading.Lock()
        self._signature = ""
        self._data: ReportData | None = None

    def get(self) -> tuple[ReportData, str]:
        """The report, and a tag that changes when it does."""
        with self._lock:
            signature = _signature(self.run)
            if self._data is None or signature != self._signature:
                self._data, self._signature = collect(self.run, self.seed), signature
            return self._data, f'"{self._signature}"'


def make_server(run: Path, port: int = 0, seed: int = 0) -> ThreadingHTTPServer:
    """A server bound to 127.0.0.1, not yet running; port 0 takes a free one (see `.server_port`).

    Raises:
        UsageError: `run` is no folder, or the port is taken.
    """
    source = Source(run, seed)
    source.get()

    class Bound(Handler):
        report = source

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Bound)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port}: {error}; --port 0 takes a free one") from None
    server.daemon_threads = True
    return server


class Handler(BaseHTTPRequestHandler):
    """GET / (the page) and GET /api/data (its data as JSON)."""

    report: Source
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gristmill", ""
    timeout = 30

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in HOSTS:
            return self._send(421, "text/plain", b"This server answers to 127.0.0.1 and localhost only.\n")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._send(403, "text/plain", b"Other sites may not read this.\n")
        address = self.path.split("?", 1)[0]
        if address not in ("/", "/api/data"):
            return self._send(404, "text/plain", b"There are / and /api/data here.\n")
        data, tag = self.report.get()
        if address == "/":
            return self._send(200, "text/html; charset=utf-8", render(data, live=True).encode())
        if self.headers.get("If-None-Match") == tag:
            return self._send(304, "application/json", b"", tag)
        return self._send(200, "application/json", data.to_json().encode(), tag)

    def refuse(self) -> None:
        self.close_connection = True  # a body that nobody reads must not be taken for the next request
        self._send(405, "text/plain", b"GET only.\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = refuse

    def _send(self, status: int, kind: str, body: bytes, tag: str | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        headers |= {"Allow": "GET"} if status == 405 else {}
        headers |= {"ETag": tag} if tag else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A request every five seconds is nothing to tell anyone about."""


def _signature(run: Path) -> str:
    total = hashlib.sha256()
    for folder, folders, names in os.walk(run):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(names):
            try:
                state = Path(folder, name).stat()
            except FileNotFoundError:
                continue  # a temporary file that was renamed meanwhile
            total.update(f"{folder}/{name} {state.st_mtime_ns} {state.st_size}\n".encode())
    return total.hexdigest()[:32]
