"""Exact Jaccard similarity of the shingle sets whose signatures dedup.minhash compares: checks candidate pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.dedup.minhash import MinHashConfig, shingle_hash
from gristmill.datapipe.text.features import Features
from gristmill.datapipe.text.kernel import compiled, kernel


def shingle_sets(features: Features, config: MinHashConfig) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(values, offsets [documents + 1]): document d has the distinct hashes values[offsets[d] : offsets[d + 1]],
    ascending, 64 bits each. One of fewer words than an n-gram is one shingle of all its words, one without words none.
    """
    return _sets(features.folded.hashes, features.folded.offsets, config.ngram)


def jaccard(
    left_values: NDArray[np.uint64],
    left_offsets: NDArray[np.int64],
    right_values: NDArray[np.uint64],
    right_offsets: NDArray[np.int64],
) -> NDArray[np.float32]:
    """[pairs]: what the sets of each row have in common, by what they have together; 0 where both are empty.

    Sets as `shingle_sets` gives them. Raises ValueError where left and right have not as many.
    """
    if len(left_offsets) != len(right_offsets):
        raise ValueError(f"{len(left_offsets) - 1} sets on the left, {len(right_offsets) - 1} on the right")
    out = np.empty(len(left_offsets) - 1, np.float32)
    _jaccard(left_values, left_offsets, right_values, right_offsets, out)
    return out


@compiled
def _sets(hashes, offsets, ngram):
    """A set is never larger than its document has words, so that one array holds shingles, then sets."""
    values, starts = np.empty(len(hashes), np.uint64), np.zeros(len(offsets), np.int64)
    count = 0
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        size, first = min(ngram, end - begin), count
        if size:
            for at in range(begin, end - size + 1):
                values[first + at - begin] = shingle_hash(hashes, at, size)
            shingles = values[first : first + end - begin - size + 1]
            shingles.sort()
            for shingle in shingles:
                if count == first or values[count - 1] != shingle:
                    values[count] = shingle
                    count += 1
        starts[document + 1] = count
    return values[:count].copy(), starts


@kernel
def _jaccard(left, left_offsets, right, right_offsets, out):
    for pair in range(len(out)):
        one, one_end = left_offsets[pair], left_offsets[pair + 1]
        two, two_end = right_offsets[pair], right_offsets[pair + 1]
        total, shared = one_end - one + two_end - two, 0
        while one < one_end and two < two_end:
            a, b = left[one], right[two]
            shared += a == b
            one += a <= b
            two += b <= a
        out[pair] = shared / (total - shared) if total else 0.0
