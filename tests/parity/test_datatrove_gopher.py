"""Gopher's quality rules against datatrove's: each value, and the verdict and reason that follow from them."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import gopher_quality_filter as peer
from datatrove.utils.text import PUNCTUATION_SET, split_into_words
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.float32 import rounded
from tests.support.real_texts import real_texts
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.filters.gopher import gopher
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.features import Features, featurise

PIECES = [
    "the", "The", "be", "to", "of", "and", "x1", "42", "…", "...", ".", "....", "#", "-", "•", "—", "é", "漢字", "a.b",
    "\x07", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\x0b", "\x1c", "\x85", "\u2028", "\u00a0",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60)

# datatrove's order, bounds and reasons; float32, as the columns are.
BOUNDS = (
    ("gopher_words", 50, None, "gopher_short_doc"),
    ("gopher_words", None, 100_000, "gopher_long_doc"),
    ("gopher_mean_word_length", 3, None, "gopher_below_avg_threshold"),
    ("gopher_mean_word_length", None, 10, "gopher_above_avg_threshold"),
    ("gopher_hashes", None, 0.1, "gopher_too_many_hashes"),
    ("gopher_ellipses", None, 0.1, "gopher_too_many_ellipsis"),
    ("gopher_bullet_lines", None, 0.9, "gopher_too_many_bullets"),
    ("gopher_ellipsis_lines", None, 0.3, "gopher_too_many_end_ellipsis"),
    ("gopher_alphabetic_words", 0.8, None, "gopher_below_alpha_threshold"),
    ("gopher_stop_words", 2, None, "gopher_enough_stop_words"),
)


def reason(values: dict[str, float | None], smallest: int = 50) -> str | None:
    for column, low, high, name in BOUNDS:
        value = values[column]
        low = smallest if name == "gopher_short_doc" else low
        if value is None or (low is not None and value < np.float32(low)):
            return name
        if high is not None and value > np.float32(high):
            return name
    return None


def expected(text: str, words: list[str]) -> dict[str, float | None]:
    """GopherQualityFilter.filter(), value by value."""
    real = [word for word in words if any(character not in PUNCTUATION_SET for character in word)]
    lines = text.splitlines()

    def share(part: float, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "gopher_words": len(real),
        "gopher_mean_word_length": share(sum(map(len, real)), len(real)),
        "gopher_hashes": share(text.count("#"), len(words)),
        "gopher_ellipses": share(text.count("...") + text.count("…"), len(words)),
        "gopher_bullet_lines": share(sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines)),
        "gopher_ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)),
        "gopher_alphabetic_words": share(sum(any(c.isalpha() for c in word) for word in words), len(words)),
        "gopher_stop_words": len(set(peer.STOP_WORDS) & set(words)),
    }


def measured(texts: list[str], words: list[list[str]]) -> list[dict[str, float | None]]:
    features = Features(text_of(pa.array(texts, pa.string())), lambda _: words_from_lists(words))
    return pa.table(gopher(features)).to_pylist()


def same(text: str, words: list[str], monkeypatch: pytest.MonkeyPatch, smallest: int = 50) -> None:
    got = measured([text], [words])[0]
    assert got == rounded(expected(text, words))
    monkeypatch.setattr(peer, "split_into_words", lambda *_: words)
    if got["gopher_mean_word_length"] is None or got["gopher_bullet_lines"] is None:
        return  # datatrove divides by zero there, or gives up before it does
    verdict = peer.GopherQualityFilter(min_doc_words=smallest).filter(Document(text=text, id=""))
    assert reason(got, smallest) == (None if verdict is True else verdict[1])  # type: ignore[index]


@settings(max_examples=300)
@given(TEXTS)
def test_values_and_verdict_with_the_peers_words(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(text, split_into_words(text), patch, smallest=1)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([p for p in PIECES if p.strip()] + ["a…", "..", "#1", "\U0001f600"]), max_size=20))
def test_values_with_any_words(words: list[str]) -> None:
    assert measured([" ".join(words)], [words])[0] == rounded(expected(" ".join(words), words))


def test_real_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = real_texts(30)
    words = [split_into_words(text) for text in texts]
    for text, mine in zip(texts, words, strict=True):
        same(text, mine, monkeypatch)
    own = pa.table(gopher(featurise(pa.array(texts)))).to_pylist()  # with our splitter
    theirs = measured(texts, words)
    agree = sum((reason(a) is None) == (reason(b) is None) for a, b in zip(own, theirs, strict=True))
    assert agree >= 0.98 * len(texts)
