"""Semantic duplicates: the pairs join what brute force joins, whatever the order; no crowd of vectors is quadratic."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup import semantic
from gristmill.datapipe.dedup.semantic import MOST_CELLS, SemanticConfig, alike, assign, centred, kmeans, mean_of

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def components(pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The least row of each row's component; `rows` ascending."""
    at = [np.searchsorted(rows, side) for side in pairs[:2]]
    _, labels = connected_components(coo_array((np.ones(len(at[0])), at), shape=(len(rows),) * 2), directed=False)
    return rows[np.unique(labels, return_index=True)[1][labels]]


def brute_force(vectors: NDArray[np.float32], rows: NDArray[np.int64], threshold: float) -> Pairs:
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    similarity = wide @ wide.T
    first, second = np.nonzero(np.triu(similarity >= threshold - 1e-9, 1))
    return rows[first], rows[second], similarity[first, second].astype(np.float32)


def most_alike(pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    best = np.full(len(rows), -1, np.float32)
    for side in pairs[:2]:
        np.maximum.at(best, np.searchsorted(rows, side), pairs[2])
    return best


def chains(generator: np.random.Generator, documents: int, width: int = 6) -> NDArray[np.float32]:
    """Vectors at every distance from each other, some with the same bits."""
    vectors = generator.normal(size=(documents, width)).astype(np.float32)
    moved = generator.integers(0, documents, documents // 2)
    vectors[: len(moved)] = vectors[moved] + 0.2 * generator.normal(size=(len(moved), width)).astype(np.float32)
    vectors[generator.integers(0, documents, documents // 10)] = vectors[0]
    return vectors


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.sampled_from([0.3, 0.8, 0.95, 1.0]), st.integers(1, 50))
def test_pairs_join_what_all_pairs_would_and_hold_the_most_alike(
    seed: int, n: int, threshold: float, block: int
) -> None:
    generator = np.random.default_rng(seed)
    vectors, rows = chains(generator, n), np.sort(generator.choice(10**12, n, replace=False))
    found, expected = alike(vectors, rows, threshold, block), brute_force(vectors, rows, threshold)
    assert (found[0] < found[1]).all() and len(found[0]) < 2 * n
    assert len(np.unique(np.stack(found[:2]), axis=1).T) == len(found[0])
    assert (components(found, rows) == components(expected, rows)).all()
    assert most_alike(found, rows) == pytest.approx(most_alike(expected, rows), abs=1e-6)
    assert found[1].tolist() == sorted(found[1].tolist())

    order = generator.permutation(n)
    again = alike(vectors[order], rows[order], threshold, block)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("max_cell", [200, 64])
def test_planted_clusters_survive_the_split_of_a_large_cell(max_cell: int) -> None:
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(300, 32))
    group = generator.integers(0, 300, 3000)
    vectors = (centres[group] + 0.05 * generator.normal(size=(3000, 32))).astype(np.float32)
    rows = np.arange(3000)
    found = alike(vectors, rows, 0.95, max_cell=max_cell, seed=1)
    parts = components(found, rows)
    assert all(len(np.unique(group[parts == name])) == 1 for name in np.unique(parts))  # none that is not alike
    assert len(np.unique(parts)) <= 300 * 1.02  # borders seldom lie between alike ones
    order = generator.permutation(3000)
    again = alike(vectors[order], rows[order], 0.95, max_cell=max_cell, seed=1)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("spread", [0.02, 1e-7], ids=["apart", "too close for k-means"])
def test_a_crowd_of_nearly_equal_vectors_is_split_and_still_one_cluster(spread: float) -> None:
    generator = np.random.default_rng(4)
    vectors = (1 + spread * generator.normal(size=(20_000, 16))).astype(np.float32)
    strangers = generator.normal(size=(500, 16)).astype(np.float32)
    strangers[:, 0] = -5
    rows = np.arange(20_500)
    parts = components(alike(np.concatenate([vectors, strangers]), rows, 0.99, max_cell=512), rows)
    assert (parts[:20_000] == 0).all() and (parts[20_000:] != 0).all()


def test_equal_vectors_are_linear_and_pair_with_the_first() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32), [200_000, 1], axis=0)
    rows = np.arange(len(vectors)) + 7
    alike(vectors[:10], rows[:10], 0.9)  # compiled
    started = time.process_time()
    first, second, similarity = alike(vectors, rows, 0.9)
    assert time.process_time() - started < 5  # all pairs would be 2 * 10^10
    assert (first == 7).all() and (second == rows[1:200_000]).all() and (similarity == 1).all()


