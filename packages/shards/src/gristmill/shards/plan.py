"""Which window of which shard is sequence number k: a pure function of (sources, weights, seed, k), with no state.

Resume, any number of ranks, accounting and nested budgets all follow. Legend: B sequences, S tokens of a window.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gristmill.base import files
from gristmill.base.errors import UsageError
from gristmill.shards.order import Schedule, group_bounds, hash64, permutation

ALGORITHMS = ("tijdeman/1", "mrfeistel6/1", "groups-1x6-2-4-8-16/1")


@dataclasses.dataclass(frozen=True)
class PlannedSource:
    """A source as the plan uses it: resolved weight, and windows of S tokens (plus one label) in each train shard."""

    name: str
    content_id: str
    weight: int
    shard_windows: tuple[int, ...]

    @functools.cached_property
    def windows(self) -> int:
        return sum(self.shard_windows)

    @functools.cached_property
    def window_starts(self) -> np.ndarray:
        """int64 [shards + 1]: the number of windows before each shard."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.shard_windows, np.int64))])

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """int64 [groups, 2]: first window and number of windows of each shuffle group."""
        bounds = np.array(group_bounds(len(self.shard_windows)), np.int64).reshape(-1, 2)
        first, last = self.window_starts[bounds[:, 0]], self.window_starts[bounds[:, 1]]
        return np.stack([first, last - first], axis=1)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where sequences lie: `source_B` indexes Plan.sources, `start_B` is the first token's offset in its shard."""

    source_B: np.ndarray
    shard_B: np.ndarray
    start_B: np.ndarray
    epoch_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mixture resolved on a dataset. `sequence_count` sequences of `sequence_length` tokens are the budget."""

    mixture: str
    seed: int
    sequence_length: int
    sequence_count: int
    sources: tuple[PlannedSource, ...]

    @functools.cached_property
    def sha(self) -> str:
        """What fixes the order, hashed. The budget is not part of it: a smaller budget is a prefix of a larger one."""
        order = [{"name": s.name, "content_id": s.content_id, "weight": s.weight} for s in self.sources]
        return files.fingerprint(
            {"algorithms": ALGORITHMS, "seed": self.seed, "sequence_length": self.sequence_length, "sources": order}
        )

    @property
    def tokens(self) -> int:
        return self.sequence_count * self.sequence_length

    @functools.cached_property
    def schedule(self) -> Schedule:
        return Schedule(tuple(source.weight for source in self.sources))

    def sequence(self, k: int) -> tuple[str, int, int]:
        """(source name, shard, start): sequence k is tokens [start, start + sequence_length], label included."""
        windows = self.sequences(np.array([k]))
        return self.sources[int(windows.source_B[0])].name, int(windows.shard_B[0]), int(windows.start_B[0])

    def sequences(self, ks: np.ndarray) -> Windows:
        """The windows of many sequence numbers at once.

        Raises:
            UsageError: a number outside [0, sequence_count).
        """
        ks = np.asarray(ks, np.int64)
        if ks.size and (ks.min() < 0 or ks.max() >= self.sequence_count):
            raise UsageError(f"sequences {ks.min()}..{ks.max()} are not all among the plan's {self.sequence_count:,}")
        source_B, ordinal_B = self.schedule(ks)
        shard_B, start_B, epoch_B = (np.empty(len(ks), np.int64) for _ in range(3))
        for index in np.unique(source_B):
            rows = np.flatnonzero(source_B == index)
            source = self.sources[index]
            window, epoch_B[rows] = self._windows(source, ordinal_B[rows])
            shard = np.searchsorted(source.window_starts, window, "right") - 1
            shard_B[rows] = shard
            start_B[rows] = (window - source.window_starts[shard]) * self.sequence_length
        return Windows(source_B, shard_B, start_B, epoch_B)

    def _windows(self, source: PlannedSource, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(window, epoch) of each ordinal: groups in order (permuted after epoch 0), windows permuted in each."""
        epochs, index = np.divmod(ordinals, source.windows)
        window = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():
            in_epoch = np.flatnonzero(epochs == epoch)
            visit = np.arange(len(source.groups))
            if epoch:
                visit = permutation(len(visit), hash64(self.seed, source.name, epoch, "groups"))(visit)
            first, size = source.groups[visit].T
            starts = np.concatenate([[0], np.cumsum(size)])
            place = np.searchsorted(starts, index[in_epoch], "right") - 1
            for at in np.unique(place).tolist():
                rows = in_epoch[place == at]
                shuffle = permutation(int(size[at]), hash64(self.seed, source.name, epoch, int(visit[at])))
                window[rows] = first[at] + shuffle(index[rows] - starts[at])
        return window, epochs

    def counts(self, k: int | None = None) -> dict[str, int]:
        """Sequences of each source among the first k (all, by default), in closed form."""
        counts = self.schedule.counts(self.sequence_count if k is None else k)
        return {source.name: count for source, count in zip(self.sources, counts)}

    def epochs(self, k: int | None = None) -> dict[str, float]:
        """How often each source has been read after k sequences."""
        counts = self.counts(k)
        return {source.name: counts[source.name] / source.windows for source in self.sources}

    def summary(self) -> list[dict[str, str | int | float]]:
        """One row per source: weight, share of the budget, sequences, tokens, epochs."""
        counts, epochs = self.counts(), self.epochs()
        total = sum(source.weight for source in self.sources)
        return [
            {
                "source": source.name,
                "weight": source.weight,
                "share": source.weight / total,
                "sequences": counts[source.name],
                "tokens": counts[source.name] * self.sequence_length,
                "epochs": epochs[source.name],
            }
            for source in self.sources
        ]
