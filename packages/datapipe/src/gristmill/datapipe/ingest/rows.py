"""What every reader yields: a row, or the report of what could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    number: int
    """The line (from 1), the row of a Parquet file (from 0), or the offset of a WARC record (from 0)."""
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bad:
    number: int | None
    reason: str
    """One of few, so that they can be counted; the particulars are in `detail`."""
    detail: str = ""
    sample: str = ""
    rows: int = 1


@dataclass(frozen=True)
class Span:
    """Part of a file: the lines that begin in bytes [start, end), or the row groups [start, end)."""

    start: int
    end: int
    first: int
    """JSONL: line feeds before byte `start`. Parquet: rows before row group `start`."""
