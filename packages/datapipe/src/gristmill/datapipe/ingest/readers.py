"""Rows out of files that may be broken anywhere: every reader yields rows, and Bad for what it had to leave out."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import orjson

from gristmill.base.files import limited_lines
from gristmill.datapipe.ingest import parquet, warc
from gristmill.datapipe.ingest.compressed import CORRUPT, decompressed
from gristmill.datapipe.ingest.rows import Bad, Row, Span
from gristmill.datapipe.ingest.storage import Location, open_input, size_of

__all__ = ["Bad", "Row", "Span", "read_rows"]

DEFAULT_PAGE = warc.PageConfig()
SAMPLE_CHARACTERS = 200
INT64 = 2.0**63
SEEK_BYTES = 2**20


def read_rows(
    path: Location,
    name: str,
    text_field: str,
    max_line_bytes: int,
    span: Span | None = None,
    page: warc.PageConfig = DEFAULT_PAGE,
) -> Iterator[Row | Bad]:
    """All rows of an input file, or those of `span`; the suffix of `name` says of what kind it is.

    Raises:
        GristmillError: the file cannot be read at all (damage of its content is a Bad row, and counted), or a package
            is missing.
    """
    lower = name.lower()
    if lower.endswith(".parquet"):
        return parquet.read(path, text_field, span)
    if lower.endswith(warc.SUFFIXES):
        return warc.read(path, name, text_field, page)
    return _read_jsonl(path, name, max_line_bytes, span)


def _read_jsonl(path: Location, name: str, max_line_bytes: int, span: Span | None) -> Iterator[Row | Bad]:
    number = 0
    with open_input(path) as raw:
        try:
            if span is None:
                lines = limited_lines(decompressed(raw, name), max_line_bytes)
            else:
                number, lines = _lines_of(raw, max_line_bytes, span)
            for line in lines:
                number += 1
                if isinstance(line, int):
                    yield Bad(number, "line too long", f"{line:,} bytes, limit {max_line_bytes:,}")
                elif not line.isspace():
                    yield _parse(number, line)
        except CORRUPT as error:
            share = (size_of(path) - raw.tell()) / max(1, raw.tell())
            lost = max(1, round(number * share))
            told = f"nothing after this line can be read, about {lost:,} lines: {error}"
            yield Bad(number + 1, "corrupt compressed stream", told, rows=lost)


def _lines_of(raw: io.BufferedReader, limit: int, span: Span) -> tuple[int, Iterator[bytes | int]]:
    """The lines that begin in [span.start, span.end) and how many lines of the file come before them.

    A line begins at the file's start and after every line feed, so the one before span.start is looked at, too.
    """
    position, before = span.start, span.first
    if position:
        position -= 1
        raw.seek(position)
        while position < span.end:
            piece = raw.readline(min(SEEK_BYTES, span.end - position))
            position += len(piece)
            if not piece or piece.endswith(b"\n"):
                break
        else:
            return before, iter(())
        before += position > span.start  # the line that began before and ends in here
    return before, _lines_until(raw, limit, position, span.end)


def _lines_until(raw: io.BufferedReader, limit: int, position: int, end: int) -> Iterator[bytes | int]:
    if position >= end:
        return
    for line in limited_lines(raw, limit):
        yield line
        position += line if isinstance(line, int) else len(line)
        if position >= end:
            return


def _parse(number: int, line: bytes) -> Row | Bad:
    """As json.loads reads it, in all it takes and refuses; orjson is the quick way to the same.

    What orjson reads otherwise (NaN, a byte order mark, UTF-16, half a surrogate pair) it refuses, but for integers
    beyond 64 bits, of which it makes floats.
    """
    try:
        values = orjson.loads(line)
    except (ValueError, RecursionError):
        return _parse_slowly(number, line)
    if not isinstance(values, dict) or _has_large_float(values):
        return _parse_slowly(number, line)
    return Row(number, values)


def _has_large_float(values: dict[str, Any]) -> bool:
    left: list[Any] = [values]
    while left:
        value = left.pop()
        kind = type(value)
        if kind is float:
            if not -INT64 < value < INT64:
                return True
        elif kind is dict:
            left += value.values()
        elif kind is list:
            left += value
    return False


def _parse_slowly(number: int, line: bytes) -> Row | Bad:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return Bad(number, "invalid UTF-8", str(error), _sample(line))
    except (ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits, too
        return Bad(number, "not JSON", str(error), _sample(line))
    if not isinstance(values, dict):
        return Bad(number, "not a JSON object", f"a {type(values).__name__}", _sample(line))
    return Row(number, values)


def _sample(line: bytes) -> str:
    return line[: SAMPLE_CHARACTERS * 4].decode("utf-8", "replace")[:SAMPLE_CHARACTERS]
