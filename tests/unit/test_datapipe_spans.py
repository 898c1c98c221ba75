"""Spans and the one place that rewrites text, against plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.text import spans

Pairs = list[tuple[int, int]]


def listed(rows: Sequence[Pairs | None]) -> pa.Array:
    return pa.array([None if row is None else [bound for pair in row for bound in pair] for row in rows], spans.TYPE)


@st.composite
def marked(draw: st.DrawFn) -> tuple[list[str], list[list[Pairs]]]:
    """Texts, and for each of some edits the spans in each text."""
    texts = draw(st.lists(st.text(alphabet="abé漢😀\n", max_size=12), min_size=1, max_size=4))
    edits = []
    for _ in range(draw(st.integers(1, 3))):
        rows = []
        for text in texts:
            at = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
            borders = [len(text[:character].encode()) for character in at]
            rows.append(list(zip(borders[::2], borders[1::2])))
        edits.append(rows)
    return texts, edits


def rewritten(text: str, edits: list[tuple[Pairs, str]]) -> str:
    """Regions of overlapping spans, each under the replacement of its longest."""
    todo = sorted((start, end, number) for number, (pairs, _) in enumerate(edits) for start, end in pairs)
    data, at, result = text.encode(), 0, b""
    while todo:
        region = [todo.pop(0)]
        while todo and todo[0][0] < max(end for _, end, _ in region):
            region.append(todo.pop(0))
        chosen = max(region, key=lambda span: (span[1] - span[0], -span[2]))
        result += data[at : region[0][0]] + edits[chosen[2]][1].encode()
        at = max(end for _, end, _ in region)
    return (result + data[at:]).decode()


@settings(max_examples=300)
@given(marked())
def test_rewriting_is_that_of_plain_python(case: tuple[list[str], list[list[Pairs]]]) -> None:
    texts, edits = case
    words = ["", "<é>", "x"][: len(edits)]
    both = list(zip(edits, words))
    expected = [rewritten(text, [(rows[row], word) for rows, word in both]) for row, text in enumerate(texts)]
    for kind in (pa.string(), pa.large_string()):
        result = spans.apply(pa.array(texts, kind), [(listed(rows), word) for rows, word in both])
        assert result.type == kind and result.to_pylist() == expected


@settings(max_examples=200)
@given(marked())
def test_union_covers_what_any_covers(case: tuple[list[str], list[list[Pairs]]]) -> None:
    texts, edits = case
    union = spans.union([listed(rows) for rows in edits])
    for row in range(len(texts)):
        covered = {at for rows in edits for start, end in rows[row] for at in range(start, end)}
        pairs = list(zip(union[row].as_py()[::2], union[row].as_py()[1::2]))
        assert {at for start, end in pairs for at in range(start, end)} == covered
        assert all(before[1] < after[0] for before, after in pairwise(pairs))
        assert spans.covered(union)[row] == len(covered)


def test_nulls_slices_and_chunks() -> None:
    texts = pa.chunked_array([["x", None], ["abc", "def"]]).slice(1)
    marks = pa.chunked_array([listed([[(0, 1)], None]), listed([[(1, 2)], None])]).slice(1)
    assert spans.apply(texts, [(marks, "-")]).to_pylist() == [None, "a-c", "def"]
    assert spans.apply(texts, []).to_pylist() == [None, "abc", "def"]
    assert spans.apply(pa.array([], pa.string()), [(listed([]), "")]).to_pylist() == []
    assert spans.union([marks, marks]).to_pylist() == [[], [1, 2], []]
    sliced = listed([[(0, 1)], [(2, 3), (4, 5)], []]).slice(1)
    assert spans.bounds_of(sliced)[0].tolist() == [2, 3, 4, 5] and spans.covered(sliced).tolist() == [2, 0]


def test_columns_are_built_from_flat_bounds() -> None:
    column = spans.column(np.array([0, 2, 5, 6], np.int32), np.array([0, 2, 2, 4], np.int64))
    assert column.type == spans.TYPE and column.to_pylist() == [[0, 2], [], [5, 6]]


@pytest.mark.parametrize("pairs", [[(0, 9)], [(-1, 1)], [(2, 1)], [(1, 2)]])
def test_spans_that_cannot_be_are_refused_with_their_row(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="row 1: span"):
        spans.apply(pa.array(["abcdef", "é"]), [(listed([[], pairs]), "")])


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts"):
        spans.apply(pa.array(["a", "b"]), [(listed([[]]), "")])
    with pytest.raises(ValueError, match="columns of spans"):
        spans.union([listed([[]]), listed([[], []])])
    with pytest.raises(ValueError, match="row 1: a list of spans"):
        spans.union([pa.array([[0, 1], [3]], spans.TYPE)])
