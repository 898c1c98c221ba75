"""The main text of HTML pages, found by trafilatura in a process of its own.

Pages are hostile: some take minutes or all memory, and some might crash the parser. The process has limits on both, and
when it dies only the page that it had in hand is lost. The limit is on processor time, so that a busy machine does not
change which pages come through.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from gristmill.base.errors import GristmillError, UsageError

PACKAGES = ("trafilatura", "brotli")
DISTRIBUTIONS = ("trafilatura", "lxml", "justext", "charset-normalizer")
"""Those whose version changes the text."""
MEMORY_BYTES = 2**32
READY = b"ready"
CRASHED, SLOW = "text extraction failed", "text extraction took too long"


@dataclass(frozen=True)
class Found:
    text: str
    charset: str
    """The one that the page was read in."""


@dataclass(frozen=True)
class Failed:
    reason: str
    detail: str


def check_installed() -> None:
    """Raises UsageError, which names the extra, where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"reading WARC needs {', '.join(missing)}: pip install 'gristmill-datapipe[warc]'")


class Extractor:
    """Started with the first page, and again after one that killed it. `max_seconds` of processor time per page."""

    def __init__(self, max_seconds: int, precision: bool) -> None:
        check_installed()
        self._arguments = [str(max_seconds), str(int(precision))]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def main_text(self, page: bytes, charset: str = "") -> Found | Failed:
        """The text, empty where the page has none. `charset` is what the HTTP header declared.

        Raises:
            GristmillError: the process cannot be started.
        """
        for attempt in range(2):
            if self._process is None:
                self._start()
            try:
                self._connection.send_bytes(charset.encode())
                self._connection.send_bytes(page)
                reply = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                code = self._end()
                if code == -signal.SIGXCPU:
                    return Failed(SLOW, f"more than {self._arguments[0]} s of processor time")
                if code == -signal.SIGKILL and not attempt:  # somebody's doing, or the machine was out of memory
                    continue
                return Failed(CRASHED, f"the process ended with code {code}")
            return Found(**reply) if "text" in reply else Failed(CRASHED, reply["error"])
        raise AssertionError("the second attempt returns")

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), *self._arguments]
        # A set's order would otherwise differ from process to process, and with it, now and then, the text.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        try:
            ready = self._connection.recv_bytes() == READY
        except (EOFError, OSError):
            ready = False
        assert self._process.stderr is not None
        if not ready:
            told = self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["no word"]
            raise GristmillError(f"the process that extracts text ended with code {self._end()}: {told[-1]}")
        self._process.stderr.close()

    def _end(self) -> int:
        """Without a word to the process: when its connection closes, it goes."""
        if self._process is None:
            return 0
        self._connection.close()
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code


# The process -----------------------------------------------------------------------------------------------------


def _serve(connection: Connection, max_seconds: int, precision: bool) -> None:
    import logging
    import resource

    import trafilatura
    from trafilatura.settings import use_config

    from gristmill.datapipe.ingest.charset import decode_page

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    config = use_config()
    config.set("DEFAULT", "MAX_FILE_SIZE", str(2**31))  # the caller has its own limit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # up to here it told why it could not start
    connection.send_bytes(READY)
    while True:
        try:
            declared, page = connection.recv_bytes().decode(), connection.recv_bytes()
        except EOFError:
            return
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + max_seconds)
        try:
            html, charset = decode_page(page, declared)
            text = trafilatura.extract(
                html, favor_precision=precision, include_comments=False, deduplicate=False, config=config
            )
            reply = {"text": text or "", "charset": charset}
        except Exception as error:  # noqa: BLE001 - whatever a page makes lxml or trafilatura raise costs that page
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        connection.send_bytes(json.dumps(reply).encode())


def _limit(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "1")
