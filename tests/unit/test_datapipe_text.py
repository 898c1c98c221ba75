"""The shared featurisation and the kernels over it, against plain Python that is slow and obviously right."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.length import length
from gristmill.datapipe.filters.repetition import repetition
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, tables
from gristmill.datapipe.text.features import featurise

TEXTS = st.lists(st.text(alphabet="ab Ä\u0308é1漢字\n\t.,-😀\u2028ไทย", max_size=60), min_size=1, max_size=6)


def words_of(text: str) -> list[str]:
    classes, _ = tables()
    words, word = [], ""
    for character in unicodedata.normalize("NFC", text):
        kind = classes[ord(character)]
        if kind in (LETTER, DIGIT):
            word += character.lower() if len(character.lower()) == 1 else character
            continue
        if word:
            words.append(word)
            word = ""
        if kind == IDEOGRAPH:
            words.append(character)
    return [*words, word] if word else words


def lines_of(text: str) -> list[str]:
    classes, _ = tables()
    text = "".join("\n" if classes[ord(c)] == NEWLINE else c for c in unicodedata.normalize("NFC", text))
    return [line.strip() for line in text.split("\n") if line.strip()]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_words_and_lines_are_those_of_a_plain_reading(texts: list[str]) -> None:
    features = featurise(pa.array(texts))
    by_hash: dict[int, str] = {}
    for document, text in enumerate(texts):
        words = words_of(text)
        start, end = features.word_offsets[document : document + 2]
        assert [len(word) for word in words] == features.word_length[start:end].tolist()
        for word, key in zip(words, features.word_hash[start:end].tolist(), strict=True):
            assert by_hash.setdefault(key, word) == word  # equal hashes mean equal words ...
        start, end = features.line_offsets[document : document + 2]
        assert [len(line) for line in lines_of(text)] == features.line_length[start:end].tolist()
    assert len(set(by_hash.values())) == len(by_hash)  # ... and unequal ones unequal words


def test_position_in_the_batch_and_missing_values_change_nothing() -> None:
    alone = featurise(pa.array(["Zwei Wörter"]))
    among = featurise(pa.chunked_array([["x y z", None], ["", "Zwei Wörter"]]))
    start, end = among.word_offsets[3:5]
    assert among.word_hash[start:end].tolist() == alone.word_hash.tolist()
    assert np.diff(among.word_offsets).tolist() == [3, 0, 0, 2]
    sliced = featurise(pa.array(["drop me", "Zwei Wörter"]).slice(1))
    assert sliced.word_hash.tolist() == alone.word_hash.tolist()


def test_identity_ignores_space_and_case_but_not_order() -> None:
    texts = ["Hello, World\n\nagain", "hello,   world again", "again hello, world", "Cafe\u0301", "café"]
    identity = featurise(pa.array(texts)).identity
    assert (identity[0] == identity[1]).all() and (identity[0] != identity[2]).any()
    assert (identity[3] == identity[4]).all()


def test_scripts_without_spaces_count_characters_as_words() -> None:
    assert length(featurise(pa.array(["漢字かな", "ab cd", "สวัสดี"])))["words"].tolist() == [4, 2, 6]


def test_repetition_matches_a_plain_count() -> None:
    text = "one two three four five six\none two three four five six\nsomething else entirely\n\nlast paragraph here"
    got = {name: float(values[0]) for name, values in repetition(featurise(pa.array([text]))).items()}
    words = words_of(text)
    total = sum(map(len, words))
    assert got["duplicate_lines"] == pytest.approx(1 / 4)
    assert got["duplicate_line_characters"] == pytest.approx(27 / len(text))
    pairs = Counter(pairwise(words))
    best = max(count for count in pairs.values())
    widest = max(len(a) + len(b) for (a, b), count in pairs.items() if count == best)
    assert got["top_2_gram"] == pytest.approx(best * widest / total)
    assert got["duplicate_5_gram"] == pytest.approx(sum(map(len, words[:5])) / total)
    assert got["duplicate_10_gram"] == 0.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.integers(5, 10))
def test_duplicate_ngrams_are_found_greedily(words: list[str], size: int) -> None:
    seen, at, repeated = set(), 0, 0
    while at + size <= len(words):
        gram = tuple(words[at : at + size])
        if gram in seen:
            repeated += sum(map(len, gram))
            at += size
        else:
            seen.add(gram)
            at += 1
    got = repetition(featurise(pa.array([" ".join(words)])))[f"duplicate_{size}_gram"][0]
    assert got == pytest.approx(repeated / max(1, sum(map(len, words))))
