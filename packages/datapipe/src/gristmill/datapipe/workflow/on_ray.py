"""Jobs on Ray: an embedded cluster, or the one that RAY_ADDRESS names (`cluster`).

Ray finds processors, starts processes and tells who died; all else is decided here and in the ledger. Items and
outcomes are tiny. Documents go from worker to worker in files of the run folder, which every node sees under the same
path: so any node can do any piece, and nothing is put into Ray's object store. No more pieces are submitted than may
run. Ray itself retries nothing.

Only threads that nobody has to wait for talk to Ray, because a call into a dead cluster may last a minute and then end
this process without a word: one thread starts, watches and ends Ray, and one per map() feeds it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow import cluster
from gristmill.datapipe.workflow.crew import Crew, Place
from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.watch import Limit, first_gone, where_it_stood
from gristmill.datapipe.workflow.worker import Job, Outcome

LOST_WORKER_RETRIES = 2
CANNOT_LOAD = "a Ray worker cannot load gristmill: install the same version, and what it needs, on every node"
ENOUGH_MEMORY = (
    "give it more: fewer --workers, smaller --ingest.rows-per-partition, or memory_gb in the stage's resources"
)
REST_SECONDS, MOST_REST = 5.0, 60.0
"""Where memory ran out, nothing begins for so long, and for twice as long where it does for the same piece again: what
filled the machine may be another's, and the memory of a process that was ended comes back over seconds. After so much
rest without a piece that was done, the machine is too small, and there is no more."""
STOP_SECONDS = 0.5
START_SECONDS = 300.0
FEEDERS_SECONDS = 3.0
CLOSE_SECONDS = 10.0
QUIET_SECONDS = 60.0
"""Where nothing finishes for so long, look whether there still is a node that can do it."""


class OnRay:
    """Runs each job with as many workers as `workers` processors carry, and notices when the cluster is gone."""

    def __init__(self, workers: int, say: Callable[[str], None]) -> None:
        """Raises GristmillError where Ray cannot start, or cannot reach the cluster."""
        self.workers = workers
        self._say = say
        self._over = threading.Event()
        self._why = GristmillError("stopped")
        self._lost = False
        self._feeders: list[threading.Thread] = []
        started: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        # Ray has the kernel kill its processes when the thread ends that started them, so that none outlives a driver
        # that was killed: this thread ends last.
        self._keeper = threading.Thread(target=self._keep, args=(started,), name="ray", daemon=True)
        self._keeper.start()
        try:
            error = started.get(timeout=START_SECONDS)
        except queue.Empty:
            atexit.register(_leave)
            error = GristmillError(f"Ray did not start in {START_SECONDS:g} s; --workers 0 does without it")
        if error:
            raise error

    def map(
        self, job: Job, items: Sequence[Any], resources: Resources, limit: Limit | None = None
    ) -> Iterator[Outcome]:
        # What waits here is done but not yet in the ledger: it would be done again, should this process be killed.
        found: queue.Queue[Outcome | BaseException | None] = queue.Queue(maxsize=self.workers)
        left = threading.Event()

        def tell(outcome: Outcome | BaseException | None) -> None:
            while not (self._over.is_set() or left.is_set()):
                with contextlib.suppress(queue.Full):
                    return found.put(outcome, timeout=STOP_SECONDS)

        def feed() -> None:
            try:
                for outcome in self._outcomes(job, items, resources, limit, left):
                    tell(outcome)
                tell(None)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for outcomes
                tell(error)

        feeder = threading.Thread(target=feed, name=f"ray: {job.name}", daemon=True)
        self._feeders.append(feeder)
        feeder.start()
        try:
            while True:
                try:
                    outcome = found.get(timeout=STOP_SECONDS)
                except queue.Empty:
                    if self._over.is_set():
                        raise self._why from None
                    continue
                if outcome is None:
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            left.set()

    def stop(self) -> None:
        self._over.set()

    def close(self) -> None:
        self._over.set()
        self._keeper.join(CLOSE_SECONDS)
        if self._keeper.is_alive() and self._lost:
            atexit.register(_leave)

    # The thread that keeps Ray ------------------------------------------------------------------------------------

    def _keep(self, started: queue.SimpleQueue[Exception | None]) -> None:
        try:
            owned = cluster.connect(self.workers)
            services = cluster.services()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for the start
            started.put(error)
            return
        started.put(None)
        if gone := first_gone(services, self._over):
            self._gone(f"{gone.name} ({gone.host}) died, or cannot be reached any more")
        until = time.monotonic() + FEEDERS_SECONDS
        for feeder in self._feeders:  # they take back what is under way
            feeder.join(max(0.0, until - time.monotonic()))
        if owned:
            import ray

            ray.shutdown()

    def _gone(self, what: str) -> GristmillError:
        self._lost = True
        self._why = GristmillError(f"{what}; what is done is kept, and the same command goes on from there")
        self._over.set()
        return self._why

    # A thread per map() -------------------------------------------------------------------------------------------

    def _outcomes(
        self, job: Job, items: Sequence[Any], resources: Resources, limit: Limit | None, left: threading.Event
    ) -> Iterator[Outcome]:
        """Who is free gets the next piece; a piece whose worker was lost comes again after the others."""
        import ray
        from ray import exceptions as ray_errors

        cluster.check(resources)
        waiting = deque(_Piece.of(job, item, number, limit) for number, item in enumerate(items))
        crew = Crew(job, resources, max(1, min(len(items), int(self.workers // max(resources.cpus, 1e-9)))))
        running: dict[Any, tuple[Place, _Piece]] = {}
        rests_until, rest_left = 0.0, MOST_REST
        try:
            while waiting or running:
                while waiting and crew.free and time.monotonic() >= rests_until:
                    place, piece = crew.free.pop(), waiting.popleft()
                    running[place.begin(*piece.order())] = place, piece
                until = rests_until if waiting and crew.free else inf
                first = self._first([*running, *crew.starting], until, resources, left)
                if first is None:
                    continue
                if first in crew.starting:
                    crew.free.append(crew.starting.pop(first))
                    continue
                place, piece = running.pop(first)
                try:
                    outcome: Any = ray.get(first)
                    crew.back(place)
                    rest_left = MOST_REST
                except ray_errors.RayTaskError as error:
                    outcome = Outcome(piece.item, error=CANNOT_LOAD, detail=str(error))
                    crew.back(place)
                except ray_errors.LocalRayletDiedError:
                    raise self._gone("Ray on this machine died") from None
                except ray_errors.RayError as error:  # its process died, ran out of memory, or its node is gone
                    memory = _out_of_memory(error)
                    crew.lost(place, memory, smaller=memory and piece.losses > 0)
                    outcome = piece.lost(error)
                    if memory:
                        begins = max(rests_until, now := time.monotonic())
                        rests_until = max(begins, min(now + REST_SECONDS * 2 ** (piece.losses - 1), begins + rest_left))
                        rest_left -= rests_until - begins
                    if outcome is None:
                        self._say(f"{job.name}, {piece.name}: {_reason(error)}; it is tried again")
                        waiting.append(piece)
                        continue
                yield outcome
        finally:
            crew.end()

    def _first(self, references: list[Any], until: float, resources: Resources, left: threading.Event) -> Any | None:
        """The first reference that is ready, or None at the time `until`. Looks up often enough to see stop(): Ray's
        wait cannot be interrupted."""
        import ray

        since = time.monotonic()
        while not (self._over.is_set() or left.is_set()):
            now = time.monotonic()
            if now >= until:
                return None
            if now - since > QUIET_SECONDS:
                cluster.check(resources)
                since = now
            if not references:
                self._over.wait(min(STOP_SECONDS, until - now))
            elif done := ray.wait(references, num_returns=1, timeout=min(STOP_SECONDS, until - now))[0]:
                return done[0]
        raise self._why


def _leave() -> None:
    """End a process whose cluster is gone, once everything is said: Ray's own way out waits for the cluster, for a
    minute and more, and then ends the process too, or crashes it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@dataclass
