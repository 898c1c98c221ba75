"""Work spread over processes, or done in this one: the same calls, results as they come."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from gristmill.base.errors import GristmillError

Each = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


def here(function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    for item in items:
        yield function(*item)


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Each]:
    """`each(function, items)` yields function(*item) of every item, as they finish, from `workers` processes.

    They are spawned: functions and items must be picklable, and a script needs its `if __name__ == "__main__"`.

    Raises:
        GristmillError: a process was killed. What a function raises is raised here, after those under way.
    """
    if workers == 1:
        yield here
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_live_and_die_with_parent
    )

    def each(function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        futures = [pool.submit(function, *item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise GristmillError(
                f"one of {workers} processes was killed (out of memory?): take fewer workers and run again"
            ) from None

    try:
        yield each
    finally:
        pool.shutdown(cancel_futures=True)


def _live_and_die_with_parent() -> None:
    """Ctrl-C ends a worker without a traceback; a parent killed with SIGKILL leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
