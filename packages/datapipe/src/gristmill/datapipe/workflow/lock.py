"""One runner per run folder. The lock is the operating system's: it goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gristmill.base.errors import GristmillError


class RunLock:
    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"

    def __enter__(self) -> None:
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            raise GristmillError(
                f"{self._path.parent}: another run (process {self._file.read().strip() or '?'}) is at work here; "
                "wait for it, or give another --output"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def __exit__(self, *_exception: object) -> None:
        self._file.close()
