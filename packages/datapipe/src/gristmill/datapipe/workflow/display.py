"""Progress of a run that people can trust: bars in a terminal, a line per interval in a log, and run.json for the rest.

One thread for the whole run looks once a second at what runs, tells it, and has run.json written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from gristmill.base.progress import GROUND_UPDATES, INTERVAL_SECONDS, Bars, Pace, duration
from gristmill.datapipe.workflow.record import NodeRecord, RunRecord, now, told

TICK_SECONDS = 1.0
QUIET_SECONDS = 300.0
"""Where nothing finishes for so long, a line says that the run lives."""


@dataclass(frozen=True)
class Phase:
    """What a node is at, and what it counts: the pieces, and whether their rows are documents of the run."""

    name: str
    pieces: str
    documents: bool = True


LOOK, READ = Phase("look", "chunks", documents=False), Phase("read", "pieces")
ANNOTATE, STEP = Phase("", "partitions"), Phase("", "", documents=False)
SCATTER, GATHER = Phase("scatter", "partitions"), Phase("gather", "buckets", documents=False)


@dataclass
class _Work:
    """A node that is running, in one phase."""

    node: NodeRecord
    phase: Phase
    total: int
    cached: int
    done: int
    pace: Pace
    told: float
    """When a line was last written about it ..."""
    told_done: int
    """... and how many pieces were done then."""
    finished: float
    """When a piece of it last finished."""
    announced: bool = False
    """What is over before the next look is told by its end alone."""

    @property
    def label(self) -> str:
        return ", ".join(filter(None, [self.node.name, self.phase.name]))

    @property
    def count(self) -> str:
        if self.phase is STEP:
            return ""
        cached = f" ({self.cached:,} cached)" if self.cached else ""
        return f"{self.done:,}/{self.total:,} {self.phase.pieces}{cached}"

    @property
    def announcement(self) -> str:
        if self.phase is STEP:
            return "at work"
        pieces = self.phase.pieces if self.total != 1 else self.phase.pieces.rstrip("s")
        return f"{self.total:,} {pieces}{f', {self.cached:,} cached' if self.cached else ''}"


class Display:
    """Thread-safe; every line goes to stderr. Rates and times left are of what this run does: what was there is not."""

    def __init__(self, record: RunRecord, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        # As many pieces as there are workers finish together at first: what comes after them tells how fast it goes.
        self._ground = max(GROUND_UPDATES, workers + 1)
        self._lock = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._bars = Bars()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._bars.__enter__()
        self._thread.start()
        return self

    def begin(self, name: str, phase: Phase, total: int, cached: int = 0) -> None:
        """A node begins a phase. Call it when workers are there: the time that they take to start is not the work's."""
        with self._lock:
            self._leave(name)
            node, at = self._record.nodes[name], self._clock()
            node.phase, node.started_at = phase.name, node.started_at or now()
            pace = Pace(self._ground, self._clock, pieces=cached, documents=node.documents)
            self._works[name] = work = _Work(node, phase, total, cached, cached, pace, at, cached, at)
            self._bars.show(work.label, cached, total, work.count, "")
            self._record.changed()

    def advance(self, name: str, documents: int = 0, quarantined: int = 0) -> None:
        """A piece is done."""
        with self._lock:
            work = self._works[name]
            work.done, work.finished = work.done + 1, self._clock()
            work.node.documents += documents if work.phase.documents else 0
            work.node.quarantined += quarantined
            work.pace.update(pieces=work.done, documents=work.node.documents)
            self._record.changed()

    def end(self, name: str, message: str) -> None:
        """A node is done, or has failed."""
        with self._lock:
            self._leave(name)
            self._bars.say(f"{name}: {message}")

    def finish(self, status: str) -> None:
        """The run is over."""
        with self._lock:
            for name in list(self._works):
                self._leave(name)
            self._record.finish(status)
            if any(node.status in ("done", "cached") for node in self._record.nodes.values()):
                self._bars.say(self._record.summary())  # else the error says all that there is to say

    def say(self, message: str) -> None:
        self._bars.say(message)

    def tick(self) -> None:
        """Tell how everything that runs stands now."""
        with contextlib.suppress(OSError), self._lock:  # nobody reads stderr any more
            for work in self._works.values():
                self._measure(work)
                self._tell(work)
        with contextlib.suppress(OSError):  # a full disk or a network that is away: the run's own writes tell
            self._record.write(at_once=False)

    def _keep(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self.tick()

    def _measure(self, work: _Work) -> None:
        rate, left = work.pace.rates().get("documents"), work.pace.seconds_left("pieces", work.total)
        work.node.documents_per_second = round(rate, 2) if rate and work.phase.documents else None
        work.node.eta_seconds = round(left, 1) if left is not None else None

    def _tell(self, work: _Work) -> None:
        at = self._clock()
        quiet = at - work.finished
        facts = told(vars(work.node))
        if quiet >= QUIET_SECONDS:
            facts.append(f"{'at work' if work.phase is STEP else 'nothing finished'} for {duration(quiet)}")
        self._bars.show(work.label, work.done, work.total, work.count, ", ".join(facts))
        if not (work.announced or self._bars.live):
            work.announced = True
            self._bars.say(f"{work.label}: {work.announcement}")
        moved = at - work.told >= INTERVAL_SECONDS and work.told_done < work.done < work.total
        if moved or min(quiet, at - work.told) >= QUIET_SECONDS:
            work.told, work.told_done = at, work.done
            if not self._bars.live:
                self._bars.say(f"{work.label}: {', '.join(filter(None, [work.count, *facts]))}")

    def _leave(self, name: str) -> None:
        """The node's phase is over, if it was in any."""
        if work := self._works.pop(name, None):
            work.node.phase, work.node.documents_per_second, work.node.eta_seconds = "", None, None
            self._bars.remove(work.label)
            self._record.changed()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._bars.__exit__(kind, error, trace)
