"""Batches of a plan for one rank of any number. The state is one integer, so resuming is free and loses nothing.

Legend: B windows of this rank, S tokens of a window, N documents in a batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.shards import packing
from gristmill.shards.order import scatter
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset

STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch.

    tokens_BS [B, S + 1] in the shards' dtype: inputs are [:, :-1], labels [:, 1:]. sequence_B are the sequence numbers,
    source_B indexes Plan.sources. A document starts at (start_row, start_column) for each pair, columns 1..S.
    """

    tokens_BS: np.ndarray
    sequence_B: np.ndarray
    source_B: np.ndarray
    start_row: np.ndarray
    start_column: np.ndarray

    @property
    def _shape(self) -> tuple[int, int]:
        return self.tokens_BS.shape[0], self.tokens_BS.shape[1] - 1

    @functools.cached_property
    def cu_seqlens(self) -> np.ndarray:
        """int32 [N + 1]: document bounds in the flattened [B * S] inputs."""
        return packing.cu_seqlens(self.start_row, self.start_column, *self._shape)

    @functools.cached_property
    def positions_BS(self) -> np.ndarray:
        """int32 [B, S]: positions that start again at 0 with each document."""
        return packing.positions(self.cu_seqlens, *self._shape)

    @functools.cached_property
    def loss_mask_BS(self) -> np.ndarray:
        """bool [B, S]: False where the label is the first token of the next document."""
        return packing.loss_mask(self.start_row, self.start_column, *self._shape)


class Batches:
    """Iterate over the global batches of a plan from `next_sequence` on; each yields this rank's share of the rows.

    The global batch of `batch_sequences` sequences is the same for any `world`; rank r has its rows [rB/R, (r+1)B/R).
    A rest smaller than a batch at the end of the plan is left out. `prefetch` batches are read ahead by a thread; they
    are no part of the state, which counts only what was handed out.
    """

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        batch_sequences: int,
        next_sequence: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
    ) -> None:
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world} ranks: it must be 0..{world - 1}")
        if batch_sequences < world:
            raise UsageError(
                f"a global batch of {batch_sequences} sequences cannot feed {world} ranks; at least one each"
            )
        if not 0 <= next_sequence <= plan.sequence_count:
            raise UsageError(f"next_sequence {next_sequence:,} is outside the plan's {plan.sequence_count:,} sequences")
        for source in plan.sources:
            if (
                source.name not in dataset.sources
                or dataset.sources[source.name].manifest.content_id != source.content_id
            ):
                raise DataError(
                    f"{dataset.root}: source {source.name} is not the one that the plan was made on; plan again"
                )
        self.plan, self.dataset, self.batch_sequences = plan, dataset, batch_sequences
        self.next_sequence, self.rank, self.world, self.prefetch = next_sequence, rank, world, prefetch

    def __len__(self) -> int:
        """Batches that are left."""
        return (self.plan.sequence_count - self.next_sequence) // self.batch_sequences

    def __iter__(self) -> Iterator[Batch]:
        if self.prefetch < 1:
            while len(self):
                yield self._handed_out(self.batch(self.next_sequence))
            return
        with concurrent.futures.ThreadPoolExecutor(1, "gristmill-batches") as reader:
            ahead: collections.deque[tuple[int, concurrent.futures.Future[Batch]]] = collections.deque()
            try:
                while len(self):
                    while ahead and ahead[0][0] != self.next_sequence:  # load_state moved on while we iterate
                        ahead.popleft()[1].cancel()
                    while len(ahead) < min(self.prefetch, len(self)):
                        first = ahead[-1][0] + self.batch_sequences if ahead else self.next_sequence
                        ahead.append((first, reader.submit(self.batch, first)))
                    yield self._handed_out(ahead.popleft()[1].result())
            finally:
                reader.shutdown(cancel_futures=True)

    def _handed_out(self, batch: Batch) -> Batch:
        self.next_sequence += self.batch_sequences
        return batch

    def batch(self, first: int) -> Batch:
        """This rank's rows of the global batch that starts at sequence `first`: pure, and safe from any thread."""
        total = self.batch_sequences
        mine = slice(self.rank * total // self.world, (self.rank + 1) * total // self.world)
        sequence_B = first + scatter(self.plan.seed, first, total)[mine]
        windows = self.plan.sequences(sequence_B)
        length = self.plan.sequence_length
        tokens_BS = np.empty((len(sequence_B), length + 1), self.dataset.dtype)
        rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        # One gather per shard that the batch touches.
        place_B = windows.source_B.astype(np.int64) << 32 | windows.shard_B
        for place in np.unique(place_B):
            at = np.flatnonzero(place_B == place)
            split = self.dataset.sources[self.plan.sources[int(place) >> 32].name].split("train")
            shard, start = int(place) & 0xFFFFFFFF, windows.start_B[at]
            tokens_BS[at] = np.lib.stride_tricks.sliding_window_view(split.tokens(shard), length + 1)[start]
            row, column = packing.document_starts(split.ends(shard), start, length)
            rows.append(at[row])
            columns.append(column)
        row, column = np.concatenate(rows), np.concatenate(columns)
        by_place = np.lexsort((column, row))
        return Batch(tokens_BS, sequence_B, windows.source_B, row[by_place], column[by_place])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; the same on every rank."""
        return {"v": STATE_VERSION, "plan": self.plan.sha, "next_sequence": self.next_sequence}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` left off, with any world size or batch size.

        Raises:
            DataError: a state of another plan (other sources, weights, seed or sequence length) or another version.
        """
        if state.get("v") != STATE_VERSION:
            raise DataError(f"data state of version {state.get('v')!r}; this one reads {STATE_VERSION}")
        if state.get("plan") != self.plan.sha:
            raise DataError(
                f"the data state is of plan {str(state.get('plan'))[:12]}, this run has plan {self.plan.sha[:12]}: "
                "another dataset, mixture, seed or sequence length. Resume with the same ones, or start a new run"
            )
        next_sequence = state.get("next_sequence")
        if not isinstance(next_sequence, int) or not 0 <= next_sequence <= self.plan.sequence_count:
            raise DataError(
                f"data state: next_sequence {next_sequence!r} is not among the plan's {self.plan.sequence_count:,}"
            )
        self.next_sequence = next_sequence
