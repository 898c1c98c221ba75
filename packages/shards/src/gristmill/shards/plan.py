"""Which window of which shard is sequence number k: a pure function of (sources, phases, seed, k), with no state.

Resume, any number of ranks, accounting and nested budgets all follow. The order is one of *units*: stretches of as many
tokens as the longest sequence of the plan. A phase with shorter sequences reads each unit in pieces, so that a later
phase with longer ones finds the rest of the text whole. Legend: B sequences, S tokens of one.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards.order import group_bounds, hash64, permutation
from gristmill.shards.phase import Phase, PhaseRun

ALGORITHMS = ("tijdeman/1", "mrfeistel6/1", "groups-1x6-2-4-8-16/1", "spread-256/1", "bfd/1")

Packing = Literal["concat", "bestfit"]


@dataclasses.dataclass(frozen=True)
class PlannedSource:
    """A source as the plan uses it: how many windows of one unit (or best-fit rows) each train shard has."""

    name: str
    content_id: str
    shard_windows: tuple[int, ...]

    @functools.cached_property
    def windows(self) -> int:
        return sum(self.shard_windows)

    @functools.cached_property
    def window_starts(self) -> np.ndarray:
        """int64 [shards + 1]: the number of windows before each shard."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.shard_windows, np.int64))])

    @functools.cached_property
    def group_shards(self) -> np.ndarray:
        """int64 [groups, 2]: first and last shard (excluded) of each shuffle group."""
        return np.array(group_bounds(len(self.shard_windows)), np.int64).reshape(-1, 2)

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """int64 [groups, 2]: first window and number of windows of each shuffle group."""
        first, last = self.window_starts[self.group_shards].T
        return np.stack([first, last - first], axis=1)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where sequences lie. `source_B` indexes Plan.sources; `window_B` counts the shard's units (or best-fit rows);
    `start_B` is the first token's offset in its shard (for best fit: in its row)."""

    source_B: np.ndarray
    shard_B: np.ndarray
    window_B: np.ndarray
    start_B: np.ndarray
    epoch_B: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mixture resolved on a dataset. `sequence_count` sequences are the budget."""

    mixture: str
    seed: int
    unit: int
    sequence_count: int
    sources: tuple[PlannedSource, ...]
    phases: tuple[Phase, ...]
    packing: Packing = "concat"

    @classmethod
    def of_tokens(
        cls,
        tokens: int,
        mixture: str,
        seed: int,
        unit: int,
        sources: tuple[PlannedSource, ...],
        phases: tuple[Phase, ...],
        packing: Packing = "concat",
    ) -> Plan:
        """The plan of as many whole sequences as `tokens` hold; the last phase starts before."""
        endless = cls(mixture, seed, unit, 0, sources, phases, packing)
        last = endless._runs[-1]
        count = last.first_sequence + (tokens - last.phase.first_unit * unit) // last.phase.length
        return dataclasses.replace(endless, sequence_count=count)

    @functools.cached_property
    def _runs(self) -> tuple[PhaseRun, ...]:
        runs: list[PhaseRun] = []
        used = np.zeros(len(self.sources), np.int64)
        for phase in self.phases:
            first = 0
            if runs:
                before = runs[-1]
                units = phase.first_unit - before.phase.first_unit
                used = used + before.units_of(units)
                first = before.first_sequence + units * before.pieces
            runs.append(PhaseRun(phase, first, self.unit // phase.length, used))
        return tuple(runs)

    @functools.cached_property
    def _first_sequences(self) -> np.ndarray:
        return np.array([run.first_sequence for run in self._runs], np.int64)

    def _run_of(self, k: int) -> PhaseRun:
        return self._runs[int(np.searchsorted(self._first_sequences, k, "right")) - 1]

    def identity(self, k: int) -> str:
        """sha256 of all that decides sequences 0 to k - 1 (and with k = 0: the first phase).

        The budget and phases to come are not part of it, so a longer budget or a phase added later goes on exactly.
        """
        phases = [run.phase for run in self._runs if run.first_sequence < max(k, 1)]
        used = [any(phase.weights[index] for phase in phases) for index in range(len(self.sources))]
        named = [
            {"first_unit": phase.first_unit, "length": phase.length, "weights": self._named(phase)} for phase in phases
        ]
        sources = [
            {"name": s.name, "content_id": s.content_id, "windows": s.windows}
            for s, is_used in zip(self.sources, used)
            if is_used
        ]
        order = {"algorithms": ALGORITHMS, "seed": self.seed, "unit": self.unit, "packing": self.packing}
        return files.fingerprint({**order, "phases": named, "sources": sources})

    def _named(self, phase: Phase) -> dict[str, int]:
        return {source.name: weight for source, weight in zip(self.sources, phase.weights) if weight}

    def require_identity(self, k: Any, identity: Any) -> None:
        """
        Raises:
            DataError: k is no number of sequences of this plan, or identity(k) is another.
        """
        if not isinstance(k, int) or not 0 <= k <= self.sequence_count:
            raise DataError(f"data state: next_sequence {k!r} is not among the plan's {self.sequence_count:,}")
        if identity != self.identity(k):
            raise DataError(
                f"the data state is of plan {str(identity)[:12]}, this run has plan {self.identity(k)[:12]}: another "
                "dataset, mixture, seed or sequence length before where it stood. Resume with the same ones, or start "
                "anew"
            )

    @property
    def sha(self) -> str:
        """identity() of the whole plan."""
        return self.identity(self.sequence_count)

    @property
    def tokens(self) -> int:
        return self.tokens_before(self.sequence_count)

    def tokens_before(self, k: int) -> int:
        """Tokens of the first k sequences, in closed form."""
        run = self._run_of(max(k - 1, 0))
        return run.phase.first_unit * self.unit + (k - run.first_sequence) * run.phase.length

    def length_of(self, k: int) -> tuple[int, int]:
        """(S of sequence k, first sequence after k whose length differs; the plan's end, if none)."""
        firsts, lengths = self._lengths
        place = bisect.bisect_right(firsts, k)
        return lengths[place - 1], min(firsts[place], self.sequence_count) if place < len(
            firsts
        ) else self.sequence_count

    @functools.cached_property
    def _lengths(self) -> tuple[list[int], list[int]]:
        """First sequences and lengths of the stretches in which the length stays the same."""
        firsts, lengths = [0], [self.phases[0].length]
        for run in self._runs:
            if run.phase.length != lengths[-1]:
                firsts.append(run.first_sequence)
                lengths.append(run.phase.length)
        return firsts, lengths

    def phase_starts(self) -> list[tuple[str, int, int]]:
        """(name, first sequence, tokens before it) of each phase that the budget reaches."""
        return [
            (run.phase.name, run.first_sequence, run.phase.first_unit * self.unit)
            for run in self._runs
            if run.first_sequence < self.sequence_count
        ]

    def sequence(self, k: int) -> tuple[str, int, int]:
        """(source name, shard, start): sequence k is tokens [start, start + S], label included (concat packing)."""
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
        source_B, ordinal_B, offset_B = self._ordinals(ks)
        shard_B, window_B, epoch_B = (np.empty(len(ks), np.int64) for _ in range(3))
        for index in np.unique(source_B):
            rows = np.flatnonzero(source_B == index)
            source = self.sources[index]
            window, epoch_B[rows] = self._windows(source, ordinal_B[rows])
            shard = np.searchsorted(source.window_starts, window, "right") - 1
            shard_B[rows] = shard
            window_B[rows] = window - source.window_starts[shard]
        start_B = offset_B if self.packing == "bestfit" else window_B * self.unit + offset_B
        return Windows(source_B, shard_B, window_B, start_B, epoch_B)

    def _ordinals(self, ks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, which of its units, offset in the unit) of each sequence number."""
        source_B, ordinal_B, offset_B = (np.empty(len(ks), np.int64) for _ in range(3))
        phase_B = np.searchsorted(self._first_sequences, ks, "right") - 1
        for number in np.unique(phase_B).tolist():
            rows = np.flatnonzero(phase_B == number)
            run = self._runs[number]
            unit, piece = run.unit_of(ks[rows] - run.first_sequence)
            source_B[rows], ordinal_B[rows] = run.blend(unit)
            offset_B[rows] = piece * run.phase.length
        return source_B, ordinal_B, offset_B

    def _windows(self, source: PlannedSource, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(window, epoch) of each ordinal: groups in order (permuted after epoch 0), windows permuted in each."""
        epochs, index = np.divmod(ordinals, source.windows)
        window = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():
            in_epoch = np.flatnonzero(epochs == epoch)
            visit, first, size, starts = self._visits(source, epoch)
            place = np.searchsorted(starts, index[in_epoch], "right") - 1
            for at in np.unique(place).tolist():
                rows = in_epoch[place == at]
                shuffle = permutation(int(size[at]), hash64(self.seed, source.name, epoch, int(visit[at])))
                window[rows] = first[at] + shuffle(index[rows] - starts[at])
        return window, epochs

    def _visits(self, source: PlannedSource, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each group in this epoch's order: its number, first window, size, and the windows before it."""
        visit = np.arange(len(source.groups))
        if epoch:
            visit = permutation(len(visit), hash64(self.seed, source.name, epoch, "groups"))(visit)
        first, size = source.groups[visit].T
        return visit, first, size, np.concatenate([[0], np.cumsum(size)])

    def units(self, k: int | None = None) -> dict[str, int]:
        """Units of each source that the first k sequences (all, by default) have begun, in closed form."""
        return {source.name: last for source, (_first, last) in zip(self.sources, self._spans(0, k))}

    def token_counts(self, k: int | None = None) -> dict[str, int]:
        """Tokens of each source among the first k sequences (all, by default), in closed form."""
        k = self.sequence_count if k is None else k
        run = self._run_of(max(k - 1, 0))
        tokens = run.used * self.unit + run.pieces_of(k - run.first_sequence) * run.phase.length
        return {source.name: int(count) for source, count in zip(self.sources, tokens)}

    def epochs(self, k: int | None = None) -> dict[str, float]:
        """How often each source has been read after k sequences."""
        counts = self.token_counts(k)
        return {source.name: counts[source.name] / (source.windows * self.unit) for source in self.sources}

    def touched(self, first: int = 0, last: int | None = None) -> dict[str, list[int]]:
        """The train shards that sequences [first, last) read, by source: whole shuffle groups, in closed form."""
        result: dict[str, list[int]] = {}
        for source, (start, stop) in zip(self.sources, self._spans(first, last)):
            shards: set[int] = set()
            for epoch in range(start // source.windows, -(-stop // source.windows) if stop > start else 0):
                visit, _first, size, starts = self._visits(source, epoch)
                low, high = start - epoch * source.windows, stop - epoch * source.windows
                for group in visit[(starts[:-1] < high) & (starts[1:] > low) & (size > 0)].tolist():
                    shards.update(range(*source.group_shards[group].tolist()))
                if len(shards) == len(source.shard_windows):
                    break
            result[source.name] = sorted(shard for shard in shards if source.shard_windows[shard])
        return result

    def _spans(self, first: int, last: int | None) -> list[tuple[int, int]]:
        """Of each source, the units [start, stop) that sequences [first, last) read, at least in part."""
        last = self.sequence_count if last is None else last

        def begun(k: int, is_stop: bool) -> np.ndarray:
            run = self._run_of(max(k - 1, 0) if is_stop else k)
            return run.used + run.units_begun(k - run.first_sequence, is_stop)

        if first >= last:
            return [(0, 0)] * len(self.sources)
        return list(zip(begun(first, False).tolist(), begun(last, True).tolist()))

    def summary(self) -> list[dict[str, str | int | float]]:
        """One row per source: weight in the first phase that has it, share of the budget, tokens, epochs."""
        counts, epochs, total = self.token_counts(), self.epochs(), self.tokens
        return [
            {
                "source": source.name,
                "weight": next((phase.weights[index] for phase in self.phases if phase.weights[index]), 0),
                "share": counts[source.name] / total,
                "tokens": counts[source.name],
                "epochs": epochs[source.name],
            }
            for index, source in enumerate(self.sources)
        ]

    def record(self) -> dict[str, Any]:
        """The plan as JSON: what a run keeps of it."""
        return {
            "mixture": self.mixture,
            "sha256": self.sha,
            "algorithms": list(ALGORITHMS),
            "seed": self.seed,
            "unit": self.unit,
            "packing": self.packing,
            "sequences": self.sequence_count,
            "tokens": self.tokens,
            "phases": [
                {
                    "name": name,
                    "first_sequence": first,
                    "tokens_before": tokens,
                    "sequence_length": phase.length,
                    "weights": self._named(phase),
                }
                for phase, (name, first, tokens) in zip(self.phases, self.phase_starts())
            ],
            "sources": [
                row | {"content_id": source.content_id, "windows": source.windows}
                for row, source in zip(self.summary(), self.sources)
            ],
        }
