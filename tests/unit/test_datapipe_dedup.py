"""Duplicates: signatures estimate Jaccard similarity, clusters are what they should be, order does not matter."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from gristmill.datapipe.dedup.clusters import exact_clusters, near_clusters, sizes
from gristmill.datapipe.dedup.minhash import MinHashConfig, band_keys, signatures
from gristmill.datapipe.text.features import featurise

CONFIG = MinHashConfig()


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + CONFIG.ngram]) for at in range(len(words) - CONFIG.ngram + 1)}


def planted(generator: np.random.Generator, similar: float) -> tuple[str, str, float]:
    """A pair of texts, and the Jaccard similarity of their word 5-grams."""
    words = [f"w{n}" for n in generator.integers(0, 100_000, 400)]
    other = list(words)
    for at in range(0, len(words), max(1, int(1 / (1 - similar) * 5))):
        other[at] = f"x{generator.integers(0, 100_000)}"
    a, b = shingles(words), shingles(other)
    return " ".join(words), " ".join(other), len(a & b) / len(a | b)


def test_signature_agreement_estimates_jaccard() -> None:
    generator = np.random.default_rng(0)
    pairs = [planted(generator, similar) for similar in (0.9, 0.8, 0.7, 0.5) for _ in range(25)]
    left = signatures(featurise(pa.array([a for a, _, _ in pairs])), CONFIG)
    right = signatures(featurise(pa.array([b for _, b, _ in pairs])), CONFIG)
    error = (left == right).mean(axis=1) - np.array([jaccard for _, _, jaccard in pairs])
    assert abs(error.mean()) < 0.015
    assert np.sqrt((error**2).mean()) < 0.055  # theory: sqrt(J(1-J)/112) <= 0.047


def test_near_duplicates_join_and_strangers_do_not() -> None:
    generator = np.random.default_rng(1)
    texts: list[str] = []
    for _ in range(30):
        a, b, jaccard = planted(generator, 0.97)
        assert jaccard > 0.75
        texts += [a, b]
    texts += ["", "", "too short", "too short", "漢字だけの文章です" * 3, "漢字だけの文章です" * 3]
    signature = signatures(featurise(pa.array(texts)), CONFIG)
    cluster, similarity = near_clusters(signature, band_keys(signature, CONFIG), 0.7)
    assert (cluster[:60].reshape(-1, 2)[:, 0] == np.arange(0, 60, 2)).all()
    assert (cluster[1:60:2] == np.arange(0, 60, 2)).mean() > 0.9  # P(found) at J = 0.8 is 0.92 for 14 bands of 8
    assert cluster[60:62].tolist() == [60, 61]  # documents without words match nothing
    assert cluster[62:66].tolist() == [62, 62, 64, 64]
    assert similarity[0] == 1.0 and similarity[65] == 1.0
    assert sizes(cluster)[64] == 2


def test_clusters_are_named_by_their_first_member_and_are_transitive() -> None:
    identity = np.array([[1, 1], [2, 2], [1, 1], [1, 2], [2, 2], [1, 1]], np.uint64)
    assert exact_clusters(identity).tolist() == [0, 1, 0, 3, 1, 0]
    signature = np.tile(np.arange(112, dtype=np.uint32), (3, 1))
    signature[1, :14] += 1000  # like 0 in seven eighths
    signature[2, :28] += 1000  # like 1 in seven eighths, like 0 in three quarters
    cluster, similarity = near_clusters(signature, band_keys(signature, CONFIG), 0.8)
    assert cluster.tolist() == [0, 0, 0]
    assert similarity.tolist() == pytest.approx([1.0, 0.875, 0.75])


def test_one_bucket_of_many_equal_documents_is_linear() -> None:
    signature = np.tile(np.arange(112, dtype=np.uint32), (20_000, 1))
    cluster, _ = near_clusters(signature, band_keys(signature, CONFIG), 0.7)
    assert (cluster == 0).all()
