"""Where work runs: `workers=0` in this process, else on Ray (embedded, or the cluster that RAY_ADDRESS names).

A job is a picklable object with setup() and a call per item. A failing item is an outcome, not an exception: the other
items finish first, and the runner decides. Node loss is retried; bad code is not.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gristmill.base.errors import GristmillError
from gristmill.datapipe.workflow.stage import Resources

LOST_WORKER_RETRIES = 2
STOP_SECONDS = 0.5


class Job(Protocol):
    name: str
    stateful: bool
    """Whether setup() loads something that is worth keeping from item to item."""

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

    def map(self, job: Job, items: Sequence[Any], resources: Resources) -> Iterator[Outcome]: ...

    def stop(self) -> None:
        """Make every map() under way, in whatever thread, end soon with an error."""
        ...

    def close(self) -> None: ...


class InProcess:
    """One item after another in this process: for debugging, and for tests that want a breakpoint."""

    workers = 0

    def map(self, job: Job, items: Sequence[Any], resources: Resources) -> Iterator[Outcome]:
        worker = _Worker(job)
        for item in items:
            yield worker.work(item)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class OnRay:
    """Stateless jobs as Ray tasks, on processes that Ray keeps warm; jobs with models as actors, set up once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._stopped = threading.Event()
        self._owned = _connect(workers)

    def map(self, job: Job, items: Sequence[Any], resources: Resources) -> Iterator[Outcome]:
        import ray

        _refuse_infeasible(resources)
        if job.stateful:
            return self._actors(ray.put(job), items, resources)
        return self._tasks(ray.put(job), items, {**_options(resources), "name": job.name})

    def _tasks(self, job_ref: Any, items: Sequence[Any], options: dict[str, Any]) -> Iterator[Outcome]:
        import ray
        from ray import exceptions as ray_errors

        options |= {"max_retries": LOST_WORKER_RETRIES, "retry_exceptions": False}
        task = ray.remote(_work_once).options(**options)
        queue, running = list(reversed(items)), {}
        try:
            while queue or running:
                while queue and len(running) < 2 * self.workers:
                    item = queue.pop()
                    running[task.remote(job_ref, item)] = item
                done = self._wait(list(running))
                item = running.pop(done)
                try:
                    outcome: Any = ray.get(done)
                except ray_errors.WorkerCrashedError as error:
                    outcome = _lost(item, error)
                except ray_errors.RayTaskError as error:  # it could not even be unpickled
                    outcome = Outcome(item, error="a Ray worker cannot load it", detail=str(error))
                except ray_errors.RayError as error:  # out of memory, or its node is gone
                    outcome = _lost(item, error)
                yield outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _actors(self, job_ref: Any, items: Sequence[Any], resources: Resources) -> Iterator[Outcome]:
        import ray
        from ray import exceptions as ray_errors

        actor_class: Any = ray.remote(_Worker).options(**_options(resources))
        size = max(1, min(len(items), int(self.workers // max(resources.cpus, 1e-9)) or 1))
        pool = [actor_class.remote(job_ref) for _ in range(size)]
        queue = [(item, 0) for item in reversed(items)]
        # An actor gets items only once it answers: with several nodes at work some actors wait long for a processor,
        # and an item given to one of those would wait with it.
        starting = {actor.ping.remote(): actor for actor in pool}
        running: dict[Any, tuple[Any, Any, int]] = {}
        idle: list[Any] = []
        try:
            while queue or running:
                while idle and queue:
                    actor = idle.pop()
                    item, attempt = queue.pop()
                    running[actor.work.remote(item)] = (actor, item, attempt)
                done = self._wait([*running, *starting])
                if done in starting:
                    idle.append(starting.pop(done))
                    continue
                actor, item, attempt = running.pop(done)
                try:
                    outcome: Any = ray.get(done)
                    idle.append(actor)
                except ray_errors.RayTaskError as error:
                    outcome = Outcome(item, error="a Ray worker cannot load it", detail=str(error))
                    idle.append(actor)
                except ray_errors.RayError as error:  # the actor died, ran out of memory, or its node is gone
                    pool.remove(actor)
                    pool.append(fresh := actor_class.remote(job_ref))
                    starting[fresh.ping.remote()] = fresh
                    if attempt < LOST_WORKER_RETRIES:
                        queue.append((item, attempt + 1))
                        continue
                    outcome = _lost(item, error)
                yield outcome
        finally:
            for actor in pool:
                ray.kill(actor)

    def _wait(self, references: list[Any]) -> Any:
        """The first reference that is ready. Looks up often enough to see stop(): Ray's wait cannot be interrupted."""
        import ray

        while not self._stopped.is_set():
            if done := ray.wait(references, num_returns=1, timeout=STOP_SECONDS)[0]:
                return done[0]
        raise GristmillError("stopped")

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        import ray

        if self._owned:
            ray.shutdown()


def start(workers: int) -> Executor:
    return OnRay(workers) if workers else InProcess()


class _Worker:
    """Runs one job, in this process or in a Ray actor. Setup is lazy, so that its failure is an outcome."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._name = job.name
        self._ready = False

    def __repr__(self) -> str:
        return self._name  # what Ray puts before each line that this worker prints

    def ping(self) -> None:
        """Answers as soon as there is a worker to answer."""

    def work(self, item: Any) -> Outcome:
        try:
            if not self._ready:
                self._job.setup()
                self._ready = True
            return Outcome(item, value=self._job(item))
        except GristmillError as error:
            return Outcome(item, error=str(error))
        except Exception as error:  # noqa: BLE001 - any bug in a stage fails its partition, with its traceback kept
            first = (str(error).splitlines() or [""])[0]
            return Outcome(item, error=f"{type(error).__name__}: {first}", detail=traceback.format_exc())


def _work_once(job: Job, item: Any) -> Outcome:
    return _Worker(job).work(item)


def _lost(item: Any, error: Exception) -> Outcome:
    reason = str(error).splitlines()[0]
    return Outcome(item, error=f"its worker died {LOST_WORKER_RETRIES + 1} times (out of memory?): {reason}")


def _options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gb:
        options["memory"] = int(resources.memory_gb * 2**30)
    return options


def _connect(workers: int) -> bool:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or start one for this process alone.

    The embedded cluster's ports listen on all interfaces, whatever Ray is told; a token of its own keeps others out.
    Ray reads these variables when it is imported. Returns whether this call connected.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray

    if ray.is_initialized():
        return False
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if cluster:
            ray.init(logging_level=logging.ERROR)
        else:  # "local": never a cluster that somebody else left running on this machine
            memory = 512 * 2**20
            ray.init(
                "local", num_cpus=workers, include_dashboard=False, object_store_memory=memory,
                logging_level=logging.ERROR,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = f"reach the cluster at {cluster}" if cluster else "start on this machine"
        raise GristmillError(
            f"Ray cannot {where}: {str(error).splitlines()[0]}; --workers 0 does without it"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own there, with its own exit code
    return True


def _refuse_infeasible(resources: Resources) -> None:
    """Ray would wait for ever, without a word, for what no node can give."""
    import ray

    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_gb * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
        best = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        short = [
            f"{kind} {wanted[kind]:g} (largest node has {best[kind]:g})" for kind in wanted if best[kind] < wanted[kind]
        ]
        raise GristmillError(f"no Ray node can run a worker that needs {', '.join(short)}: lower it, or add a node")
