"""The pages on 127.0.0.1, following runs that are still going on. It answers GET to local browsers, nothing else.

No request names a file: a run's key is looked up among the runs found, everything else is a parameter of a question.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gristmill.base.errors import UsageError
from gristmill.report import questions
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveFolder
from gristmill.report.page import policy, render, render_folder
from gristmill.report.run_folder import as_json, panel_of, report_of

HOSTS = {"127.0.0.1", "localhost", "[::1]"}  # any other Host is a foreign page that rebound its name to this machine
CONNECTIONS = 64  # a browser has six
HEAD_SECONDS = 20.0  # for a request to arrive, or the next one of a connection that stays open
LARGEST = 64 << 20  # bytes of an answer


def make_server(folder: Path, port: int = 0, seed: int = 0) -> ThreadingHTTPServer:
    """A server of the runs at `folder`, bound to 127.0.0.1, not yet running; port 0 takes a free one (.server_port).

    Raises:
        UsageError: `folder` is no folder or holds no run, or the port is taken.
    """
    source = LiveFolder(folder, seed)
    found = source.runs()
    if "" in found:
        report_of(source.open(""))
    try:
        return Server(source, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port}: {error}; --port 0 takes a free one") from None


class Server(ThreadingHTTPServer):
    """With a bound on how many connections there are, and on how long each may take to say what it wants."""

    daemon_threads = True

    def __init__(self, runs: LiveFolder, port: int) -> None:
        self.runs = runs
        self._open: dict[socket.socket, float] = {}  # to when its request must be there; inf while it is answered
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def awaits(self, connection: socket.socket, seconds: float) -> None:
        with self._lock:
            self._open[connection] = time.monotonic() + seconds

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            return len(self._open) < CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        self.awaits(request, HEAD_SECONDS)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: who sends a byte now and then holds no connection for that."""
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, until in self._open.items() if until < now]
        for connection in late:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # its thread reads an end, and closes it
            except OSError:
                continue  # gone by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # a browser that went away is no fault
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET / (a run's page, or that of all runs), /run/KEY, /api/data?run=KEY (a page's data), /api/QUESTION?run=KEY."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gristmill", ""
    timeout = 30  # for each read and write

    def handle_one_request(self) -> None:
        self.server.awaits(self.connection, HEAD_SECONDS)
        super().handle_one_request()

    def do_GET(self) -> None:
        self.server.awaits(self.connection, float("inf"))
        try:
            self._get()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except AskedWrong as error:
            self._json({"error": str(error)}, 400)
        except UsageError as error:
            self._json({"error": str(error)}, 404)
        except Exception as error:  # noqa: BLE001 - ours: the reader gets a line, whoever started the server the whole of it
            traceback.print_exc()
            told = f"the server could not answer this ({type(error).__name__}); where it was started stands why"
            self._json({"error": told}, 500)

    def _get(self) -> None:
        hosts = self.headers.get_all("Host", [])
        host = hosts[0].strip().lower() if len(hosts) == 1 else ""
        if (host if host.endswith("]") else host.rsplit(":", 1)[0]) not in HOSTS:
            return self._refuse(421, "This server answers to 127.0.0.1 and localhost only.")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            # Following a link from another page is no read by that page, but there is no link to here either.
            return self._refuse(403, "Other sites may not read this.")
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            return self._refuse(400, "A question has no body.")
        address, _, query = self.path.partition("?")
        if address == "/":
            return self._page("")
        if address.startswith("/run/"):
            return self._page(unquote(address.removeprefix("/run/")))
        if address.startswith("/api/"):
            return self._answer(address.removeprefix("/api/"), Asked.of_query(query))
        self._send(404, "text/plain", b"There are /, /run/KEY and /api/QUESTION here.\n")

    def _page(self, key: str) -> None:
        runs = self.server.runs
        found = runs.runs()
        if key not in found and key:
            raise UsageError(f"{key}: no such run")
        if key in found:
            text = render(report_of(runs.open(key))[0], live=True, key=key)
        else:
            text = render_folder(panel_of(lambda: questions.FOLDER_QUESTIONS["runs"](runs, Asked())))
        self._send(200, "text/html; charset=utf-8", text.encode())

    def _answer(self, question: str, asked: Asked) -> None:
        runs = self.server.runs
        if ask := questions.FOLDER_QUESTIONS.get(question):
            return self._json(panel_of(lambda: ask(runs, asked)))
        if question != "data" and question not in questions.QUESTIONS:
            raise UsageError(f"{question}: no such question")
        key = asked.text("run")
        try:
            run = runs.open(key)
        except KeyError:
            raise UsageError(f"{key}: no such run") from None
        if question != "data":
            return self._json(questions.answer(question, run, asked))
        data, tag = report_of(run)
        if self.headers.get("If-None-Match") == f'"{tag}"':
            return self._send(304, "application/json", b"", tag)
        self._send(200, "application/json", data.to_json().encode(), tag)

    def refuse(self) -> None:
        self._refuse(405, "GET only.")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server could not read as a request: told without a word of it."""
        self._refuse(405, "GET only.") if code == 501 else self._refuse(code, "This is no request.")

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # a body that nobody reads must not be taken for the next request
        self._send(status, "text/plain", f"{why}\n".encode())

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, "application/json", as_json(value).encode())

    def _send(self, status: int, kind: str, body: bytes, tag: str | None = None) -> None:
        if len(body) > LARGEST:
            status, kind, tag = 500, "application/json", None
            body = as_json({"error": f"an answer of {len(body):,} bytes; {LARGEST:,} at most"}).encode()
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy(live=True) + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        headers |= {"Allow": "GET"} if status == 405 else {}
        headers |= {"Connection": "close"} if self.close_connection else {}
        headers |= {"ETag": f'"{tag}"'} if tag else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A request every two seconds is nothing to tell anyone about, and an address may hold what is nobody's."""
