"""A few members of a cluster for people to read, and where their texts part."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.workflow.stage import Inputs

SAMPLES, EXCERPT = 3, 400
READ = 100_000
"""Characters of a shown document that are read; a longer one is compared so far."""
PIECE, PIECES, BEFORE, DIFF_LINES = 160, 120, 200, 40
"""Differences are shown by sentence: its length at most, how many are compared, characters shown before, and lines."""
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?。！？])\s+")
_PIECE = re.compile(rf".{{1,{PIECE}}}(?:\s|$)|.{{1,{PIECE}}}")


def choose(rows: NDArray[np.int64], keep: NDArray[np.bool_], similarity: NDArray[np.float32]) -> list[int]:
    """Up to SAMPLES members: the first, the first that is kept, and at the end the one that is least like any other."""
    known = rows[np.isfinite(similarity[rows])]
    first, least = rows[0], known[np.argmin(similarity[known])] if len(known) else rows[-1]
    ends = [int(row) for row in dict.fromkeys([first, least])]
    others = dict.fromkeys(int(row) for row in [*rows[keep[rows]][:1], rows[-1], rows[len(rows) // 2]])
    between = [row for row in others if row not in ends][: SAMPLES - len(ends)]
    return [ends[0], *between, *ends[1:]]


def read_documents(inputs: Inputs, rows: NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    """id, source, characters and the beginning of the text of a few rows, one partition at a time."""
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for part in inputs.parts["documents"]:
        length = pq.read_metadata(inputs.folders["documents"] / part).num_rows
        here = rows[(rows >= start) & (rows < start + length)]
        if len(here):
            table = inputs.part("documents", part, ("id", "source", "text")).take(pa.array(here - start))
            text = pc.fill_null(table["text"], "")
            table = table.set_column(2, "text", pc.utf8_slice_codeunits(text, 0, READ))
            table = table.append_column("characters", pc.utf8_length(text))
            found |= dict(zip(here.tolist(), table.to_pylist(), strict=True))
        start += length
    return found


def difference(one: str, other: str) -> list[str]:
    """Where two texts part, by sentence: the lines of a unified diff, " ", "-" or "+" before each, "@@" between places.

    It begins a little before the first difference and is cut after DIFF_LINES.
    """
    alike = next((at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
    start = max(0, alike - BEFORE)
    before, after = (list(_sentences(text[start : start + PIECE * PIECES])) for text in (one, other))
    lines = list(difflib.unified_diff(before, after, lineterm="", n=1))[3:]  # after its heading and the first place
    lines = ["@@" if line.startswith("@@") else line for line in lines]
    return lines if len(lines) <= DIFF_LINES else [*lines[:DIFF_LINES], "@@"]


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text)[:PIECES]:
        yield from (piece.rstrip() for piece in _PIECE.findall(sentence))
