"""An OpenAI-compatible oracle on loopback that grades by a hash of what it is asked: the same answer, always."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LEVELS = 5
"""Levels 0 to 4, as in pipelines/rubrics/general.toml."""


class Oracle:
    """`with Oracle() as oracle:` serves chat completions at oracle.url until the block ends."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds`: how long each answer takes."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.seconds = seconds
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Oracle:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    seconds: float

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # who asked was killed: part of the play
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        time.sleep(self.server.seconds)
        weights = [1 + byte for byte in hashlib.sha256(json.dumps(messages).encode()).digest()[:LEVELS]]
        top = [{"token": str(n), "logprob": math.log(w / sum(weights))} for n, w in enumerate(weights)]
        best = max(top, key=lambda level: level["logprob"])
        choice = {
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": best["token"]},
            "logprobs": {"content": [{**best, "top_logprobs": top}]},
        }  # fmt: skip
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
