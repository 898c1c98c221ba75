"""From equal keys to groups, and from pairs to clusters: each named by its first member."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.kernel import kernel

ALL_PAIRS, BEFORE = 16, 4
"""In a set of so many rows every pair is a candidate; in a larger one each row with so many before it."""


def groups(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, group) of keys [n] or [n, words]: the first entry of each group of equal ones, and each entry's group."""
    words = keys[:, None] if keys.ndim == 1 else keys
    order = np.lexsort(words.T[::-1])  # stable: of equal keys the first entry comes first
    ordered = words[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(fresh) - 1
    return order[fresh], group


def candidate_pairs(key: NDArray[np.uint64], row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, second), first < second, of rows that have a key in common, ascending; at most 15 for each entry.

    All pairs of a small set. Of a large one (templates, boilerplate) each row with the few before it: linear, where all
    would be quadratic, no row in more pairs than the others, and what is alike hangs together.
    """
    order = np.lexsort((row, key))
    key, row = key[order], row[order]
    fresh = np.ones(len(key), bool)
    fresh[1:] = key[1:] != key[:-1]
    group = np.cumsum(fresh) - 1
    small = (np.bincount(group) <= ALL_PAIRS)[group] if len(group) else np.zeros(0, bool)
    firsts, seconds = [], []
    for distance in range(1, min(ALL_PAIRS, len(key))):
        together = key[distance:] == key[:-distance]
        if distance > BEFORE:
            together &= small[distance:]
        at = np.flatnonzero(together)
        firsts.append(row[at])
        seconds.append(row[at + distance])
    none = np.zeros(0, np.int64)
    return distinct_pairs(np.concatenate([none, *firsts]), np.concatenate([none, *seconds]))


def distinct_pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair once, in ascending order; a row is no pair with itself."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    fresh = first != second
    fresh[1:] &= (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[fresh], second[fresh]


class Components:
    """Connected components of rows, by pairs in any order and any number of pieces. Eight bytes a row."""

    def __init__(self, parent: NDArray[np.int64]) -> None:
        """`parent`: [rows] an earlier row of the same component, or the row itself. It is taken over."""
        self._parent = parent

    def join(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        _join(self._parent, first, second)

    def clusters(self) -> NDArray[np.int64]:
        """[rows] the first row of each row's component."""
        _flatten(self._parent)
        return self._parent


def sizes(clusters: NDArray[np.int64]) -> NDArray[np.int32]:
    """[n] how many documents share each document's cluster."""
    return np.bincount(clusters, minlength=len(clusters)).astype(np.int32)[clusters]


@kernel
def _join(parent, first, second):
    """The later root is hung below the earlier one: a parent never stands after its child."""
    for pair in range(len(first)):
        a, b = first[pair], second[pair]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@kernel
def _flatten(parent):
    for row in range(len(parent)):  # earlier ones are flat already
        parent[row] = parent[parent[row]]
