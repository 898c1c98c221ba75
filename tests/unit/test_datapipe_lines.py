"""Lines and paragraphs, and which repeat, against plain Python."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile
from tests.support.word_lists import words_from_lists

from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.lines import Items, lines, paragraphs

TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "é", " ", "\n", "\n\n", "\t", "\r\n", "\u2003"]), max_size=30).map("".join)
    | st.text(max_size=30),
    min_size=1,
    max_size=4,
)


def check(items: Items, expected: list[list[str]]) -> None:
    same = words_from_lists(expected)
    assert items.offsets.tolist() == same.offsets.tolist()
    for field in ("hash", "size", "length"):
        assert items.items[field].tolist() == same.items[field].tolist()
    flat = [(document, item) for document, found in enumerate(expected) for item in found]
    assert items.later.tolist() == [item in flat[:at] for at, item in enumerate(flat)]
    assert items.shared.tolist() == [flat.count(item) > 1 for item in flat]


@settings(max_examples=300)
@given(TEXTS)
def test_lines(texts: list[str]) -> None:
    items = lines(text_of(pa.array(texts)))
    expected = [[line for line in text.split("\n") if line] for text in texts]
    check(items, expected)
    flat = [line for found in expected for line in found]
    assert items.items["last"].tolist() == [ord(line[-1]) for line in flat]
    assert items.items["blank"].tolist() == [not line.strip() for line in flat]


@settings(max_examples=300)
@given(TEXTS)
def test_paragraphs(texts: list[str]) -> None:
    text = text_of(pa.array(texts))
    stripped = [[part for part in re.split(r"\n{2,}", each.strip()) if part] for each in texts]
    check(paragraphs(text, lines(text), strip=True), stripped)
    collapsed = [[part for part in re.sub(r"\n{3,}", "\n\n", each).split("\n\n") if part] for each in texts]
    check(paragraphs(text, lines(text), strip=False), collapsed)


@pytest.mark.parametrize("seed", range(3))
def test_hostile_bytes(seed: int) -> None:
    text = text_of(hostile(seed, [b"line\n", b"\n\n", b"\xe2\x80\xa8"]))
    found = lines(text)
    assert (found.items["size"] > 0).all() and (found.first <= range(len(found.first))).all()
    for strip in (True, False):
        assert (paragraphs(text, found, strip).items["length"] <= paragraphs(text, found, strip).items["size"]).all()
