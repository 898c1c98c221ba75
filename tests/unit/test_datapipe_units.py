"""Lines and paragraphs as units: their places, what makes two equal, and what is left where they are cut."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile

from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup import units as module
from gristmill.datapipe.dedup.units import Kind, Units, tidied, units
from gristmill.datapipe.text import lines, spans
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.folded import fold

KINDS = st.sampled_from(["line", "paragraph"])
TEXTS = st.lists(st.text(alphabet="aB é漢-\r\n\n\n\u2028", max_size=24), max_size=5)
PARTS = {"line": r"[^\n]+\n?", "paragraph": r"[^\n]+(?:\n[^\n]+)*\n*"}


def found(texts: list[str], kind: Kind, min_words: int = 1) -> Units:
    return units(text_of(pa.array(texts, pa.large_string())), kind, min_words)


def reference(texts: list[str], kind: Kind, min_words: int) -> list[tuple[int, int, int, str]]:
    """(document, start, end, unit)"""
    rows = []
    for document, text in enumerate(texts):
        for match in re.finditer(PARTS[kind], text):
            if np.diff(fold(text_of(pa.array([match[0]]))).offsets)[0] >= min_words:
                start = len(text[: match.start()].encode())
                rows.append((document, start, start + len(match[0].encode()), match[0]))
    return rows


@settings(max_examples=200)
@given(TEXTS, KINDS, st.integers(1, 3))
def test_units_are_those_of_plain_python(texts: list[str], kind: Kind, min_words: int) -> None:
    result, expected = found(texts, kind, min_words), reference(texts, kind, min_words)
    places = zip(result.document.tolist(), result.start.tolist(), result.end.tolist())
    assert list(places) == [row[:3] for row in expected]
    assert {column.dtype for column in (result.document, result.start, result.end)} == {np.dtype(np.int32)}
    alone = [fold(text_of(pa.array([unit]))).identity[0].tolist() for *_, unit in expected]
    assert result.key.tolist() == alone and result.key.shape == (len(expected), 2)


@settings(max_examples=100)
@given(TEXTS)
def test_they_begin_where_the_lines_and_paragraphs_of_the_rules_begin(texts: list[str]) -> None:
    text = text_of(pa.array(texts, pa.large_string()))
    split = lines.lines(text)
    cases: list[tuple[Kind, lines.Items]] = [
        ("line", split),
        ("paragraph", lines.paragraphs(text, split, strip=False)),
    ]
    for kind, items in cases:
        result = units(text, kind, 1)
        starts = result.start + text.offsets[result.document]
        begins = items.items["start"]  # a paragraph of those rules may begin with a single line feed
        assert set(starts.tolist()) <= {*begins.tolist(), *(begins + 1).tolist()}


def test_space_case_and_carriage_returns_do_not_count_symbols_do() -> None:
    result = found(["One Two!\r\none   two!\n\u2028ONE two! ", "one two?"], "line")
    first = result.key[0].tolist()
    assert [key == first for key in result.key.tolist()] == [True, True, True, False]
    assert len(np.unique(found(["now here", "nowhere", "n owhere"], "line").key, axis=0)) == 3
    result = found(["A\u2028b\nc\n\n\n", "a b C\r\n"], "paragraph")
    assert result.end.tolist() == [10, 7] and (result.key[0] == result.key[1]).all()


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["\n\n", "a\n\nb c\nd\n" * 20, "", "\n\ne\u0301 f", "漢字\n", "\n"]
    for kind in ("line", "paragraph"):
        whole = found(texts, kind)
        for chunk in (1, 2, 7):
            monkeypatch.setattr(module, "_CHUNK", chunk)
            pieces = found(texts, kind)
            for name in ("document", "start", "end", "key"):
                np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
        monkeypatch.undo()


def test_hostile_bytes_stay_in_their_documents() -> None:
    column = hostile(4, [b"word\n", b"\n\n", "漢\n".encode()])
    for kind in ("line", "paragraph"):
        together = units(text_of(column), kind, 1)
        for row in range(len(column)):
            alone, mine = units(text_of(column.slice(row, 1)), kind, 1), together.document == row
            assert alone.start.tolist() == together.start[mine].tolist()
            assert alone.end.tolist() == together.end[mine].tolist()
            assert alone.key.tolist() == together.key[mine].tolist()


def test_a_large_document_of_line_feeds_and_short_lines_is_linear() -> None:
    result = found(["\n" * 5_000_000 + "a\n" * 200_000 + "\n" * 3_000_000], "line")
    assert len(result.start) == 200_000 and result.end[-1] == 5_400_000
    assert len(found(["a\n" * 1_000_000], "paragraph").start) == 1


def test_texts_without_units_and_a_bound_that_makes_no_sense() -> None:
    assert found([], "line").key.shape == found(["", "\n", "--- !\n"], "paragraph").key.shape == (0, 2)
    with pytest.raises(UsageError, match="min_words"):
        found(["a"], "line", 0)


def left(text: str, gone: set[str], kind: Kind) -> str:
    """Cuts the units that are in `gone`, tidied."""
    column = pa.array([text], pa.large_string())
    result = units(text_of(column), kind, 1)
    data = text.encode()
    pairs = [(start, end) for start, end in zip(result.start.tolist(), result.end.tolist())]
    chosen = [bound for start, end in pairs if data[start:end].decode().strip("\n") in gone for bound in (start, end)]
    cut = spans.union([pa.array([chosen], spans.TYPE)])
    return spans.apply(column, [(tidied(text_of(column), cut), "")])[0].as_py()


@pytest.mark.parametrize(
    ("text", "gone", "line", "paragraph"),
    [
        ("a\nb\nc", "b", "a\nc", "a\nb\nc"),
        ("a\n\nb\n\nc", "b", "a\n\nc", "a\n\nc"),
        ("a\nb\n\nc", "b", "a\n\nc", "a\nb\n\nc"),
        ("a\n\nb\nc", "b", "a\n\nc", "a\n\nb\nc"),
        ("a\n\nb\n\n\nc\nd\n\n\n\ne\n", "bcd", "a\n\n\n\ne\n", "a\n\n\nc\nd\n\n\n\ne\n"),
        ("a\n\nb", "b", "a", "a"),
        ("a\n\nb\n\n", "b", "a\n\n", "a\n\n"),
        ("a\n\nb\n\nc\n", "bc", "a\n", "a\n"),
        ("\na\n\nb\n", "a", "\nb\n", "\nb\n"),
        ("\n\na\n\nb\n", "ab", "", ""),
        ("a\n\n---\n\nb", "ab", "---", "---"),
    ],
)
def test_cutting_leaves_no_empty_line_and_joins_no_paragraphs(text: str, gone: str, line: str, paragraph: str) -> None:
    assert left(text, set(gone), "line") == line
    assert left(text, set(gone), "paragraph") == paragraph


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "é b", "-"]), st.integers(1, 4)), max_size=8),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sets(st.sampled_from(["a", "é b"])),
)
def test_of_the_line_feeds_around_a_cut_the_longer_run_stays(
    parts: list[tuple[str, int]], ends: tuple[int, int], gone: set[str]
) -> None:
    """Reference: runs of line feeds between what is kept become one, as long as the longer at the two edges."""
    words, feeds = [word for word, _ in parts], [ends[0], *(feed for _, feed in parts[:-1]), ends[1]]
    if not parts:
        return
    text = "\n" * feeds[0] + "".join(word + "\n" * feed for word, feed in zip(words, feeds[1:]))
    kept = [at for at, word in enumerate(words) if word not in gone]
    expected = "\n" * feeds[0] if kept else ("" if words else text)
    for at, then in zip(kept, [*kept[1:], None]):
        run = feeds[-1] if then is None else max(feeds[at + 1], feeds[then])
        expected += words[at] + "\n" * run
    assert left(text, gone, "line") == expected


def test_spans_that_do_not_fit_the_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 texts, but spans for 2"):
        tidied(text_of(pa.array(["a"])), pa.array([[], []], spans.TYPE))
