"""Phases of a plan: which source has which unit, under weights that change, and the pieces that units are read in."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gristmill.shards.order import Schedule

SPREAD = 256  # units whose pieces take turns, so that a batch does not hold one long stretch of text


@dataclasses.dataclass(frozen=True)
class Phase:
    """From unit `first_unit` on, sequences of `length` tokens (a divisor of Plan.unit), blended by `weights`.

    `weights` are by source, 0 for one that the phase leaves out.
    """

    name: str
    first_unit: int
    length: int
    weights: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PhaseRun:
    """A phase in place: the number of its first sequence, pieces of a unit, units of each source used before it."""

    phase: Phase
    first_sequence: int
    pieces: int
    used: np.ndarray

    def unit_of(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(unit of the phase, piece of it): SPREAD units at a time, first all their first pieces, then the second."""
        if self.pieces == 1:
            return sequences, np.zeros_like(sequences)
        block, within = np.divmod(sequences, SPREAD * self.pieces)
        piece, unit = np.divmod(within, SPREAD)
        return block * SPREAD + unit, piece

    def blend(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, which of its units) of each unit of the phase."""
        present, schedule = _schedule(self.phase.weights)
        chosen, ordinal = schedule(units)
        source = present[chosen]
        return source, self.used[source] + ordinal

    def units_of(self, units: int) -> np.ndarray:
        """int64 [sources]: how many of the phase's first `units` units each source has."""
        return blended(self.phase.weights, units)

    def units_begun(self, sequences: int, is_stop: bool) -> np.ndarray:
        """int64 [sources]: units before the first sequences' end that were begun (or, not is_stop, are finished)."""
        if self.pieces == 1:
            return self.units_of(sequences)
        block, within = divmod(sequences, SPREAD * self.pieces)
        begun = min(within, SPREAD) if is_stop else max(within - SPREAD * (self.pieces - 1), 0)
        return self.units_of(block * SPREAD + begun)

    def pieces_of(self, sequences: int) -> np.ndarray:
        """int64 [sources]: how many of the phase's first sequences each source has."""
        if self.pieces == 1:
            return self.units_of(sequences)
        block, within = divmod(sequences, SPREAD * self.pieces)
        rounds, rest = divmod(within, SPREAD)
        start, end, part = (self.units_of(block * SPREAD + units) for units in (0, SPREAD, rest))
        return start * self.pieces + (end - start) * rounds + part - start


@functools.lru_cache(maxsize=32)
def _schedule(weights: tuple[int, ...]) -> tuple[np.ndarray, Schedule]:
    """The sources whose weight is not 0, and their blend."""
    present = np.flatnonzero(weights)
    return present, Schedule(tuple(weights[index] for index in present))


def blended(weights: tuple[int, ...], units: int) -> np.ndarray:
    """int64 [sources]: how many of the first `units` units each source has under `weights`, in closed form."""
    present, schedule = _schedule(weights)
    counts = np.zeros(len(weights), np.int64)
    counts[present] = schedule.counts(units)
    return counts
