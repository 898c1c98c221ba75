"""Where work runs: `workers=0` in this process, else on Ray (`on_ray`).

A job is a picklable object with setup() and a call per item. A failing item is an outcome, not an exception: the other
items finish first, and the runner decides. A worker that dies is replaced; bad code is not tried again.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.watch import Limit, limited


class Job(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def stateful(self) -> bool:
        """Whether setup() loads something that is worth keeping from item to item."""
        ...

    def setup(self) -> None: ...
    def __call__(self, item: Any) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    item: Any
    value: Any = None
    error: str | None = None
    detail: str = ""


class Executor(Protocol):
    workers: int

    def map(
        self, job: Job, items: Sequence[Any], resources: Resources, limit: Limit | None = None
    ) -> Iterator[Outcome]:
        """The outcome of each item, as they come.

        `limit` is for each item, with the setup() that its worker may need first; without one an item may take for
        ever. Raises GristmillError where no worker can have such resources, or all workers are gone for good.
        """
        ...

    def stop(self) -> None:
        """Make every map() under way, in whatever thread, end soon with an error."""
        ...

    def close(self) -> None: ...


class InProcess:
    """One item after another in this process: for debugging, and for tests that want a breakpoint. There is no limit,
    because nothing could be ended without ending the run, and a debugger may hold an item for as long as it likes."""

    workers = 0

    def map(
        self, job: Job, items: Sequence[Any], resources: Resources, limit: Limit | None = None
    ) -> Iterator[Outcome]:
        worker = Worker(job)
        for item in items:
            yield worker.work(item)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def start(workers: int, say: Callable[[str], None] = lambda _message: None) -> Executor:
    """`say` is told, in a thread of its own, of workers that were lost and whose items are tried again."""
    if not workers:
        return InProcess()
    from gristmill.datapipe.workflow.on_ray import OnRay

    return OnRay(workers, say)


class Worker:
    """Runs one job, in this process or in one of Ray's. Setup is lazy, so that its failure is an outcome."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ready = False

    def __repr__(self) -> str:
        return self._job.name  # what Ray puts before each line that this worker prints

    def ping(self) -> None:
        """Answers as soon as there is a worker to answer."""

    def work(self, item: Any, seconds: float = 0.0, trace: Path | None = None) -> Outcome:
        """`seconds`: end the process where it takes longer, with what it was at in `trace`; 0 is for ever."""
        try:
            with limited(seconds, trace) if seconds and trace else contextlib.nullcontext():
                if not self._ready:
                    self._job.setup()
                    self._ready = True
                return Outcome(item, value=self._job(item))
        except GristmillError as error:
            return Outcome(item, error=str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - any bug in a stage fails its partition, with its traceback kept
            first = (str(error).splitlines() or [""])[0]
            return Outcome(item, error=f"{type(error).__name__}: {first}", detail=traceback.format_exc())
