"""Hashes of n-grams of words, as the index and the search both compute them.

A longer n-gram is hashed from the 5-grams that cover it: who keeps the hashes of the 5-grams needs neither the words
nor other hashes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.hashing import mix
from gristmill.datapipe.text.kernel import kernel, part

SIZE = 5
"""Words of the n-grams that questions and passages are found by (decon: config/default.yaml, ngram_size)."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BASE_4 = np.uint64(pow(0x9E3779B97F4A7C15, SIZE - 1, 1 << 64))


def ngrams(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Text i's n-grams of size[i] words in their order, as values[offsets[i] : offsets[i + 1]]."""
    counts = np.where(size > 0, np.maximum(0, np.diff(offsets) - size + 1), 0)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    values = np.empty(starts[-1], np.uint64)
    _ngrams(hashes, offsets, size, values, starts)
    return values, starts


def longer(
    fives: NDArray[np.uint64], offsets: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The n-grams of `size` >= 5 words of the texts whose 5-grams these are, as `ngrams` gives them."""
    counts = np.maximum(0, np.diff(offsets) - (size - SIZE))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    values = np.empty(starts[-1], np.uint64)
    _longer(fives, offsets, size, values, starts)
    return values, starts


@part
def ngram(hashes, at, size):
    """The hash of the n-gram of `size` words at `at`."""
    value = hashes[at]
    for step in range(1, size):
        value = value * _BASE + hashes[at + step]
    return mix(value)


@part
def longer_ngram(fives, at, size):
    """The hash of the n-gram of `size` words at `at`, from the hashes of the 5-grams there."""
    value, step = fives[at], 0
    while step < size - SIZE:
        step = min(step + SIZE, size - SIZE)
        value = value * _BASE + fives[at + step]
    return mix(value)


@kernel
def fill_fives(hashes, fives):
    """fives[i] = ngram(hashes, i, 5), rolled from one to the next."""
    value = np.uint64(0)
    for at in range(len(hashes)):
        if at >= SIZE:
            value -= hashes[at - SIZE] * _BASE_4
        value = value * _BASE + hashes[at]
        if at >= SIZE - 1:
            fives[at - SIZE + 1] = mix(value)


@kernel
def _ngrams(hashes, offsets, size, values, starts):
    for text in range(len(offsets) - 1):
        for at in range(starts[text + 1] - starts[text]):
            values[starts[text] + at] = ngram(hashes, offsets[text] + at, size[text])


@kernel
def _longer(fives, offsets, size, values, starts):
    for text in range(len(offsets) - 1):
        for at in range(starts[text + 1] - starts[text]):
            values[starts[text] + at] = longer_ngram(fives, offsets[text] + at, size)