def test_vectors_without_a_direction_are_like_nothing_but_their_equals() -> None:
    vectors = np.ones((8, 4), np.float32)
    vectors[[1, 4]], vectors[[2, 5], 1], vectors[3, 0], vectors[6, 0] = 0, np.nan, np.inf, -0.0
    vectors[7] = vectors[6]
    vectors[7, 0] = 0.0
    first, second, _ = alike(vectors, np.arange(8), 0.9)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(1, 4), (6, 7)]
    assert len(kmeans(vectors[2:3], 4, 0)) == 1
    assert assign(vectors, kmeans(vectors, 4, 0)).min() >= 0
    assert np.isfinite(kmeans(vectors, 4, 0)).all() and np.isfinite(mean_of(vectors)).all()
    assert [len(column) for column in alike(vectors[:0], np.arange(0), 0.9)] == [0, 0, 0]
    assert alike(vectors[:1], np.arange(1), 0.9)[0].tolist() == []
    with pytest.raises(UsageError, match="threshold"):
        alike(vectors, np.arange(8), 0.0)


def test_kmeans_finds_planted_cells_and_repeats() -> None:
    generator = np.random.default_rng(5)
    centres = np.eye(12, dtype=np.float32)
    group = generator.integers(0, 12, 4000)
    vectors = (centres[group] * generator.uniform(0.1, 9, (4000, 1))).astype(np.float32)  # length tells nothing
    vectors += 0.02 * generator.normal(size=vectors.shape).astype(np.float32)
    centroids = kmeans(vectors, 12, seed=3, iterations=20)
    cells = assign(vectors, centroids)
    assert cells.dtype == np.int32 and centroids.shape == (12, 12)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert (centroids == kmeans(vectors, 12, seed=3, iterations=20)).all()
    assert (cells == assign(vectors, centroids)).all()
    piecewise = np.concatenate([assign(piece, centroids) for piece in np.array_split(vectors, 37)])
    assert (cells == piecewise).all()  # however the run is cut into partitions
    purity = sum(np.bincount(group[cells == cell]).max(initial=0) for cell in range(12)) / 4000
    assert purity > 0.9


def test_kmeans_does_not_spend_its_cells_on_a_crowd() -> None:
    generator = np.random.default_rng(6)
    crowd = np.ones((5000, 16)) + 0.01 * generator.normal(size=(5000, 16))
    others = generator.normal(size=(500, 16))
    vectors = np.concatenate([crowd, others]).astype(np.float32)
    cells = assign(vectors, kmeans(vectors, 40, seed=0))
    assert len(np.unique(cells[:5000])) <= 3 and len(np.unique(cells[5000:])) >= 30


def test_fewer_distinct_vectors_than_cells() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    centroids = kmeans(vectors, 20, seed=0)
    assert len(centroids) == 3 and len(np.unique(assign(vectors, centroids))) == 3
    assert len(kmeans(np.zeros((0, 5), np.float32), 4, 0)) == 1


def test_centring_takes_away_what_all_have_in_common() -> None:
    generator = np.random.default_rng(7)
    own = generator.normal(size=(1000, 64))
    own[500:] = own[:500] + 0.1 * generator.normal(size=(500, 64))
    states = (own + 40 * np.eye(64)[0]).astype(np.float16)  # one direction outweighs the rest, as in real backbones
    rows = np.arange(1000)
    assert len(np.unique(components(alike(states.astype(np.float32), rows, 0.95), rows))) == 1
    parts = components(alike(centred(states, mean_of(states)), rows, 0.95), rows)
    assert (parts[500:] == rows[:500]).mean() > 0.99 and len(np.unique(parts)) > 495


def test_cells_stay_few_enough_for_a_run_of_any_size() -> None:
    config = SemanticConfig()
    assert config.cells(8_000_000) == 4000 and config.cells(9_000_000) == config.cells(10**11) == MOST_CELLS == 4096
    assert SemanticConfig(documents_per_cell=1).cells(10**8) == MOST_CELLS


def test_kmeans_and_centring_hold_no_more_copies_of_a_sample_than_they_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "HELD", 1 << 16)
    sample = np.random.default_rng(8).normal(size=(40_000, 128)).astype(np.float32)
    before, mean = sample.copy(), mean_of(sample)
    kmeans(sample[:100], 4, seed=0, iterations=2)  # compiled

    def peak(call: Callable[[], object]) -> float:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1] / sample.nbytes
        finally:
            tracemalloc.stop()

    assert peak(lambda: centred(sample, mean)) < 1.5
    assert peak(lambda: kmeans(sample, 4, seed=0, iterations=2)) < 1.5  # blocks in 64 bits
    assert (sample == before).all()


def test_settings_that_make_no_sense_are_refused() -> None:
    assert SemanticConfig().cells(0) == 1 and SemanticConfig(documents_per_cell=10).cells(101) == 11
    wrong: dict[str, Any] = {"threshold": 1.5, "documents_per_cell": 0, "max_cell": 1, "iterations": 0, "seed": -1}
    for threshold in (0, -1, 1e-10, float("nan")):  # what `alike` would refuse when all else is done
        with pytest.raises(UsageError, match="threshold"):
            SemanticConfig(threshold=threshold)
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=name):
            SemanticConfig(**{name: value})
