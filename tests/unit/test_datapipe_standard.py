"""Words by Unicode's boundaries, against the regex library's own.

That library strays from the standard where marks stand beside a period or quote, and between apostrophe and vowel.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.standard import count_words, next_word, split, word_kinds

ASSIGNED = st.characters(exclude_categories=("Cs", "Cn", "Co"))
TRICKY = 'zZ1_.,:;\'’" \n\u0301\u200d\u00adאב"漢カｶ゛ひไท한٣½²Ⅷ-😀©\u202f＿\r'


def words_of(text: str) -> list[str]:
    parts = regex.split(r"(?wV1)\b", text)
    return [part for part in parts if regex.search(r"[\p{Alphabetic}\p{N}]", part)]


def found(text: str) -> list[str]:
    data, kinds = np.frombuffer(text.encode() + b"x", np.uint8), word_kinds()
    end, words = len(data) - 1, []
    at, stop = next_word(data, 0, end, kinds)
    while at < stop:
        words.append(data[at:stop].tobytes().decode())
        at, stop = next_word(data, stop, end, kinds)
    assert count_words(data, 0, end, kinds) == len(words)
    ours, listed = split(text_of(pa.array([text]))), words_from_lists([words])
    assert ours.offsets.tolist() == listed.offsets.tolist() and np.array_equal(ours.items, listed.items)
    return words


@settings(max_examples=1000)
@given(st.text(alphabet=TRICKY, max_size=30))
def test_tricky_texts_have_the_words_of_the_standard(text: str) -> None:
    text = regex.sub(
        "(?<=[_.,:;'’\"])[\u0301\u200d\u00ad]+|[\u0301\u200d\u00ad]+(?=[_.,:;'’\"])|\u200d+(?=[😀©])", "", text
    )
    assert [word.strip("\u0301\u200d\u00ad'\"") for word in found(text)] == [
        word.strip("\u0301\u200d\u00ad'\"") for word in words_of(text)
    ]


@settings(max_examples=300)
@given(st.text(alphabet=ASSIGNED, max_size=20))
def test_any_unicode_has_as_many_words(text: str) -> None:
    text = "".join(character for character in text if unicodedata.category(character)[0] not in "MC")
    assert len(found(text)) == len(words_of(text))


def test_real_text() -> None:
    text = Path(unicodedata.__file__).parents[1].joinpath("random.py").read_text() + Path(__file__).read_text()
    text = regex.sub("['’]", "", text)
    assert found(text) == words_of(text)


def test_by_example() -> None:
    assert found(
        "Can't stop: 3.14, 1,000.5 1,a 1\uff1b5 _a_ foo_bar a.b.c x:y 'quoted' רש\"י "
        "漢字 カタカナ ไ e\u0301a\u200db m² naïve—yes l’an Ⓐ __ \u0301"
    ) == [
        "Can't", "stop", "3.14", "1,000.5", "1", "a", "1\uff1b5", "_a_", "foo_bar", "a.b.c", "x:y", "quoted", "רש\"י",
        "漢", "字", "カタカナ", "ไ", "e\u0301a\u200db", "m", "²", "naïve", "yes", "l’an", "Ⓐ",
    ]  # fmt: skip


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_text(data: bytes) -> None:
    array = np.frombuffer(data + b"x", np.uint8)
    assert 0 <= count_words(array, 0, len(data), word_kinds()) <= len(data)
