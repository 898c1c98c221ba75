"""MinHash signatures from the shared word hashes (Broder 1997), and the bands of locality-sensitive hashing.

A document is its set of word n-grams. Position p of its signature is the least value of permutation p over their 32-bit
hashes; the share of equal positions estimates Jaccard similarity. The permutations are those of datasketch 2.0
(scheme "affine32"), so that a signature is what `datasketch.MinHash(permutations, seed, hashfunc=int)` makes of the
same hashes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.text.features import Features
from gristmill.datapipe.text.hashing import BASE, mix

NEVER = np.uint32(0xFFFFFFFF)
"""Fills the signature of a document without words; such documents match nothing."""
_BASE = np.uint64(BASE)


@dataclass(frozen=True)
class MinHashConfig:
    ngram: int = 5
    permutations: int = 112
    seed: int = 1

    def __post_init__(self) -> None:
        check_range("ngram", self.ngram, 1, 100)
        check_range("permutations", self.permutations, 1, 4096)
        check_range("seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class Bands:
    """Two documents are candidates where all `rows` positions of one of `bands` bands are equal."""

    bands: int
    rows: int

    def chance(self, similarity: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        """The S-curve: how probable it is that documents of this Jaccard similarity become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands


MISSED, MISTAKEN = 0.9, 0.1
"""What a missed pair and a needless candidate weigh: candidates are looked at again, what is missed is lost."""


@functools.cache
def bands_for(threshold: float, permutations: int) -> Bands:
    """The bands whose S-curve errs least about `threshold`, by the weighted areas of its two kinds of error.

    What datasketch's MinHashLSH chooses with weights=(MISTAKEN, MISSED); of equal ones the first.
    """
    grid = (np.arange(1000) + 0.5) / 1000
    above = grid >= threshold
    best, least = Bands(1, 1), np.inf
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            chance = Bands(bands, rows).chance(grid)
            error = float(np.where(above, MISSED * (1 - chance), MISTAKEN * chance).sum())
            if error < least:
                best, least = Bands(bands, rows), error
    return best


def permutations(config: MinHashConfig) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(multipliers, addends) of value -> multiplier * value + addend modulo 2^32; an odd multiplier loses nothing."""
    generator = np.random.RandomState(config.seed)  # whose streams are frozen, and are datasketch's
    multipliers = generator.randint(0, 1 << 31, config.permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, generator.randint(0, 1 << 32, config.permutations, dtype=np.uint32)


def signatures(features: Features, config: MinHashConfig) -> NDArray[np.uint32]:
    """[documents, permutations]. A document of fewer words than an n-gram is one shingle of all its words."""
    folded = features.folded
    return _minima(folded.hashes, folded.offsets, config.ngram, *permutations(config))


def has_words(signature: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """[documents]: whether it can match anything."""
    return (signature != NEVER).any(axis=1)


def band_keys(signature: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """[documents, bands]: one 64-bit key per band; equal keys make a candidate pair, within a band and across none."""
    rows = signature[:, : bands.bands * bands.rows].reshape(len(signature), bands.bands, bands.rows)
    keys = np.broadcast_to(np.arange(1, bands.bands + 1, dtype=np.uint64) * _BASE, rows.shape[:2]).copy()
    for row in range(bands.rows):
        keys = (keys ^ rows[:, :, row]) * _BASE
        keys ^= keys >> np.uint64(32)
    return keys * _BASE  # the high bits say into which bucket it goes


@numba.njit(cache=True, inline="always")
def shingle_hash(hashes, at, size):
    """64 bits for the words hashes[at : at + size] in their order."""
    value = hashes[at]
    for step in range(1, size):
        value = value * _BASE + hashes[at + step]
    return mix(value)


@numba.njit(cache=True, inline="always")
def _fmix32(value):
    """The finaliser of MurmurHash3 for 32 bits, with which datasketch begins each permutation."""
    value = np.uint32((value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    value = np.uint32((value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> np.uint32(16)))


@numba.njit(cache=True)
def _minima(hashes, offsets, ngram, multipliers, addends):
    documents, count = len(offsets) - 1, len(multipliers)
    out = np.full((documents, count), NEVER, np.uint32)
    for document in range(documents):
        start, end = offsets[document], offsets[document + 1]
        if start == end:
            continue
        size = min(ngram, end - start)
        minima = out[document]
        for at in range(start, end - size + 1):
            shingle = _fmix32(np.uint32(shingle_hash(hashes, at, size) >> np.uint64(32)))
            for permutation in range(count):  # vectorised by the compiler: 16 at a time with AVX-512
                permuted = np.uint32(shingle * multipliers[permutation] + addends[permutation])
                minima[permutation] = min(minima[permutation], permuted)
    return out
