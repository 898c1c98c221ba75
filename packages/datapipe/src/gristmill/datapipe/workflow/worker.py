"""What a worker is told, what it answers, and how it works: the same in this process and in one of Ray's.

A job is a picklable object with setup() and a call per item. A failing item is an outcome, not an exception: the other
items finish first, and the runner decides.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow.watch import limited


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
