"""The pages on 127.0.0.1, following runs that are still going on. It answers GET to local browsers, nothing else.

No request names a file: a run's key is looked up among the runs found, everything else is a parameter of a question.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gristmill.base.errors import UsageError
from gristmill.report import questions
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveFolder
from gristmill.report.page import policy, render, render_folder
from gristmill.report.run_folder import as_json, panel_of

HOSTS = {"127.0.0.1", "localhost", "[::1]"}  # any other Host is a foreign page that rebound its name to this machine


def make_server(folder: Path, port: int = 0, seed: int = 0) -> ThreadingHTTPServer:
    """A server of the runs at `folder`, bound to 127.0.0.1, not yet running; port 0 takes a free one (.server_port).

    Raises:
        UsageError: `folder` is no folder or holds no run, or the port is taken.
    """
    source = LiveFolder(folder, seed)
    found = source.runs()
    if "" in found:
        source.open("").report()

    class Bound(Handler):
        runs = source

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Bound)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port}: {error}; --port 0 takes a free one") from None
    server.daemon_threads = True
    return server


class Handler(BaseHTTPRequestHandler):
    """GET / (the run's page, or that of all runs), /run/KEY, /api/data?run=KEY (a page's data), /api/QUESTION?run=KEY."""

    runs: LiveFolder
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gristmill", ""
    timeout = 30

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in HOSTS:
            return self._send(421, "text/plain", b"This server answers to 127.0.0.1 and localhost only.\n")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            # Following a link from another page is no read by that page, but there is no link to here either.
            return self._send(403, "text/plain", b"Other sites may not read this.\n")
        address, _, query = self.path.partition("?")
        try:
            if address == "/":
                return self._page("")
            if address.startswith("/run/"):
                return self._page(unquote(address.removeprefix("/run/")))
            if address.startswith("/api/"):
                return self._answer(address.removeprefix("/api/"), Asked.of_query(query))
        except AskedWrong as error:
            return self._json({"error": str(error)}, 400)
        except UsageError as error:
            return self._json({"error": str(error)}, 404)
        self._send(404, "text/plain", b"There are /, /run/KEY and /api/QUESTION here.\n")

    def _page(self, key: str) -> None:
        found = self.runs.runs()
        if key not in found and key:
            raise UsageError(f"{key}: no such run")
        if key in found:
            text = render(self.runs.open(key).report()[0], live=True, key=key)
        else:
            listed = panel_of(lambda: questions.FOLDER_QUESTIONS["runs"](self.runs, Asked()))
            text = render_folder(listed)
        self._send(200, "text/html; charset=utf-8", text.encode())

    def _answer(self, question: str, asked: Asked) -> None:
        if ask := questions.FOLDER_QUESTIONS.get(question):
            return self._json(panel_of(lambda: ask(self.runs, asked)))
        if question != "data" and question not in questions.QUESTIONS:
            raise UsageError(f"{question}: no such question")
        key = asked.text("run")
        try:
            run = self.runs.open(key)
        except KeyError:
            raise UsageError(f"{key}: no such run") from None
        if question != "data":
            return self._json(questions.answer(question, run, asked))
        data, tag = run.report()
        if self.headers.get("If-None-Match") == f'"{tag}"':
            return self._send(304, "application/json", b"", tag)
        self._send(200, "application/json", data.to_json().encode(), tag)

    def refuse(self) -> None:
        self.close_connection = True  # a body that nobody reads must not be taken for the next request
        self._send(405, "text/plain", b"GET only.\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = refuse

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, "application/json", as_json(value).encode())

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
        headers |= {"ETag": f'"{tag}"'} if tag else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A request every five seconds is nothing to tell anyone about."""
