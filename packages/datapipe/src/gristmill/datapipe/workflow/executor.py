"""Where work runs: `workers=0` in this process, else on Ray (`on_ray`). A worker that dies is replaced; bad code is not
tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.watch import Limit
from gristmill.datapipe.workflow.worker import Job, Outcome, Worker


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
