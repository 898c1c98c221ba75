"""Semantic duplicates (SemDeDup: Abbas et al. 2023, arXiv 2303.09540): k-means cells of document vectors, and within
each cell the pairs whose cosine similarity reaches a threshold.

Vectors are a frozen model's pooled states. Those all point nearly the same way (unrelated documents have a cosine of
0.95 and more), so `centred` takes the mean of the run away first: only then a threshold tells alike from unlike.
All arithmetic that decides is in 64 bits: the same vectors give the same pairs however many threads a product ran on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.text.hashing import mix
from gristmill.datapipe.text.kernel import kernel, part

ROUNDING = 1e-9
"""Similarities that differ by less are equal: the order of additions in a product may not decide anything."""
MOST_PARTS, DEEPEST = 256, 8
SAMPLE_PER_PART = 64
MOST_CELLS = 4096
"""Work for a document grows with the number of cells, and so does the sample: in a larger run the cells hold more, and
`alike` splits those that hold too much."""
HELD = 1 << 23
"""Numbers of a block of similarities that are held at once: 64 MB."""


@dataclass(frozen=True)
class SemanticConfig:
    threshold: float = 0.95
    """Cosine similarity of centred states from which two documents of a cell count as alike."""
    documents_per_cell: int = 2000
    """Smaller cells cost less, and part more of what is alike. Where MOST_CELLS would not do, they hold more."""
    sample_per_cell: int = 64
    """So many documents for each cell are drawn for k-means, which holds them as float32: of states 1024 wide 1 GiB at
    MOST_CELLS, for a run of any size."""
    iterations: int = 10
    max_cell: int = 8192
    """A cell with more distinct vectors is split again."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, ROUNDING, 1)
        check_range("documents_per_cell", self.documents_per_cell, 1)
        check_range("sample_per_cell", self.sample_per_cell, 1)
        check_range("iterations", self.iterations, 1)
        check_range("max_cell", self.max_cell, 2)
        check_range("seed", self.seed)

    def cells(self, documents: int) -> int:
        """How many cells so many documents are cut into: at most MOST_CELLS."""
        return min(MOST_CELLS, max(1, -(-documents // self.documents_per_cell)))


def mean_of(sample: NDArray[np.floating]) -> NDArray[np.float32]:
    """[d] the mean of the finite rows of [m, d]; zero where there are none."""
    total, count = np.zeros(sample.shape[1]), 0
    for start in range(0, len(sample), 8192):
        block = sample[start : start + 8192].astype(np.float64)
        block = block[_finite(block)]
        total, count = total + block.sum(axis=0), count + len(block)
    return (total / max(count, 1)).astype(np.float32)


def centred(vectors: NDArray[np.floating], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, d]: each vector less the mean of the run. (The first step of all-but-the-top: Mu and Viswanath 2018.)

    The mean must be that of a few hundred documents or more: of two documents, one is as far from it as the other.
    """
    return vectors.astype(np.float32, copy=False) - mean


def kmeans(sample: NDArray[np.float32], k: int, seed: int, iterations: int = 10) -> NDArray[np.float32]:
    """Spherical k-means (Dhillon and Modha 2001): centroids of length one, [at most k, d]; fewer where fewer differ.

    Seeds are drawn by their distance from the nearest seed so far, as many at a time as there are already (k-means||:
    Bahmani et al. 2012), so a crowd of nearly equal vectors does not take them all. A cell that runs empty takes the
    vector that is least like its own centroid. The same rows in the same order give the same centroids.
    """
    finite = _finite(sample)
    sample = sample if finite.all() else sample[finite]  # a copy may be a gigabyte
    if not len(sample):
        return np.zeros((1, sample.shape[1]), np.float32)
    centroids = _seeds(sample, k, np.random.Generator(np.random.PCG64(seed)))
    labels = np.full(len(sample), -1, np.int32)
    for _ in range(iterations):
        before, (labels, similarity) = labels, _nearest(sample, np.arange(len(sample)), centroids)
        if (labels == before).all():
            break
        sums = np.zeros((len(centroids), sample.shape[1]))
        for start in range(0, len(sample), 8192):
            _add(unit(sample[start : start + 8192]), labels[start : start + 8192], sums)
        empty = np.flatnonzero(np.bincount(labels, minlength=len(centroids)) == 0)
        furthest = np.argsort(similarity, kind="stable")[: len(empty)]
        sums[empty[: len(furthest)]] = sample[furthest]
        centroids = np.where((sums != 0).any(axis=1, keepdims=True), unit(sums), centroids).astype(np.float32)
    return centroids


def assign(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """[n] the most alike centroid; of equally alike ones the first, so equal vectors share a cell."""
    return _nearest(vectors, np.arange(len(vectors)), centroids)[0]


def alike(
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    threshold: float,
    block: int = 1024,
    max_cell: int = 8192,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of one cell's documents with a cosine similarity of at least `threshold`: enough of them, not all.

    The pairs join exactly what all pairs would join, and hold each document's most alike other: fewer than 2 n pairs,
    where all would be n²/2. They depend on the vectors and on their rows, not on the order in which they are given.
    Documents with the same bits are compared once: all but the first are paired with it. A vector that is not finite
    has no pairs; one of length zero, only with its equals.

    A cell of more than `max_cell` distinct vectors is split by k-means, again and again, so that the work is at most
    n x max_cell products. What a split can miss are alike documents on two sides of a border. Documents that begin each
    part are compared across all parts, so that a dense crowd that was cut is whole again.

    Args:
        vectors: [n, d].
        rows: [n] where each document stands in the run; each row once.
        block: so many vectors are compared with so many at a time.

    Returns:
        (first, second, similarity): rows with first < second, ascending by second, then first.
    """
    check_range("threshold", threshold, ROUNDING, 1)
    order = np.argsort(rows, kind="stable")
    if (order != np.arange(len(rows))).any():
        vectors, rows = vectors[order], rows[order]
    finite = _finite(vectors)
    original = _originals(vectors)
    copies = np.flatnonzero((original != np.arange(len(rows))) & finite)
    distinct = np.flatnonzero((original == np.arange(len(rows))) & finite)
    parent, likest = np.arange(len(rows)), np.full(len(rows), -1)
    best, edges = np.full(len(rows), -np.inf), np.full((len(rows), 2), -1)
    for members in _parts(vectors, distinct, max_cell, seed):
        for start in range(0, len(members), block):
            later = members[start : start + block]
            later_unit = unit(vectors[later])
            for other in range(0, start + 1, block):
                earlier = members[other : other + block]
                similarity = later_unit @ unit(vectors[earlier]).T
                _join(similarity, later, earlier, threshold - ROUNDING, parent, best, likest, edges)
    has = np.flatnonzero(likest >= 0)
    links = np.concatenate([edges[edges[:, 0] >= 0], np.sort(np.stack([has, likest[has]], axis=1), axis=1)])
    links = np.unique(links[:, ::-1], axis=0)[:, ::-1]
    first = np.concatenate([links[:, 0], original[copies]])
    second = np.concatenate([links[:, 1], copies])
    similarity = np.concatenate([_cosine(vectors, links), np.ones(len(copies))]).astype(np.float32)
    order = np.lexsort((first, second))
    return rows[first[order]], rows[second[order]], similarity[order]


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """[n, d] of length one; what has no length keeps it."""
    vectors = vectors.astype(np.float64)
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    with np.errstate(invalid="ignore"):  # infinity by infinity
        return vectors / np.where(length > 0, length, 1)


def _finite(vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(np.einsum("nd,nd->n", vectors, vectors))


def _cosine(vectors: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.empty(len(pairs))
    for start in range(0, len(pairs), 4096):
        left, right = (unit(vectors[side]) for side in pairs[start : start + 4096].T)
        out[start : start + 4096] = np.einsum("nd,nd->n", left, right)
    return np.clip(out, -1, 1)


def _nearest(
    vectors: NDArray[np.float32], at: NDArray[np.int64], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """For each of vectors[at]: the most alike centroid, and how alike."""
    labels, similarity = np.empty(len(at), np.int32), np.empty(len(at))
    centres, block = unit(centroids).T, max(64, HELD // max(centroids.shape))
    for start in range(0, len(at), block):
        found = np.round(unit(vectors[at[start : start + block]]) @ centres, 9)
        labels[start : start + block] = found.argmax(axis=1)
        similarity[start : start + block] = found.max(axis=1)
    return labels, similarity


def _seeds(sample: NDArray[np.float32], k: int, generator: np.random.Generator) -> NDArray[np.float32]:
    everyone = np.arange(len(sample))
    chosen = generator.integers(len(sample), size=1)
    distance = 1 - _nearest(sample, everyone, sample[chosen])[1]
    while many := min(len(chosen), k - len(chosen), np.count_nonzero(distance)):
        fresh = generator.choice(len(sample), many, replace=False, p=distance / distance.sum())
        distance = np.minimum(distance, 1 - _nearest(sample, everyone, sample[fresh])[1])
        fresh = fresh[np.unique(sample[fresh], axis=0, return_index=True)[1]]
        chosen = np.concatenate([chosen, fresh])
    return unit(sample[chosen]).astype(np.float32)


def _originals(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """[n] the first vector with the same bits. By a hash of the bits, and then by looking."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    keys = np.empty(len(vectors), np.uint64)
    _hash(bits, keys)
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    original = firsts[inverse]
    for start in range(0, len(vectors), 8192):
        here = np.arange(start, min(start + 8192, len(vectors)))
        differ = (bits[here] != bits[original[here]]).any(axis=1)
        original[here[differ]] = here[differ]
    return original


def _parts(
    vectors: NDArray[np.float32], members: NDArray[np.int64], max_cell: int, seed: int, depth: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Sets of at most max_cell members, each ascending, and with every split one of the first members of its parts."""
    if len(members) <= max_cell:
        yield members
        return
    labels = np.zeros(len(members), np.int32)
    if depth < DEEPEST:
        many = min(-(-2 * len(members) // max_cell), MOST_PARTS)  # twice what would do: parts are uneven
        generator = np.random.Generator(np.random.PCG64([seed, depth]))
        drawn = generator.choice(len(members), min(len(members), SAMPLE_PER_PART * many), replace=False)
        labels, _ = _nearest(vectors, members, kmeans(vectors[members[np.sort(drawn)]], many, seed))
    if (labels == labels[0]).all():  # k-means cannot tell them apart, or has tried often enough
        labels = (np.arange(len(members)) // max_cell).astype(np.int32)
    order = np.argsort(labels, kind="stable")
    parts = np.split(members[order], np.flatnonzero(np.diff(labels[order])) + 1)
    for piece in parts:
        yield from _parts(vectors, piece, max_cell, seed, depth + 1)
    yield np.sort(np.concatenate([piece[: max(1, max_cell // len(parts))] for piece in parts]))


@kernel
def _add(units, labels, sums):
    for i in range(len(units)):
        for d in range(units.shape[1]):
            sums[labels[i], d] += units[i, d]


@kernel
def _hash(bits, keys):
    for i in range(len(bits)):
        value = np.uint64(0)
        for d in range(bits.shape[1]):
            value = mix(value ^ np.uint64(bits[i, d]))
        keys[i] = value


@part
def _root(parent, at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@kernel
def _join(similarity, later, earlier, least, parent, best, likest, edges):
    """Unite what is alike; an edge stands at the root that it took from a tree, so that they make a forest."""
    for i in range(len(later)):
        for j in range(len(earlier)):
            row, other, value = later[i], earlier[j], similarity[i, j]
            if other >= row:
                break
            if not value >= least:
                continue
            if value > best[row]:
                best[row], likest[row] = value, other
            if value > best[other]:
                best[other], likest[other] = value, row
            one, two = _root(parent, row), _root(parent, other)
            if one != two:
                parent[max(one, two)] = min(one, two)
                edges[max(one, two), 0], edges[max(one, two), 1] = other, row
