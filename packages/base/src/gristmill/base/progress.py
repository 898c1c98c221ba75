"""Progress that works in a terminal and in a log file: live bars on a TTY, else a line per interval, always on stderr.

Rates, and the time that is left, are those of the last minute. Before there is ground for them nothing is said.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

from gristmill.base.terminal import shown

INTERVAL_SECONDS = 10.0
WINDOW_SECONDS = 60.0
GROUND_SECONDS, GROUND_UPDATES = 5.0, 3
"""What must have been seen before a rate is told."""
MARK_SECONDS = 1.0


@dataclass(frozen=True)
class _Mark:
    at: float
    updates: int
    totals: dict[str, float]


class Pace:
    """How fast totals grow, over the last WINDOW_SECONDS; over more where it takes longer to see `ground` updates.

    The first updates, which hold the time that workers took to start, count only until there are enough later ones.
    `start` are the totals that were there before: what was done by an earlier run is no speed.
    """

    def __init__(
        self, ground: int = GROUND_UPDATES, clock: Callable[[], float] = time.monotonic, **start: float
    ) -> None:
        self._ground, self._clock = ground, clock
        self._marks = deque([_Mark(clock(), 0, start)])

    def update(self, **totals: float) -> None:
        now, last = self._clock(), self._marks[-1]
        mark = _Mark(now, last.updates + 1, totals)
        if len(self._marks) > 1 and now - self._marks[-2].at < MARK_SECONDS:
            self._marks.pop()
        self._marks.append(mark)
        while mark.updates - self._marks[1].updates >= self._ground and (
            now - self._marks[1].at >= WINDOW_SECONDS or self._marks[0].updates < self._ground - 1
        ):
            self._marks.popleft()

    def rates(self) -> dict[str, float]:
        """Of each total, per second, up to now: they fall while nothing happens. Empty without ground for them."""
        first, last = self._marks[0], self._marks[-1]
        seconds = self._clock() - first.at
        if last.updates - first.updates < self._ground or seconds < GROUND_SECONDS:
            return {}
        return {name: (total - first.totals.get(name, 0)) / seconds for name, total in last.totals.items()}

    def seconds_left(self, name: str, goal: float) -> float | None:
        """Until the total `name` comes to `goal` at its rate; None where there is no ground for that."""
        rate = self.rates().get(name)
        return (goal - self._marks[-1].totals[name]) / rate if rate else None


class Bars:
    """Bars on the terminal, by label; where stderr is no terminal there are only lines, and show() does nothing.

    A terminal has room for one live display, so all Bars of a process share it.
    """

    _live: ClassVar[Any] = None
    _users: ClassVar[int] = 0
    _lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self) -> None:
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        with Bars._lock:
            Bars._users += 1
            if Bars._live is None and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

                names = ("{task.description:<16}", "{task.fields[count]}", "{task.fields[told]}")
                label, count, told = (TextColumn(name, markup=False) for name in names)
                console = Console(stderr=True)
                Bars._live = Progress(label, BarColumn(bar_width=30), count, TimeElapsedColumn(), told, console=console)
                Bars._live.start()
        return self

    @property
    def live(self) -> bool:
        return Bars._live is not None

    def show(self, label: str, done: float, total: float, count: str, told: str) -> None:
        """Add the bar, or bring it up to date; a total of 0 is one that is not known yet."""
        with Bars._lock:
            if Bars._live is None:
                return
            values = {"completed": done, "total": total or None, "count": shown(count), "told": shown(told)}
            if label in self._tasks:
                Bars._live.update(self._tasks[label], **values)
            else:
                self._tasks[label] = Bars._live.add_task(shown(label), **values)

    def remove(self, label: str) -> None:
        with Bars._lock:
            if Bars._live is not None and label in self._tasks:
                Bars._live.remove_task(self._tasks.pop(label))

    def say(self, text: str) -> None:
        """A line, or several, above the bars. Control characters are spelled out."""
        safe = "\n".join(map(shown, text.split("\n")))
        with Bars._lock:
            if Bars._live is not None:
                Bars._live.console.print(safe, markup=False, highlight=False, emoji=False, soft_wrap=True)
            else:
                print(safe, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Bars._lock:
            for label in list(self._tasks):
                self.remove(label)
            Bars._users -= 1
            if Bars._live is not None and not Bars._users:
                Bars._live.stop()
                Bars._live = None


class Progress:
    """`with Progress("grade", total=12, unit="partitions") as progress: progress.update(3, documents=1200)`.

    Keyword numbers given to update() are totals so far; their rates are shown. A quiet one shows nothing.
    """

    def __init__(
        self, label: str, total: int, unit: str, interval: float = INTERVAL_SECONDS, quiet: bool = False
    ) -> None:
        self.label, self.total, self.unit, self.interval, self.quiet = label, total, unit, interval, quiet
        self._bars = Bars()
        self._pace = Pace()
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if not self.quiet:
            self._bars.__enter__()
        return self

    def of(self, done: int, total: int) -> None:
        """update() for work whose total is known only as it goes."""
        self.total = total
        self.update(done)

    def update(self, done: int, **totals: float) -> None:
        if self.quiet:
            return
        self._pace.update(done=done, **totals)
        due = time.monotonic() - self._last >= self.interval
        if not (due or self._bars.live):
            return
        rates, left = self._pace.rates(), self._pace.seconds_left("done", self.total)
        parts = [per_second(rates[name], name) for name in totals if name in rates]
        parts += [f"about {duration(left)} left"] if left else []
        count = f"{done:,}/{self.total:,} {self.unit}"
        self._bars.show(self.label, done, self.total, count, ", ".join(parts))
        if due and not self._bars.live:
            self._last = time.monotonic()
            self._bars.say(f"{self.label}: {', '.join([count, *parts])}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.quiet:
            self._bars.__exit__(kind, error, trace)


def per_second(rate: float, what: str) -> str:
    return f"{rate:,.0f} {what}/s" if rate >= 10 else f"{rate:.2g} {what}/s"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h` or `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
