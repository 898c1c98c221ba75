"""Toxicity against the package whose weights it takes, window by window, and on text of any kind."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profanity_check import predict_prob, profanity_check

from gristmill.base.errors import UsageError
from gristmill.datapipe.filters.toxicity import Toxicity, ToxicityConfig

WORD = re.compile(r"(?u)\b\w\w+\b")
CALM = """The river flows past an old mill, below the village where my grandmother kept bees. In spring its water
rises to the third step; every boat is then pulled up and tied under the chestnut trees. Travellers stay at the inn,
read newspapers from last week, and wait for the ferryman to decide that crossing is safe again.
"""
WORDS = [
    "you",
    "are",
    "an",
    "idiot",
    "lovely",
    "stupid",
    "damn",
    "article",
    "Wikipedia",
    "shit",
    "xqzzy",
    "josé",
    "STUPID",
]


def windows(text: str, size: int) -> list[list[str]]:
    words = WORD.findall(text.lower())
    return [words[start : start + size] for start in range(max(1, len(words) - size + 1))]


def by_package(text: str, size: int) -> tuple[float, float] | None:
    """(worst, mean) of predict_prob over the windows that hold a word of its vocabulary."""
    known = profanity_check.vectorizer.vocabulary_
    judged = [" ".join(words) for words in windows(text, size) if any(word in known for word in words)]
    chances = predict_prob(judged) if judged else []
    return (float(np.max(chances)), float(np.mean(chances))) if judged else None


@pytest.fixture(scope="module")
def small() -> Toxicity:
    return Toxicity(ToxicityConfig(window=5))


@settings(max_examples=100)
@given(st.lists(st.lists(st.sampled_from([*WORDS, ".", "a", "漢字", "\n"]), max_size=25), min_size=1, max_size=4))
def test_every_window_is_judged_as_by_the_package(small: Toxicity, documents: list[list[str]]) -> None:
    texts = [" ".join(words) for words in documents]
    got = small.measure(pa.array(texts))
    for row, text in enumerate(texts):
        expected = by_package(text, 5)
        if expected is None:
            assert got["score"][row].as_py() is None and got["mean"][row].as_py() is None
        else:
            assert (got["score"][row].as_py(), got["mean"][row].as_py()) == pytest.approx(expected, abs=1e-5)


def test_a_short_text_scores_as_by_the_package_and_a_long_one_by_its_worst_passage() -> None:
    toxicity = Toxicity(ToxicityConfig())
    insult, calm = "You are a stupid idiot, shut up.", CALM * 10
    short, long, quiet = toxicity.measure(pa.array([insult, calm + insult + calm, calm]))["score"].to_pylist()
    assert short == pytest.approx(predict_prob([insult])[0], abs=1e-5) and short > 0.9
    assert long > 0.7 > 0.3 > quiet
    assert predict_prob([calm + insult + calm])[0] < long  # which is why there are windows


def test_real_files_score_as_by_the_package(small: Toxicity) -> None:
    page = next(Path(sysconfig.get_paths()["purelib"]).glob("numpy-*.dist-info/METADATA")).read_text(encoding="utf-8")
    texts = [page[:3000], page[3000:5000]]
    got = small.measure(pa.array(texts))["score"].to_pylist()
    assert got == pytest.approx([by_package(text, 5)[0] for text in texts], abs=1e-5)  # type: ignore[index]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4))
def test_any_bytes_give_a_chance_or_null(small: Toxicity, blobs: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, blobs)]).astype(np.int64)
    column = pa.LargeStringArray.from_buffers(len(blobs), pa.py_buffer(offsets), pa.py_buffer(b"".join(blobs) or b"\0"))
    for column_name in ("score", "mean"):
        values = small.measure(column)[column_name].to_pylist()
        assert all(value is None or 0 <= value <= 1 for value in values)


def test_what_was_read_before_changes_nothing(small: Toxicity) -> None:
    alone = small.measure(pa.array(["you lovely damn article"]))
    among = small.measure(pa.chunked_array([["stupid idiot " * 20, None], ["", "you lovely damn article"]]))
    assert among["score"][3] == alone["score"][0] and among["mean"][3] == alone["mean"][0]
    assert among["score"].to_pylist()[1:3] == [None, None]


def test_a_window_without_words_is_refused() -> None:
    with pytest.raises(UsageError, match="window"):
        Toxicity(ToxicityConfig(window=0))