class _Piece:
    """An item on its way through the workers."""

    item: Any
    name: str
    seconds: float
    trace: Path | None
    losses: int = 0

    @classmethod
    def of(cls, job: Job, item: Any, number: int, limit: Limit | None) -> _Piece:
        name = item if isinstance(item, str) else getattr(item, "key", str(number))
        return cls(item, name, limit.seconds if limit else 0.0, limit.trace(job.name, name) if limit else None)

    def order(self) -> tuple[Any, float, Path | None]:
        """What a worker is told. An old trace must not be taken for one of its own."""
        if self.trace:
            self.trace.unlink(missing_ok=True)
        return self.item, self.seconds, self.trace

    def lost(self, error: Exception) -> Outcome | None:
        """Its worker died: what comes of it, or None where it is to be tried again."""
        if self.trace and (where := where_it_stood(self.trace)):
            told = f"no result after {self.seconds:g} s; where it stood: {where}; whole trace in {self.trace}"
            return Outcome(self.item, error=told)
        if getattr(error, "actor_init_failed", False):
            return Outcome(self.item, error=CANNOT_LOAD, detail=str(error))
        self.losses += 1
        if self.losses <= LOST_WORKER_RETRIES:
            return None
        told = f"tried {self.losses} times: {_reason(error)}"
        return Outcome(self.item, error=f"{told}; {ENOUGH_MEMORY}" if _out_of_memory(error) else told)


def _out_of_memory(error: Exception) -> bool:
    from ray.exceptions import OutOfMemoryError

    return isinstance(error, OutOfMemoryError)


def _reason(error: Exception) -> str:
    """Why a worker was lost, in one line."""
    if not _out_of_memory(error):
        return f"its worker died ({str(error).splitlines()[0].rstrip('.')})"
    node = re.search(r"was (\S+) used / (\S+) limit", str(error))
    ended = re.findall(r"Selected to kill: .*actual memory used=(\S+?),", str(error))
    full = f"its machine ran out of memory{f' ({node[1]} of {node[2]})' if node else ''}"
    one = len(ended) == 1
    return f"{full}, and Ray ended its worker ({'it had' if one else 'one of those that had'} {', '.join(ended)})"
