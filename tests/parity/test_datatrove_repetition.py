"""Repetition against datatrove's helper functions, value by value, and against its filter's verdict and reason."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_repetition_filter as peer
from datatrove.utils.text import split_into_words
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.float32 import rounded
from tests.support.real_texts import real_texts
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.filters.repetition import repetition
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.features import Features, featurise

TEXTS = st.lists(st.sampled_from(["a", "b", "ab", " ", "\n", "\n\n", "\t", "\r\n", "\u2003", "é", "."]), max_size=60)
WORDS = st.lists(st.sampled_from(["a", "aa", "b", "ab", "é", "."]), max_size=80)  # joined, many of them are alike

# datatrove's order, bounds and reasons.
BOUNDS = (
    ("repetition_paragraphs", 0.3, "dup_para_frac"),
    ("repetition_paragraph_characters", 0.2, "dup_para_char_frac"),
    ("repetition_lines", 0.3, "dup_line_frac"),
    ("repetition_line_characters", 0.2, "dup_line_char_frac"),
    *((f"repetition_top_{n}_gram", bound, f"top_{n}_gram") for n, bound in ((2, 0.2), (3, 0.18), (4, 0.16))),
    *((f"repetition_duplicate_{n}_gram", 0.2 - n / 100, f"duplicated_{n}_n_grams") for n in range(5, 11)),
)


def reason(values: dict[str, float | None]) -> str | None:
    for column, bound, name in BOUNDS:
        value = values[column]
        if value is None:
            return "empty"
        if value > np.float32(bound):
            return name
    return None


def expected(text: str, words: list[str]) -> dict[str, float | None]:
    if not text:
        return dict.fromkeys(column for column, *_ in BOUNDS)
    values: dict[str, float | None] = {}
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split("\n+", text)
    for name, elements in (("paragraph", paragraphs), ("line", lines)):
        items, characters = peer.find_duplicates(elements)
        values[f"repetition_{name}s"] = items / len(elements)
        values[f"repetition_{name}_characters"] = characters / len(text)
    for size in (2, 3, 4):
        grams = peer.get_n_grams(words, size)
        values[f"repetition_top_{size}_gram"] = peer.find_top_duplicate(grams) / len(text) if grams else 0.0
    for size in range(5, 11):
        values[f"repetition_duplicate_{size}_gram"] = peer.find_all_duplicate(words, size) / len(text)
    return values


def measured(texts: list[str], words: list[list[str]]) -> list[dict[str, float | None]]:
    features = Features(text_of(pa.array(texts, pa.string())), lambda _: words_from_lists(words))
    return pa.table(repetition(features)).to_pylist()


def same(text: str, words: list[str]) -> None:
    got = measured([text], [words])[0]
    assert got == rounded(expected(text, words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "split_into_words", lambda *_: words)
        verdict = peer.GopherRepetitionFilter().filter(Document(text=text or " ", id="")) if text else (False, "empty")
    assert reason(got) == (None if verdict is True else verdict[1])  # type: ignore[index]


@settings(max_examples=300)
@given(TEXTS.map("".join) | st.text(max_size=60))
def test_lines_and_paragraphs(text: str) -> None:
    same(text, split_into_words(text))


@settings(max_examples=300)
@given(WORDS)
def test_ngrams(words: list[str]) -> None:
    same(" ".join(words), words)


@settings(max_examples=50)
@given(st.lists(WORDS, min_size=2, max_size=6))
def test_neighbours_in_the_batch_change_nothing(lists: list[list[str]]) -> None:
    texts = [" ".join(words) for words in lists]
    assert measured(texts, lists) == [measured([text], [words])[0] for text, words in zip(texts, lists, strict=True)]


def test_real_texts() -> None:
    texts = real_texts(30)
    words = [split_into_words(text) for text in texts]
    for text, mine in zip(texts, words, strict=True):
        same(text, mine)
    own, theirs = pa.table(repetition(featurise(pa.array(texts)))).to_pylist(), measured(texts, words)
    agree = sum((reason(a) is None) == (reason(b) is None) for a, b in zip(own, theirs, strict=True))
    assert agree >= 0.98 * len(texts)
