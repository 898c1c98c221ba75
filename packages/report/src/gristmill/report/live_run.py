"""One run as a server sees it: what was read of its files is kept for as long as those files stay as they are."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gristmill.report.runs import Run, find

T = TypeVar("T")
SKIPPED = {"report", "checkpoints", "ledger", "shuffles"}  # what no page shows at first, in many files
FOLLOWED = {"events.jsonl"}  # files that grow all the time: read as they do by what asks for them (training.log)


class LiveRun:
    """The folder of a run, and what was made of it."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._kept: dict[str, tuple[str, Any]] = {}

    def kept(self, name: str, folders: Sequence[str], make: Callable[[], T]) -> T:
        """What `make` gives, made again only when a file below one of `folders` (relative to the run; "" is all of it)
        has changed. Requests wait for one another only where they want the same `name`."""
        return self.tagged(name, folders, make)[0]

    def tagged(self, name: str, folders: Sequence[str], make: Callable[[], T]) -> tuple[T, str]:
        """The same, and a tag that changes when those files do."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            tag = signature(self.folder, folders)
            if self._kept.get(name, ("",))[0] != tag:
                self._kept.pop(name, None)  # two of them may not fit into memory
                self._kept[name] = (tag, make())
            return self._kept[name][1], tag


class LiveFolder:
    """All runs at a folder, looked for again whenever they are asked for."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self._lock = threading.Lock()
        self._open: dict[str, LiveRun] = {}

    def runs(self) -> dict[str, Run]:
        """By key. Raises UsageError where there is none (any more)."""
        return {run.key: run for run in find(self.folder)}

    def open(self, key: str) -> LiveRun:
        """Raises KeyError: no such run. A key is looked up among the runs found, and never joined to a path."""
        run = self.runs()[key]
        with self._lock:
            return self._open.setdefault(key, LiveRun(run.folder, self.seed))


def signature(run: Path, folders: Sequence[str] = ("",)) -> str:
    """Changes when a file below one of `folders` does: by name, size and time. Logs that are followed do not count."""
    total = hashlib.sha256()
    for start in folders:
        for folder, inside, names in os.walk(run / start):
            inside[:] = sorted(name for name in inside if name not in SKIPPED and not name.startswith("."))
            for name in sorted(name for name in names if name not in FOLLOWED):
                try:
                    # A Path for each of thousands of files would be felt in every answer.
                    state = os.stat(f"{folder}/{name}")  # noqa: PTH116
                except FileNotFoundError:
                    continue  # a temporary file that was renamed meanwhile
                total.update(f"{folder}/{name} {state.st_mtime_ns} {state.st_size}\n".encode("utf-8", "replace"))
    return total.hexdigest()[:32]
