"""FineWeb's rules against datatrove's: each value, and the verdict and reason that follow from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import fineweb_quality_filter as peer
from datatrove.utils.text import TERMINAL_PUNCTUATION, split_into_words
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.float32 import rounded
from tests.support.real_texts import real_texts
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.filters.fineweb import FineWebConfig, fineweb
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.features import Features, featurise

PIECES = [
    "word", "a longer line of some words that goes on", ".", "?", "。", "…", "!", ")", " ", "\t", "\n", "\n\n", "\r\n",
    "\r", "\u2028", "é", "漢字", "x" * 29, "x" * 30,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)


DEFAULT = FineWebConfig()
NAMES = ("terminal_lines", "short_lines", "duplicate_characters", "newlines_per_word")


def reason(values: dict[str, float | None]) -> str | None:
    """datatrove's order, bounds and reasons; float32, as the columns are."""
    terminal, short, repeated, newlines = (values[f"fineweb_{name}"] for name in NAMES)
    if terminal is None or short is None or repeated is None:
        return "empty"
    if terminal < np.float32(0.12):
        return "line_punct_ratio"
    if short > np.float32(0.67):
        return "short_line_ratio"
    if repeated > np.float32(0.01):
        return "char_dup_ratio"
    return "list_ratio" if newlines is None or newlines > np.float32(0.3) else None


def expected(
    text: str, words: list[str], stops: tuple[str, ...] = tuple(TERMINAL_PUNCTUATION)
) -> dict[str, float | None]:
    lines = [line for line in text.split("\n") if line.strip()]
    values: dict[str, float | None] = dict.fromkeys(f"fineweb_{name}" for name in NAMES)
    if lines:
        values["fineweb_terminal_lines"] = sum(line.endswith(tuple(stops)) for line in lines) / len(lines)
        values["fineweb_short_lines"] = sum(len(line) <= 30 for line in lines) / len(lines)
        values["fineweb_duplicate_characters"] = peer.find_duplicates(lines)[1] / len(text.replace("\n", ""))
    if words:
        values["fineweb_newlines_per_word"] = text.count("\n") / len(words)
    return values


def measured(
    texts: list[str], words: list[list[str]], config: FineWebConfig = DEFAULT
) -> list[dict[str, float | None]]:
    features = Features(text_of(pa.array(texts, pa.string())), lambda _: words_from_lists(words))
    return pa.table(fineweb(features, config)).to_pylist()


def same(text: str, words: list[str]) -> None:
    got = measured([text], [words])[0]
    assert got == rounded(expected(text, words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "split_into_words", lambda *_: words)
        if words or reason(got) != "list_ratio":  # datatrove divides by zero without words
            verdict = peer.FineWebQualityFilter().filter(Document(text=text or "\n", id=""))
            assert reason(got) == (None if verdict is True else verdict[1])  # type: ignore[index]


@settings(max_examples=300)
@given(TEXTS)
def test_values_and_verdict_with_the_peers_words(text: str) -> None:
    same(text, split_into_words(text))


@settings(max_examples=50)
@given(TEXTS)
def test_other_stop_characters(text: str) -> None:
    got = measured([text], [["x"]], FineWebConfig(stop_characters="x)é"))[0]
    assert got == rounded(expected(text, ["x"], ("x", ")", "é")))


def test_real_texts() -> None:
    texts = real_texts(30)
    words = [split_into_words(text) for text in texts]
    for text, mine in zip(texts, words, strict=True):
        same(text, mine)
    own, theirs = pa.table(fineweb(featurise(pa.array(texts)))).to_pylist(), measured(texts, words)
    agree = sum((reason(a) is None) == (reason(b) is None) for a, b in zip(own, theirs, strict=True))
    assert agree >= 0.98 * len(texts)
