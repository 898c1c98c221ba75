"""Batches of a plan for one rank of any number. The state is one integer, so resuming is free and loses nothing.

Legend: B sequences of this rank, S tokens of one, N segments (documents, or parts of them) in a batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.shards import packing
from gristmill.shards.disk_window import DiskWindow
from gristmill.shards.order import scatter
from gristmill.shards.plan import Plan, Windows
from gristmill.shards.reader import Dataset, Split, shards_at_a_time

STATE_VERSION = 1
LOOK_AHEAD = 4096  # sequences whose places are worked out at once: the arithmetic is cheap, its calls are not


Segments = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch.

    tokens_BS [B, S + 1]: inputs are [:, :-1], labels [:, 1:]. sequence_B are the sequence numbers, source_B indexes
    Plan.sources; next_sequence is the first of the global batch after this one. learnt_BS is None where every label is
    learnt from. Segments are looked up when they are asked for.
    """

    tokens_BS: np.ndarray
    sequence_B: np.ndarray
    source_B: np.ndarray
    next_sequence: int
    learnt_BS: np.ndarray | None
    _find_segments: Callable[[], Segments] | None = dataclasses.field(repr=False)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.tokens_BS.shape[0], self.tokens_BS.shape[1] - 1

    @functools.cached_property
    def segments(self) -> Segments:
        """(row, column), int64, of the inputs where segments begin, in order; column 0 of each row is left out."""
        assert self._find_segments is not None
        return self._find_segments()

    @functools.cached_property
    def cu_seqlens(self) -> np.ndarray:
        """int32 [N + 1]: segment bounds in the flattened [B * S] inputs."""
        return packing.cu_seqlens(*self.segments, *self._shape)

    @functools.cached_property
    def positions_BS(self) -> np.ndarray:
        """int32 [B, S]: positions that start again at 0 with each segment."""
        return packing.positions(self.cu_seqlens, *self._shape)

    @functools.cached_property
    def loss_mask_BS(self) -> np.ndarray:
        """bool [B, S]: True where the label is learnt from: not padding, not what a source's loss mask leaves out."""
        return np.ones(self._shape, bool) if self.learnt_BS is None else self.learnt_BS

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has not the shards at hand: with the segments found."""
        _ = self.segments
        return self.__dict__ | {"_find_segments": None}


class Batches:
    """Iterate over the global batches that start at `next_sequence`; each holds `batch_tokens` tokens over all ranks.

    The global batch is the same set of sequences in the same order for every `world`; rank r gets the rows from
    r * B // world on. `prefetch` batches are read ahead by a thread that holds no state. What is left over at the
    plan's end, less than a batch, is dropped. Where the plan's sequences change in length a batch may be shorter.

    It is also a map-style dataset of batches, counted from `next_sequence`: for torch's DataLoader, batch_size=None
    (where a run stands is then state_dict(after=batch)).
    """

    def __init__(
        self,
        plan: Plan,
        dataset: Dataset,
        batch_tokens: int,
        next_sequence: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        dtype: np.dtype[Any] | type[np.generic] | None = None,
        disk_bytes: int = 0,
    ) -> None:
        """`dtype` of the tokens: None keeps the shards' u16 or u32, which travels to the device in half the time.

        `disk_bytes`: of a partial dataset, keep about so much of the train shards on the disk, fetched ahead of the
        batches that are iterated over. 0: what is missing is fetched when it is read, and stays.

        Raises:
            UsageError: ranks or sizes that make no sense, fewer sequences in a batch than ranks.
            DataError: the plan was made on other content than `dataset`'s.
        """
        if not 0 <= rank < world or prefetch < 0:
            raise UsageError(f"rank {rank} of {world} with prefetch {prefetch} makes no sense")
        longest = max(phase.length for phase in plan.phases)
        if batch_tokens // longest < world:
            raise UsageError(
                f"a global batch of {batch_tokens:,} tokens holds {batch_tokens // longest} sequences of {longest}, "
                f"too few for {world} ranks; at least one each"
            )
        if not 0 <= next_sequence <= plan.sequence_count:
            raise UsageError(f"next_sequence {next_sequence:,} is outside the plan's {plan.sequence_count:,} sequences")
        for source in plan.sources:
            held = dataset.sources.get(source.name)
            if held is None or held.manifest.content_id != source.content_id:
                raise DataError(
                    f"{dataset.root}: source {source.name} is not the one that the plan was made on; plan again"
                )
        self.plan, self.dataset, self.batch_tokens = plan, dataset, batch_tokens
        self.next_sequence, self.rank, self.world, self.prefetch = next_sequence, rank, world, prefetch
        self.dtype = np.dtype(dtype or dataset.dtype)
        self._ahead: dict[int, tuple[np.ndarray, Windows]] = {}
        self._lock = threading.Lock()
        keep = functools.lru_cache(maxsize=shards_at_a_time(len(plan.sources)))
        self._shard, self._best_fit = keep(self._find_shard), keep(self._pack)
        self.disk_bytes = disk_bytes

    def __reduce__(self) -> tuple[type[Batches], tuple[Any, ...]]:
        """In another process it is made again: what was worked out ahead stays here."""
        where = (self.next_sequence, self.rank, self.world, self.prefetch, self.dtype)
        return Batches, (self.plan, self.dataset, self.batch_tokens, *where)

    def __len__(self) -> int:
        """Batches that are left."""
        count, first = 0, self.next_sequence
        while first < self.plan.sequence_count:
            size, until = self._size(first)
            whole, rest = divmod(until - first, size)
            is_end = until == self.plan.sequence_count
            count += whole + (1 if rest and not is_end else 0)
            first = until
        return count

    def __getitem__(self, index: int) -> Batch:
        """The batch number `index` from next_sequence on: for samplers and worker processes of torch's DataLoader."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first = self.next_sequence
        while True:
            size, until = self._size(first)
            whole, rest = divmod(until - first, size)
            if index < whole or (index == whole and rest):
                return self.batch(first + index * size)
            index, first = index - whole - (1 if rest else 0), until

    def __iter__(self) -> Generator[Batch, None, None]:
        if not (self.disk_bytes and self.dataset.files.partial):
            yield from self._batches()
            return
        step = self.batch_tokens // min(phase.length for phase in self.plan.phases)
        window = DiskWindow(
            self.plan, self.dataset, self.disk_bytes, step * (self.prefetch + 1), self._shard.cache_clear
        )
        with contextlib.closing(window), contextlib.closing(self._batches()) as batches:
            window.begin(self.next_sequence)
            for batch in batches:
                yield batch  # whoever has it may still look up its segments
                window.move(self.next_sequence)

    def _batches(self) -> Generator[Batch, None, None]:
        if self.prefetch < 1:
            while (first := self._next(self.next_sequence)) is not None:
                yield self._handed_out(self.batch(first))
            return
        with concurrent.futures.ThreadPoolExecutor(1, "gristmill-batches") as reader:
            ahead: collections.deque[tuple[int, concurrent.futures.Future[Batch]]] = collections.deque()
            try:
                while True:
                    while ahead and ahead[0][0] != self.next_sequence:  # load_state_dict moved on while we iterate
                        ahead.popleft()[1].cancel()
                    while len(ahead) < self.prefetch:
                        after = ahead[-1][0] + self._count(ahead[-1][0]) if ahead else self.next_sequence
                        if (first := self._next(after)) is None:
                            break
                        ahead.append((first, reader.submit(self.batch, first)))
                    if not ahead:
                        return
                    yield self._handed_out(ahead.popleft()[1].result())
            finally:
                reader.shutdown(cancel_futures=True)

    def _handed_out(self, batch: Batch) -> Batch:
        self.next_sequence = batch.next_sequence
        return batch

    def _size(self, first: int) -> tuple[int, int]:
        """(sequences of a whole batch at `first`, where their length changes)."""
        length, until = self.plan.length_of(first)
        return self.batch_tokens // length, until

    def _count(self, first: int) -> int:
        """Sequences of the global batch that starts at `first`."""
        size, until = self._size(first)
        return min(size, until - first)

    def _next(self, first: int) -> int | None:
        """`first`, if a batch starts there; None at the plan's end."""
        if first >= self.plan.sequence_count:
            return None
        size, until = self._size(first)
        return None if until - first < size and until == self.plan.sequence_count else first

    def batch(self, first: int) -> Batch:
        """This rank's rows of the global batch that starts at sequence `first`: pure, and safe from any thread."""
        sequence_B, windows = self._places(first)
        tokens_BS = np.empty((len(sequence_B), self.plan.length_of(first)[0] + 1), self.dtype)
        if self.plan.packing == "concat":
            learnt_BS, find_segments = self._windows(tokens_BS, windows)
        else:
            learnt_BS, find_segments = self._best_fit_rows(tokens_BS, windows)
        after = first + self._count(first)
        return Batch(tokens_BS, sequence_B, windows.source_B, after, learnt_BS, find_segments)

    def _windows(self, tokens_BS: np.ndarray, windows: Windows) -> tuple[np.ndarray | None, Callable[[], Segments]]:
        """Fill rows with stretches of shards as they come."""
        width = tokens_BS.shape[1]
        shards: dict[int, _Shard] = {}
        place_B, start_B = (windows.source_B << 32 | windows.shard_B).tolist(), windows.start_B.tolist()
        masked = False
        for row, (place, start) in enumerate(zip(place_B, start_B)):
            shard = shards.get(place)
            if shard is None:
                shard = shards[place] = self._shard(place)
                masked = masked or shard.loss is not None
            tokens_BS[row] = shard.tokens[start : start + width]
        learnt_BS = np.ones((len(tokens_BS), width - 1), bool) if masked else None
        if learnt_BS is not None:
            for row, (place, start) in enumerate(zip(place_B, start_B)):
                if (loss := shards[place].loss) is not None:
                    learnt_BS[row] = loss[start + 1 : start + width]

        def find_segments() -> Segments:
            places = np.array(place_B, np.int64)
            found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
            for place, shard in shards.items():
                rows = np.flatnonzero(places == place)
                ends = shard.split.ends(shard.number)
                found.append(packing.document_starts(ends, rows, windows.start_B[rows], width - 1))
            row, column = (np.concatenate(parts) for parts in zip(*found))
            order = np.lexsort((column, row))
            return row[order], column[order]

        return learnt_BS, find_segments

    def _best_fit_rows(self, tokens_BS: np.ndarray, windows: Windows) -> tuple[np.ndarray, Callable[[], Segments]]:
        """Fill rows with documents, and what is left of each with EOS that is not learnt from."""
        length, eos = tokens_BS.shape[1] - 1, self.dataset.tokenizer.eos_id
        learnt_BS = np.ones((len(tokens_BS), length), bool)
        begins: list[tuple[int, int]] = []
        place_B = (windows.source_B << 32 | windows.shard_B).tolist()
        for row, (place, window) in enumerate(zip(place_B, windows.window_B.tolist())):
            split, number, tokens, loss = self._shard(place)
            packed = self._best_fit(split.source, number)
            low, high = packed.bounds[window : window + 2].tolist()
            column, line, learnt = 1, tokens_BS[row], learnt_BS[row]
            for start, size, continues in zip(*(part[low:high].tolist() for part in packed[1:])):
                if column == 1:
                    line[0] = tokens[start - 1] if continues and start else eos
                else:
                    begins.append((row, column - 1))
                line[column : column + size] = tokens[start : start + size]
                if loss is not None:
                    learnt[column - 1 : column + size - 1] = loss[start : start + size]
                if continues and (column > 1 or not start):
                    learnt[column - 1] = False  # what comes before this token is not in the row
                column += size
            if column <= length:
                line[column:] = eos
                learnt[column - 1 :] = False
                begins.append((row, column - 1))

        def find_segments() -> Segments:
            row, column = np.array(begins, np.int64).reshape(-1, 2).T
            return row, column

        return learnt_BS, find_segments

    def _find_shard(self, place: int) -> _Shard:
        source, number = place >> 32, place & 0xFFFFFFFF
        split = self.dataset.sources[self.plan.sources[source].name].split("train")
        return _Shard(split, number, split.tokens(number), split.loss(number))

    def _places(self, first: int) -> tuple[np.ndarray, Windows]:
        """(sequence numbers, windows) of this rank's rows. Worked out for some batches ahead, and kept until used."""
        with self._lock:
            if first not in self._ahead:
                firsts, at, total = [], first, 0
                while total < LOOK_AHEAD and (begin := self._next(at)) is not None:
                    firsts.append(begin)
                    at += self._count(begin)
                    total = (at - first) // self.world
                self._ahead = {}
                mine = [self._rows_of(begin) for begin in firsts]
                windows = self.plan.sequences(np.concatenate(mine))
                ends = np.cumsum([len(rows) for rows in mine])[:-1]
                columns = [np.split(getattr(windows, field.name), ends) for field in dataclasses.fields(Windows)]
                for begin, rows, *parts in zip(firsts, mine, *columns):
                    self._ahead[begin] = rows, Windows(*parts)
            return self._ahead[first]

    def _rows_of(self, first: int) -> np.ndarray:
        count = self._count(first)
        mine = slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)
        return first + scatter(self.plan.seed, first, count)[mine]

    def _pack(self, source: str, shard: int) -> packing.Rows:
        split = self.dataset.sources[source].split("train")
        packed = packing.best_fit(split.ends(shard), self.plan.unit, split.shards[shard].continues)
        said = split.shards[shard].packed.get(str(self.plan.unit))
        if said is not None and said != len(packed.bounds) - 1:
            raise DataError(
                f"{split.folder / split.shards[shard].ends.path}: best fit makes {len(packed.bounds) - 1:,} rows of "
                f"{self.plan.unit} tokens of it, but its manifest says {said:,}; write the source again"
            )
        return packed

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """All that a resumed run needs; the same on every rank.

        Where torch's DataLoader hands out the batches, this object does not see which: name the last one, `after`.
        """
        next_sequence = self.next_sequence if after is None else after.next_sequence
        return {"v": STATE_VERSION, "plan": self.plan.identity(next_sequence), "next_sequence": next_sequence}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` left off, with any world size or batch size, and with any budget or phases after it.

        Raises:
            DataError: a state of another plan (other sources, weights, seed or sequence length so far) or version.
        """
        if state.get("v") != STATE_VERSION:
            raise DataError(f"data state of version {state.get('v')!r}; this one reads {STATE_VERSION}")
        self.plan.require_identity(state.get("next_sequence"), state.get("plan"))
        self.next_sequence = state["next_sequence"]


class _Shard(NamedTuple):
    split: Split
    number: int
    tokens: np.ndarray
    loss: np.ndarray | None
