"""Exact Jaccard similarity against Python's sets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.hostile_texts import hostile

from gristmill.datapipe.dedup.jaccard import jaccard, shingle_sets
from gristmill.datapipe.dedup.minhash import MinHashConfig, signatures
from gristmill.datapipe.text.features import Features, featurise
from gristmill.datapipe.text.hashing import BASE, mix

Sets = list[set[int]]
CONFIG = MinHashConfig()


def mixed(value: int) -> int:
    with np.errstate(over="ignore"):
        return int(mix.py_func(np.uint64(value)))


def reference(features: Features, ngram: int) -> Sets:
    folded, rows = features.folded, []
    for begin, end in zip(folded.offsets[:-1], folded.offsets[1:]):
        words = folded.hashes[begin:end].tolist()
        size, row = min(ngram, len(words)), set()
        for at in range(len(words) - size + 1) if words else []:
            value = 0
            for word in words[at : at + size]:
                value = (value * BASE + word) % 2**64
            row.add(mixed(value))
        rows.append(row)
    return rows


def flat(rows: Sets) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    values = np.array([value for row in rows for value in sorted(row)], np.uint64)
    return values, np.concatenate([np.zeros(1, np.int64), np.cumsum([len(row) for row in rows], dtype=np.int64)])


@settings(max_examples=100)
@given(st.lists(st.text(alphabet="ab漢é ", max_size=30), max_size=5), st.integers(1, 5))
def test_sets_are_those_of_plain_python(texts: list[str], ngram: int) -> None:
    features = featurise(pa.array(texts, pa.string()))
    values, offsets = shingle_sets(features, MinHashConfig(ngram=ngram))
    expected = flat(reference(features, ngram))
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(offsets, expected[1])


@settings(max_examples=200)
@given(st.lists(st.tuples(*[st.sets(st.integers(0, 8) | st.integers(2**63, 2**64 - 1), max_size=8)] * 2), max_size=6))
def test_similarity_is_that_of_plain_sets(pairs: list[tuple[set[int], set[int]]]) -> None:
    found = jaccard(*flat([left for left, _ in pairs]), *flat([right for _, right in pairs]))
    expected = [len(left & right) / len(left | right) if left | right else 0.0 for left, right in pairs]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_it_is_what_signatures_estimate() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{word}" for word in generator.integers(0, 100_000, 2000)]
    texts = featurise(pa.array([" ".join(words[:1500]), " ".join(words[300:])]))
    values, offsets = shingle_sets(texts, CONFIG)
    exact = jaccard(values[: offsets[1]], offsets[:2], values[offsets[1] :], offsets[1:] - offsets[1])
    estimate = (signatures(texts, CONFIG)[0] == signatures(texts, CONFIG)[1]).mean()
    assert exact[0] == pytest.approx(1196 / 1996, abs=0.002) and estimate == pytest.approx(exact[0], abs=0.15)


def test_hostile_texts_empty_ones_and_one_word_a_million_times() -> None:
    features = featurise(hostile(2, [b"word ", b"a b c d e f "]))
    values, offsets = shingle_sets(features, CONFIG)
    np.testing.assert_array_equal(values, flat(reference(features, CONFIG.ngram))[0])
    same = jaccard(values, offsets, values, offsets)
    np.testing.assert_array_equal(same, np.diff(offsets) > 0)
    assert shingle_sets(featurise(pa.array(["x " * 1_000_000])), CONFIG)[1].tolist() == [0, 1]
    assert shingle_sets(featurise(pa.array([], pa.string())), CONFIG)[1].tolist() == [0]


def test_sides_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sets on the left, 1 on the right"):
        jaccard(*flat([{1}, {2}]), *flat([{1}]))
