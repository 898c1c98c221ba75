"""One runner per run folder, on one machine or several.

On one machine the lock is the operating system's: it goes with the process, however that ends. Machines that share a
file system may not share its locks; there the runner's lease counts, a file whose beat changes every few seconds.
Whether it changes is watched by the watcher's own clock, so that clocks may differ and jump.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from gristmill.base.errors import DataError, GristmillError
from gristmill.base.files import read_object, write_json

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A lease whose beat stands still for so long is nobody's any more."""


class RunLock:
    """A context manager; entering it refuses where another runner is at work.

    `lost` is called (once, in a thread) where another runner has taken the lease over: this process stood still for too
    long, suspended or cut off from the file system, and must not write any more.
    """

    def __init__(self, folder: Path, lost: Callable[[], None] = lambda: None) -> None:
        self._folder, self._lost = folder, lost
        self._lease = folder / ".lease"
        self._me = {"host": socket.gethostname(), "process": os.getpid(), "owner": uuid.uuid4().hex}
        self._over = threading.Event()

    def __enter__(self) -> None:
        """Raises GristmillError: another runner is at work in the folder."""
        self._file = (self._folder / ".lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise self._in_use(self._read()) from None
        other = self._read()
        if other.get("host") not in (None, self._me["host"]) and self._beats(other):
            self._file.close()
            raise self._in_use(other)
        self._beat(0)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()
        if self._read().get("owner") == self._me["owner"]:
            self._lease.unlink(missing_ok=True)
        self._file.close()

    def _keep(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            try:
                if self._read().get("owner") != self._me["owner"]:
                    self._lost()
                    return
                self._beat(beat)
            except OSError:
                continue  # a full disk or a network that is away: the run's own writes tell

    def _beat(self, beat: int) -> None:
        write_json(self._lease, {**self._me, "beat": beat})

    def _beats(self, other: dict[str, object]) -> bool:
        until = time.monotonic() + STALE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            if self._read() != other:
                return True
        return False

    def _read(self) -> dict[str, object]:
        try:
            return read_object(self._lease)
        except DataError:  # not there, or damaged
            return {}

    def _in_use(self, other: dict[str, object]) -> GristmillError:
        who = f"process {other.get('process', '?')} on {other.get('host', 'this machine')}"
        return GristmillError(
            f"{self._folder}: another run ({who}) is at work here; wait for it, or give another --output"
        )
