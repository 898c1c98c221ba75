"""C4's rules on hostile input, by size, and by example; tests/parity holds them against datatrove's."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import UsageError
from gristmill.datapipe.filters.bad_words import BadWordsConfig, bad_words, words_path
from gristmill.datapipe.filters.c4 import C4Config, c4
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.sentences import rules, sentence_starts

CONFIGS = [C4Config(), C4Config("sentences"), C4Config(terminal=False, min_words=-1, max_word_length=-1)]


def left(text: str, config: C4Config | None = None) -> str:
    return spans.apply(pa.array([text]), [(c4(pa.array([text]), config)["c4_cut"], "")])[0].as_py()


def sentences(text: str) -> list[str]:
    data = np.frombuffer(text.encode() + b"x", np.uint8)
    starts = np.empty(len(data), np.int64)
    bounds = [0, *starts[: sentence_starts(data, 0, len(data) - 1, rules(), starts) - 1], len(data) - 1]
    return [data[start:end].tobytes().decode().strip() for start, end in pairwise(bounds)]


def test_what_is_cut_and_counted() -> None:
    text = (
        "  A line that stays [1] here.  \r\nMenu\n\nUses cookies and more.\nNo end to this line\nIt stays. It does!\n"
    )
    columns = c4(pa.array([text]))
    row = {name: column[0] for name, column in columns.items()}
    assert left(text) == "A line that stays  here.\nIt stays. It does!"
    assert (row["c4_lines"], row["c4_lines_kept"], row["c4_sentences"], row["c4_lines_policy"]) == (6, 2, 3, 1)
    assert row["c4_lines_no_terminal"] == 3 and row["c4_stop"].as_py() is None


@pytest.mark.parametrize(("text", "parts"), [
    ("Mr. Smith went. He came back.", 2), ("See www.Example.com/a.B for it.", 1), ("The U.S. is big. It is.", 2),
    ("e.g. this, i.e. that.", 1), ("Wait... what?! No.", 2), ("It ended.[2] Then.", 1), ("one.Two", 2), ("", 1),
    ("...", 1), ("About 15 °C. Then more.", 2), ("A Ph.D. thesis. Done.", 2), ('He said "No." Then left.', 2),
    ("Plan B. Then C.", 1),
])  # fmt: skip
def test_sentences(text: str, parts: int) -> None:
    assert len(sentences(text)) == parts


def test_separators_that_are_no_newline_stay() -> None:
    text = "This is a line.\u2028This is another.\rAnd a third one."
    assert left(text) == text
    assert left("This is a line. \r Menu \n And a third one.") == "This is a line.\nAnd a third one."
    assert (
        left("It ends.\n\nNo words. It goes on here.", C4Config("sentences", min_words=2))
        == "It ends.\nNo words. It goes on here."
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_and_nearly_nothing(config: C4Config) -> None:
    texts = pa.array(["", " ", "\n", "\0", "\u2028", "[1]", "\u202eא.\u0301", None, "😀."])
    columns = c4(texts, config)
    assert all(len(column) == len(texts) for column in columns.values())
    assert columns["c4_cut"].type == spans.TYPE and columns["c4_cut"].null_count == 0
    assert c4(pa.array([], pa.string()), config)["c4_cut"].to_pylist() == []


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.sampled_from(CONFIGS))
def test_bytes_that_are_no_text(blobs: list[bytes], config: C4Config) -> None:
    data, ends = b"".join(blobs), np.cumsum([0, *map(len, blobs)], dtype=np.int64)
    texts = pa.Array.from_buffers(pa.large_string(), len(blobs), [None, pa.py_buffer(ends), pa.py_buffer(data)])
    columns = c4(texts, config)
    size = np.array([len(blob) for blob in blobs])
    assert (spans.covered(columns["c4_cut"]) <= size).all()
    assert len(spans.apply(texts, [(columns["c4_cut"], "")])) == len(blobs)


@settings(max_examples=300)
@given(st.text(max_size=80), st.sampled_from(CONFIGS))
def test_what_is_left_is_text_and_is_left_again(text: str, config: C4Config) -> None:
    once = left(text, config)
    assert once == once.strip() and len(once) <= len(text)


@pytest.mark.parametrize(
    "piece", ["[", "[1", "[1]", "a.B", "a.", ".", "!", "a@", "://", " ", "\r", "it is. ", "{", "a\n"]
)
@pytest.mark.parametrize("config", CONFIGS)
def test_repeats_cost_linear_time(piece: str, config: C4Config) -> None:
    def seconds(size: int) -> float:
        text, best = pa.array([piece * (size // len(piece)) + " some words here."]), sys.float_info.max
        for _ in range(3):
            start = time.process_time()
            c4(text, config)
            best = min(best, time.process_time() - start)
        return best

    seconds(100)  # compiles
    assert seconds(1 << 21) < 64 * seconds(1 << 17) + 0.05


def test_bad_words_are_whole_words_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("bad\n\nvery  bad\nnasty phrase\n漢\n")
    texts = pa.array(["A BAD nasty phrase.", "badly, _bad, bad1", "", "漢字 is bad", None])
    assert bad_words(texts, BadWordsConfig(str(path)))["c4_bad_words"].tolist() == [2, 0, 0, 1, 0]
    assert bad_words(texts, BadWordsConfig(str(path), whole_words=False))["c4_bad_words"].tolist() == [2, 3, 0, 2, 0]


def test_a_list_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, message in (("gone", "is no file"), ("empty", "holds no word"), ("latin", "no UTF-8")):
        with pytest.raises(UsageError, match=message):
            bad_words(pa.array(["x"]), BadWordsConfig(str(tmp_path / name)))
    assert words_path(BadWordsConfig()).is_file()
