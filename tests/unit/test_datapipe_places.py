"""Words with their places: the same words as near-duplicates are found by, and the bytes that they stand in."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
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


@settings(deadline=None)
@given(TEXTS)
def test_words_equal_those_of_folding_where_the_text_is_in_nfc(rows: list[str]) -> None:
    text = texts_of([unicodedata.normalize("NFC", row.encode("utf-8", "replace").decode()) for row in rows])
    found, expected = places(text), fold(text)
    np.testing.assert_array_equal(found.hashes, expected.hashes)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


@settings(deadline=None)
@given(TEXTS)
def test_each_place_holds_its_word_alone(rows: list[str]) -> None:
    text = texts_of([row.encode("utf-8", "replace").decode() for row in rows])
    found = places(text)
    for start, end, value in zip(found.starts, found.ends, found.hashes):
        alone = places(texts_of([text.data[start:end].tobytes().decode()]))
        assert alone.hashes.tolist() == [value]
    inside = np.concatenate([np.repeat(text.offsets[:-1], np.diff(found.offsets)), [0]])[:-1]
    assert (found.starts >= inside).all() and (found.starts < found.ends).all()
    assert (found.ends[:-1] <= found.starts[1:]).all()


def test_places_are_those_of_the_text_as_it_stands() -> None:
    text = texts_of(["", "An école, e\u0301cole 漢字"])
    found = places(text)
    words = [text.data[start:end].tobytes().decode() for start, end in zip(found.starts, found.ends)]
    assert words == ["An", "école", "e\u0301cole", "漢", "字"]
    assert found.hashes[1] != found.hashes[2]  # not composed, not the same word
    assert found.offsets.tolist() == [0, 0, 5]


def test_a_slice_of_a_buffer_and_bytes_that_are_no_text_stay_inside() -> None:
    column = hostile(3, [b"word", "漢".encode(), b" "])
    text = text_of(column)
    found = places(text)
    assert (found.starts >= text.offsets[0]).all() and (found.ends <= text.offsets[-1]).all()
    for row in range(len(text)):
        alone = places(Text(text.data, text.offsets[row : row + 2]))
        here = slice(found.offsets[row], found.offsets[row + 1])
        for name in ("hashes", "starts", "ends"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(found, name)[here])
