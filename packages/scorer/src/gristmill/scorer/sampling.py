"""Which documents the oracle grades: a stratified sample with its weights, and a split that an id alone decides.

Strata are source x length, so that rare sources get enough labels; inverse-probability weights undo that in any rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.base.errors import UsageError

SPLITS = ("fit", "select", "certify", "audit")
# fit trains the heads, select chooses among them, certify carries the bound of tau_drop, audit is never chosen on.
FRACTIONS = (0.5, 0.15, 0.25, 0.1)


@dataclass(frozen=True)
class Sample:
    """Row numbers in ascending order, and for each the number of documents that it stands for."""

    indices: np.ndarray  # int64 [n]
    weights: np.ndarray  # float64 [n]; they sum to the number of documents sampled from


def stratified_sample(
    sources: Sequence[str], lengths: Sequence[int], n: int, seed: int, length_buckets: int = 3
) -> Sample:
    """Draw up to `n` rows, spread evenly over sources and, within each source, over its length quantiles.

    lengths: any measure of size (tokens, words, characters). A stratum smaller than its share gives all it has and the
    rest goes to the others. The result depends on the arguments only.

    Raises:
        UsageError: n < 1, or sources and lengths differ in length.
    """
    if n < 1 or len(sources) != len(lengths):
        raise UsageError(f"cannot sample {n} rows from {len(sources)} sources and {len(lengths)} lengths")
    names = np.asarray(sources, dtype=object)
    sizes = np.asarray(lengths, dtype=np.float64)
    generator = np.random.default_rng([seed, 0x5A])
    strata: list[np.ndarray] = []
    for source in sorted(set(sources)):
        rows = np.flatnonzero(names == source)
        rows = rows[np.argsort(sizes[rows], kind="stable")]
        strata.extend(bucket for bucket in np.array_split(rows, min(length_buckets, len(rows))) if len(bucket))
    indices: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for rows, take in zip(strata, share(n, [len(rows) for rows in strata])):
        if take:
            indices.append(generator.choice(rows, size=take, replace=False))
            weights.append(np.full(take, len(rows) / take))
    if not indices:
        return Sample(np.zeros(0, dtype=np.int64), np.zeros(0))
    drawn, weight = np.concatenate(indices).astype(np.int64), np.concatenate(weights)
    order = np.argsort(drawn)
    return Sample(drawn[order], weight[order])


def share(n: int, capacities: Sequence[int]) -> list[int]:
    """Split n as evenly as the capacities allow (water filling); earlier strata take the remainders."""
    taken = [0] * len(capacities)
    left = min(n, sum(capacities))
    while left:
        open_strata = [i for i, capacity in enumerate(capacities) if taken[i] < capacity]
        each, extra = divmod(left, len(open_strata))
        for position, i in enumerate(open_strata):
            give = min(each + (position < extra), capacities[i] - taken[i])
            taken[i] += give
            left -= give
    return taken


def split_of(identifier: str, salt: str = "", fractions: Sequence[float] = FRACTIONS) -> str:
    """fit, select, certify or audit, by a hash of the id: adding documents moves no document to another split."""
    digest = hashlib.sha256(f"{salt}\0{identifier}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * sum(fractions)
    for name, edge in zip(SPLITS, np.cumsum(fractions)):
        if position < edge:
            return name
    return SPLITS[-1]
