"""A dataset larger than the disk: what a run reads next is fetched ahead, what it has read makes room.

The plan says which shards the next sequences touch, so there is nothing to guess and no state to keep.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping

from gristmill.base.errors import UsageError
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset


class DiskWindow:
    """Keeps train shards of a partial dataset within `limit` bytes. Processes may share the folder: one fetches."""

    def __init__(self, plan: Plan, dataset: Dataset, limit: int, step: int, on_evict: Callable[[], None]) -> None:
        """`step` sequences are read at a time. `on_evict` lets go of arrays: a file's room is free only then."""
        self.plan, self.dataset, self.limit, self.step, self.on_evict = plan, dataset, limit, step, on_evict
        self._fetcher = concurrent.futures.ThreadPoolExecutor(1, "gristmill-fetch")
        self._fetch: concurrent.futures.Future[None] | None = None
        self._next_look = 0

    def begin(self, k: int) -> None:
        """Wait until what is read from sequence k on is here.

        Raises:
            UsageError: one step touches more than the limit.
            GristmillError: a file cannot be fetched.
        """
        self._start(k)
        self._wait()

    def move(self, k: int) -> None:
        """Sequence k is next: halfway through what is here, more is fetched; what has arrived by then is enough.

        Raises:
            as `begin`, also for what was fetched since.
        """
        if k < self._next_look or k >= self.plan.sequence_count:
            return
        self._wait()
        self._start(k)

    def close(self) -> None:
        self._fetcher.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        if self._fetch is not None:
            self._fetch.result()

    def _start(self, k: int) -> None:
        span, touched = self.step, self.plan.touched(k, min(k + self.step, self.plan.sequence_count))
        if (needed := self.dataset.bytes_of(touched)) > self.limit:
            raise UsageError(
                f"one step reads of shards of {needed:,} bytes; the disk's limit is {self.limit:,}: raise it"
            )
        while k + span < self.plan.sequence_count:
            further = self.plan.touched(k, min(k + 2 * span, self.plan.sequence_count))
            if self.dataset.bytes_of(further) > self.limit:
                break
            span, touched = 2 * span, further
        self._next_look = k + max(span // 2, 1)
        self._fetch = self._fetcher.submit(self._bring, touched)

    def _bring(self, touched: Mapping[str, list[int]]) -> None:
        if self.dataset.evict(touched, self.limit):
            self.on_evict()
        self.dataset.require(touched)
