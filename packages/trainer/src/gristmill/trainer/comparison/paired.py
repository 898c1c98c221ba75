"""How sure a difference between paired models is: the luck of the documents, and the luck of the seeds.

Both models of a pair are scored on the same documents, so what makes a document hard cancels out; so does what both
models of a pair have from their seed. S seeds, D documents.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 4_000


def interval(bits_SD: np.ndarray, size_D: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over seeds of sum(bits) / sum(size).

    A bootstrap in two levels, drawn RESAMPLES times. Documents are drawn with replacement, the same ones for all seeds:
    documents and seeds are crossed (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111, says why neither level may
    be left out). Seeds are too few to be drawn so: three have ten different means. Instead the mean moves by their
    standard error times a Student's t of S - 1 degrees of freedom. What differs by seed and by document enters both,
    which makes the interval wider, not narrower. With one seed it is of the documents alone.
    """
    generator = np.random.default_rng(seed)
    bits_D = bits_SD.mean(axis=0)
    block = max(1, 4_000_000 // len(bits_D))
    drawn = []
    for start in range(0, RESAMPLES, block):
        pick = generator.integers(len(bits_D), size=(min(block, RESAMPLES - start), len(bits_D)))
        drawn.append(bits_D[pick].sum(axis=1) / size_D[pick].sum(axis=1))
    ratios = np.concatenate(drawn)
    if (seeds := len(bits_SD)) > 1:
        error = by_seed(bits_SD, size_D).std(ddof=1) / seeds**0.5
        ratios += error * generator.standard_t(seeds - 1, len(ratios))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def by_seed(bits_SD: np.ndarray, size_D: np.ndarray) -> np.ndarray:
    """sum(bits) / sum(size) of each seed."""
    return bits_SD.sum(axis=1) / size_D.sum()
