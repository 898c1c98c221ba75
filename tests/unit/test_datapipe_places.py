"""Words with their places: the same words as near-duplicates are found by, and the bytes that they stand in."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile

from gristmill.datapipe.text.buffers import Text, text_of
from gristmill.datapipe.text.folded import fold
from gristmill.datapipe.text.places import places

PIECES = st.sampled_from(
    ["Word", " ", "\n", "ÉCOLE", "漢", "字", "ไ", "7", ".", "-", "İ", "e\u0301", "א", "👩‍👩", "ß", "\0"]
)
TEXTS = st.lists(st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join), max_size=6)


def texts_of(rows: list[str]) -> Text:
    return text_of(pa.array(rows, pa.large_string()))


@given(TEXTS)
def test_words_equal_those_of_folding_where_the_text_is_in_nfc(rows: list[str]) -> None:
    text = texts_of([unicodedata.normalize("NFC", row.encode("utf-8", "replace").decode()) for row in rows])
    found, expected = places(text), fold(text)
    np.testing.assert_array_equal(found.hashes, expected.hashes)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@given(TEXTS)
def test_each_place_holds_its_word_alone(rows: list[str]) -> None:
    text = texts_of([row.encode("utf-8", "replace").decode() for row in rows])
    found = places(text)
    for row, (first, last) in enumerate(pairwise(found.offsets.tolist())):
        own, before = text.data[text.offsets[row] : text.offsets[row + 1]].tobytes(), 0
        for start, end, value in zip(found.starts[first:last], found.ends[first:last], found.hashes[first:last]):
            assert before <= start < end
            assert places(texts_of([own[start:end].decode()])).hashes.tolist() == [value]
            before = end


def test_places_are_those_of_the_text_as_it_stands() -> None:
    body = "An école, e\u0301cole 漢字"
    found = places(text_of(pa.array(["before", "", body], pa.large_string()).slice(1)))
    words = [body.encode()[start:end].decode() for start, end in zip(found.starts, found.ends)]
    assert words == ["An", "école", "e\u0301cole", "漢", "字"]
    assert found.hashes[1] != found.hashes[2]  # not composed, not the same word
    assert found.offsets.tolist() == [0, 0, 5]


def test_a_text_of_one_letter_words_takes_sixteen_bytes_for_each() -> None:
    """Its words are half as many as its bytes, and a document may have 100 MB."""
    found = places(texts_of(["a " * 1000]))
    assert found.hashes.itemsize + found.starts.itemsize + found.ends.itemsize == 16
    assert (found.starts == np.arange(0, 2000, 2)).all() and (found.ends == found.starts + 1).all()


def test_a_slice_of_a_buffer_and_bytes_that_are_no_text_stay_inside() -> None:
    column = hostile(3, [b"word", "漢".encode(), b" "])
    text = text_of(column)
    found = places(text)
    assert (found.starts >= 0).all() and (found.ends <= np.repeat(np.diff(text.offsets), np.diff(found.offsets))).all()
    for row in range(len(text)):
        alone = places(Text(text.data, text.offsets[row : row + 2]))
        here = slice(found.offsets[row], found.offsets[row + 1])
        for name in ("hashes", "starts", "ends"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(found, name)[here])
