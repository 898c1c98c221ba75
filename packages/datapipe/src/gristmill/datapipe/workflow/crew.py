"""The workers of one job on Ray: stateless jobs as tasks, on processes that Ray keeps warm; jobs with models as actors,
set up once.

Ray retries none of them (its default would repeat for ever a task that ran out of memory): the caller knows what a lost
worker means.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.worker import Job, Outcome, Worker


class _Packed:
    """A job on its way to a worker, which unpacks it when it is first at work: what cannot be imported there is an
    outcome like others. It finds what this process finds, such as modules beside the script, which Ray leaves out of
    jobs with a working folder."""

    def __init__(self, job: Job) -> None:
        from ray import cloudpickle

        self.name, self.stateful = job.name, job.stateful
        self._path = [str(Path(entry).absolute()) for entry in sys.path]
        # In memory alone: nothing of the kind is ever in a file.
        self._packed: bytes = cloudpickle.dumps(job)  # pyright: ignore[reportPrivateImportUsage]

    def setup(self) -> None:
        from ray import cloudpickle

        sys.path.extend(entry for entry in self._path if entry not in sys.path)
        self._job: Job = cloudpickle.loads(self._packed)
        self._job.setup()

    def __call__(self, item: Any) -> Any:
        return self._job(item)


class Task:
    """A place for one Ray task at a time, in whatever process Ray has at hand."""

    ready = None

    def __init__(self, task: Any) -> None:
        self._task = task

    def begin(self, *order: Any) -> Any:
        return self._task.remote(*order)

    def end(self) -> None:
        """What is under way goes on to its end, or to the end of this process's part in the cluster. It is never
        cancelled: Ray 2.60 aborts the driver where that meets the completion of the task (task_manager.cc, "Tried to
        complete task that was not pending")."""


class Actor:
    """A process of its own, for one piece after another. It gets pieces once it answers: where several nodes of a DAG
    run, some actors wait long for a processor, and a piece given to one of those would wait with it."""

    def __init__(self, actor_class: Any) -> None:
        self._actor = actor_class.remote()
        self.ready = self._actor.ping.remote()

    def begin(self, *order: Any) -> Any:
        return self._actor.work.remote(*order)

    def end(self) -> None:
        import ray

        ray.kill(self._actor)


Place = Task | Actor


class Crew:
    """`free` can begin a piece; `starting` will be free when what Ray promises of them is ready.

    Where memory ran out, all go on in fresh processes: a little that leaks with each piece may have filled the old.
    Where it runs out for the same piece once more, it is no leak, and from then on one less works at a time.
    """

    def __init__(self, job: Job, resources: Resources, size: int) -> None:
        self.free: list[Place] = []
        self.starting: dict[Any, Place] = {}
        self._job, self._resources = _Packed(job), resources
        self._fresh = False
        self._hire = self._hiring()
        self._all: list[Place] = []
        self._stale: list[Place] = []
        for _ in range(size):
            self._add()

    def back(self, place: Place) -> None:
        """It has done its piece."""
        if place in self._stale:
            self._drop(place)
            self._add()
        else:
            self.free.append(place)

    def lost(self, place: Place, memory: bool, smaller: bool) -> None:
        """Its process is gone, for want of `memory` or otherwise. `smaller`: do without it."""
        self._drop(place)
        if memory:
            if not self._fresh:
                self._fresh, self._hire = True, self._hiring(calls=1)
            self._stale = list(self._all)
            idle, self.free = self.free, []
            for other in idle:
                self.back(other)
        if not (smaller and self._all):
            self._add()

    def end(self) -> None:
        for place in self._all:
            place.end()

    def _add(self) -> None:
        place = self._hire()
        self._all.append(place)
        if place.ready is None:
            self.free.append(place)
        else:
            self.starting[place.ready] = place

    def _drop(self, place: Place) -> None:
        place.end()
        self._all.remove(place)

    def _hiring(self, calls: int = 0) -> Callable[[], Place]:
        """`calls`: of tasks, how many one process does (0: any number; an actor is a process in any case).

        The job goes to the workers with their code, once for each of them: as an argument it would go with every
        piece, or through the object store."""
        import ray

        job, wanted = self._job, self._resources
        options: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "scheduling_strategy": "SPREAD"}
        if wanted.memory_gb:
            options["memory"] = int(wanted.memory_gb * 2**30)
        if job.stateful:

            class JobWorker(Worker):
                def __init__(self) -> None:
                    super().__init__(job)

            actor_class: Any = ray.remote(**options, max_restarts=0, max_task_retries=0)(JobWorker)
            return lambda: Actor(actor_class)

        worker = Worker(job)

        def work(*order: Any) -> Outcome:
            return worker.work(*order)

        options |= {"name": job.name, "max_retries": 0, "max_calls": calls}
        task: Any = ray.remote(**options)(work)
        return lambda: Task(task)
