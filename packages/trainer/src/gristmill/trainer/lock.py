"""One process trains in a run's folder. The lock is the operating system's: it goes with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from gristmill.base.errors import GristmillError
from gristmill.base.files import writing


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made.

    Raises:
        GristmillError: another process does.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GristmillError(
                f"{folder}: another process trains here; wait for it, or give another --output"
            ) from None
        yield
