"""From equal keys to groups, and from pairs to clusters: each named by its first member."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.kernel import kernel


def groups(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, group) of [n, 2] 128-bit keys: the first entry of each group of equal ones, and each entry's group."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first entry comes first
    ordered = keys[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(fresh) - 1
    return order[fresh], group


def candidate_pairs(key: NDArray[np.uint64], row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, second), first < second: of each set of rows with one key, every row with the first and with the one
    before it.

    Linear in the set, where all pairs would be quadratic; that holds together whatever is alike, and what the first of
    an accidental set does not show, another band does.
    """
    order = np.lexsort((row, key))
    key, row = key[order], row[order]
    fresh = np.ones(len(key), bool)
    fresh[1:] = key[1:] != key[:-1]
    start = np.maximum.accumulate(np.where(fresh, np.arange(len(key)), 0))
    at = np.flatnonzero(~fresh)
    return distinct_pairs(np.concatenate([row[start[at]], row[at - 1]]), np.concatenate([row[at], row[at]]))


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
