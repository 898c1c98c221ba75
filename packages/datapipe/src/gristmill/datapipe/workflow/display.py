"""Progress of a run that people can trust: a live table of bars in a terminal, one line per interval in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

INTERVAL_SECONDS = 10.0


class Display:
    """Thread-safe; every line goes to stderr. `total` and `done` count partitions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._bar = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description:<16}"), BarColumn(bar_width=30), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("{task.fields[rate]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        return self

    def begin(self, name: str, total: int, cached: int) -> None:
        with self._lock:
            self._started[name] = self._told[name] = time.monotonic()
            if self._bar is not None:
                self._tasks[name] = self._bar.add_task(name, total=total, completed=cached, rate="")
            else:
                note = f", {cached} cached" if cached else ""
                self._line(f"{name}: {total} partition{'s' if total != 1 else ''}{note}")

    def advance(self, name: str, done: int, total: int, documents: int) -> None:
        with self._lock:
            elapsed = max(time.monotonic() - self._started[name], 1e-9)
            rate = f"{documents / elapsed:,.0f} documents/s" if documents else ""
            if self._bar is not None:
                self._bar.update(self._tasks[name], completed=done, total=total, rate=rate)
            elif time.monotonic() - self._told[name] >= INTERVAL_SECONDS and done < total:
                self._told[name] = time.monotonic()
                left = elapsed / done * (total - done)
                self._line(f"{name}: {done}/{total} partitions, {rate}, about {left:.0f} s left")

    def end(self, name: str, message: str) -> None:
        with self._lock:
            if self._bar is not None and name in self._tasks:
                self._bar.remove_task(self._tasks.pop(name))
            self._line(f"{name}: {message}")

    def say(self, message: str) -> None:
        with self._lock:
            self._line(message)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
