"""MADLAD-400's rules against a plain transcription of datamap-rs."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.madlad import _CURSED, madlad
from gristmill.datapipe.text.standard import next_word, word_kinds

PATTERNS = [
    re.compile(" ..." * 9),
    re.compile(" ...." * 9),
    re.compile(" [^ ]" * 9),
    re.compile(", ..,,?" + " ..,,?" * 3),
]
PIECES = [
    "Two Words", "word", "Aa Bb Cc Dd Ee Ff Gg Hh Ii Jj Kk Ll", ".", "!", "? ", "... ", " ", "\n", " abc", " abcd",
    " a", " b c", " abc def ghi jkl mno pqr stu vwx yza", ", ab, cd,, ef, gh,", ", ab,", " cd,,", "mp3", "MP3",
    "Facebook", " nr.", "\ufffd", "Vol\\.", " a\nb",
]  # fmt: skip


def words_of(text: str) -> list[str]:
    data, words = np.frombuffer(text.encode() + b"x", np.uint8), []
    at, stop = next_word(data, 0, len(data) - 1, word_kinds())
    while at < stop:
        words.append(data[at:stop].tobytes().decode())
        at, stop = next_word(data, stop, len(data) - 1, word_kinds())
    return words


def expected(text: str) -> list[float | None]:
    sentences = [sentence for sentence in re.split(r"[.!?]+\s+", text) if sentence.strip()]
    lists, curses = [], []
    for sentence in sentences:
        words = words_of(sentence)
        lists.append(len(words) >= 12 and sum(word[0].isupper() for word in words) > len(words) * 0.5)
        literal = any(phrase in sentence for phrase in [*_CURSED, "\ufffd" * 3])
        curses.append(literal or any(pattern.search(sentence) for pattern in PATTERNS))
    either = sum(map(max, zip(lists, curses, strict=True)))
    return [len(sentences), sum(lists), sum(curses), either / len(sentences) if sentences else None]


def check(text: str) -> None:
    row = [column[0] for column in madlad(pa.array([text])).values()]
    share = expected(text)[3]
    assert row[:3] == expected(text)[:3]
    assert row[3].as_py() == (None if share is None else pytest.approx(share, abs=1e-6))


@settings(max_examples=800)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
@example(" abc" * 9)
@example(" abc" * 8 + " ab")
@example(" abcd" * 9)
@example(", ab, cd, ef, gh")
@example(", ab,, cd, ef,, gh,")
def test_sentences_of_either_kind_are_counted(text: str) -> None:
    check(text)


@settings(max_examples=500)
@given(st.text(alphabet=" a,.\n", max_size=80))
def test_patterns_over_few_characters(text: str) -> None:
    check(text)


def test_real_text() -> None:
    for file in sorted(Path(sysconfig.get_paths()["purelib"]).glob("*/METADATA"))[:60]:
        check(re.sub("[\x1c-\x1f]", "", file.read_text(errors="replace")))


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    texts = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)])
    assert madlad(texts)["olmo3_sentences"][0] >= 0
