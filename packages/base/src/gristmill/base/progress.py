"""Progress that works in a terminal and in a log file: a live bar on a TTY, else lines, always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """`with Progress("grade", total=12, unit="partitions") as progress: progress.update(3, documents=1200)`.

    Keyword numbers given to update() are totals so far; their rates are shown.
    """

    def __init__(self, label: str, total: int, unit: str, interval: float = 10.0) -> None:
        self.label, self.total, self.unit, self.interval = label, total, unit, interval
        self.started = time.monotonic()
        self._last = self.started
        self._live = sys.stderr.isatty()
        self._bar = None

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self.label, total=self.total, rates="")
            self._bar.start()
        return self

    def of(self, done: int, total: int) -> None:
        """update() for work whose total is known only as it goes."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)
        self.update(done)

    def update(self, done: int, **totals: float) -> None:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rates = ", ".join(f"{total / elapsed:,.0f} {name}/s" for name, total in totals.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rates=rates)
        elif time.monotonic() - self._last >= self.interval:
            self._last = time.monotonic()
            left = elapsed / done * (self.total - done) if done else float("nan")
            eta = f", {left:.0f} s left" if done else ""
            print(
                f"{self.label}: {done}/{self.total} {self.unit}{', ' + rates if rates else ''}{eta}",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
