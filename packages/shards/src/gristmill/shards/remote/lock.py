"""One process at a time at a folder: ranks of one job, or two people, may ask for the same files at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from gristmill.base.errors import GristmillError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, made with it if need be. It ends with the process, however that ends."""
    import filelock

    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=2)
    except filelock.Timeout:
        print(f"{folder}: another process is at it; waiting until it has finished", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise GristmillError(f"{folder}: cannot be written to ({error.strerror}): choose another folder") from None
    try:
        yield
    finally:
        lock.release()
