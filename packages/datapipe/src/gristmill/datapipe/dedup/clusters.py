"""From equal keys to clusters: a vectorised union of everything that shares a key, named by its first member."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def exact_clusters(identity: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[n, 2] 128-bit identities -> [n] global row of the first document with the same identity."""
    order = np.lexsort((np.arange(len(identity)), identity[:, 1], identity[:, 0]))
    ordered = identity[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = order[np.flatnonzero(fresh)]
    clusters = np.empty(len(order), np.int64)
    clusters[order] = firsts[np.cumsum(fresh) - 1]
    return clusters


def near_clusters(
    signature: NDArray[np.uint32], keys: NDArray[np.uint64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Clusters of documents that share a band key and whose signatures agree in at least `threshold` of positions.

    Args:
        signature: [n, permutations]; rows that are all 0xFFFFFFFF (no words) match nothing.
        keys: [n, bands] from minhash.band_keys.

    Returns:
        (cluster, similarity), both [n]: the global row of the cluster's first member, and the estimated Jaccard
        similarity with that member (1.0 for the member itself).
    """
    count = len(signature)
    usable = np.flatnonzero((signature != np.uint32(0xFFFFFFFF)).any(axis=1))
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for band in range(keys.shape[1]):
        order = usable[np.argsort(keys[usable, band], kind="stable")]
        same = keys[order[1:], band] == keys[order[:-1], band]
        # Members of a bucket are compared with its first and with their neighbour: linear in the bucket, where all
        # pairs would be quadratic; what one band misses another finds.
        starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        at = np.flatnonzero(same) + 1
        left += [order[at], order[at]]
        right += [order[at - 1], order[starts[at]]]
    pairs = np.unique(np.stack([np.concatenate(left), np.concatenate(right)], axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = pairs[_similarity(signature, pairs[:, 0], pairs[:, 1]) >= threshold]
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    firsts = np.full(labels.max(initial=-1) + 1, count, np.int64)
    np.minimum.at(firsts, labels, np.arange(count))
    clusters = firsts[labels]
    return clusters, _similarity(signature, np.arange(count), clusters).astype(np.float32)


def sizes(clusters: NDArray[np.int64]) -> NDArray[np.int32]:
    """[n] how many documents share each document's cluster."""
    return np.bincount(clusters, minlength=len(clusters))[clusters].astype(np.int32)


def _similarity(
    signature: NDArray[np.uint32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    out = np.empty(len(left))
    for start in range(0, len(left), 65536):  # bounded: 65,536 pairs of 112 positions are 59 MB
        piece = slice(start, start + 65536)
        out[piece] = (signature[left[piece]] == signature[right[piece]]).mean(axis=1)
    return out
