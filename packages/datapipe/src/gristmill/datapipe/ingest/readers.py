"""Rows out of files that may be broken anywhere: every reader yields rows, and Bad for what it had to leave out."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from gristmill.base.files import limited_lines

ZSTD_MAX_WINDOW = 2**27  # 128 MiB: `zstd --long=27`, the largest that the command line tool opens unasked
FEED_BYTES = 2**12
SAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class Row:
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    number: int | None
    reason: str
    """One of few, so that they can be counted; the particulars are in `detail`."""
    detail: str = ""
    sample: str = ""
    rows: int = 1


def read_rows(path: Path, name: str, text_field: str, max_line_bytes: int) -> Iterator[Row | Bad]:
    if name.lower().endswith(".parquet"):
        return _read_parquet(path, text_field)
    return _read_jsonl(path, name, max_line_bytes)


def _read_jsonl(path: Path, name: str, max_line_bytes: int) -> Iterator[Row | Bad]:
    number = 0
    with path.open("rb") as raw:
        try:
            for line in limited_lines(_decompressed(raw, name), max_line_bytes):
                number += 1
                if isinstance(line, int):
                    yield Bad(number, "line too long", f"{line:,} bytes, limit {max_line_bytes:,}")
                elif line.strip():
                    yield _parse(number, line)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            share = (path.stat().st_size - raw.tell()) / max(1, raw.tell())
            lost = max(1, round(number * share))
            told = f"nothing after this line can be read, about {lost:,} lines: {error}"
            yield Bad(number + 1, "corrupt compressed stream", told, rows=lost)


def _parse(number: int, line: bytes) -> Row | Bad:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return Bad(number, "invalid UTF-8", str(error), _sample(line))
    except (ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits, too
        return Bad(number, "not JSON", str(error), _sample(line))
    if not isinstance(values, dict):
        return Bad(number, "not a JSON object", f"a {type(values).__name__}", _sample(line))
    return Row(number, values)


def _read_parquet(path: Path, text_field: str) -> Iterator[Row | Bad]:
    number, total = 0, 1
    try:
        with pq.ParquetFile(path) as file:
            schema, total = file.schema_arrow, file.metadata.num_rows
            if text_field not in schema.names or not _is_text(schema.field(text_field).type):
                columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
                detail = f"needs a string column {text_field!r}; has {columns}"
                yield Bad(None, "wrong columns", detail[:1000], rows=max(1, total))
                return
            for batch in file.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    yield _parquet_row(number + index, batch, index)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        told = f"row {number:,} and all after it: {str(error).splitlines()[0]}"
        yield Bad(number, "corrupt Parquet file", told, rows=max(1, total - number))


def _parquet_row(number: int, batch: pa.RecordBatch, index: int) -> Row | Bad:
    try:
        return Row(number, {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns)})
    except UnicodeDecodeError as error:
        return Bad(number, "invalid UTF-8", str(error))
    except (ValueError, OverflowError) as error:
        return Bad(number, "unreadable value", str(error))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _decompressed(raw: BinaryIO, name: str) -> io.BufferedIOBase:
    lower = name.lower()
    stream: Any = raw
    if lower.endswith(".gz"):
        stream = _Frames(raw, lambda: zlib.decompressobj(wbits=31))
    elif lower.endswith(".zst"):
        stream = _Frames(raw, lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW).decompressobj())
    return io.BufferedReader(stream, 2**20)


class _Frames(io.RawIOBase):
    """Decompresses one gzip member or zstd frame after the other, giving all that comes before any damage.

    Raises EOFError when the last one is cut off, which zstandard's own reader does not. Input is fed in small pieces,
    so that a bomb (zstd packs 128 KiB into 4 bytes) cannot fill the memory before the line limit stops it.
    """

    def __init__(self, raw: BinaryIO, start: Callable[[], Any]) -> None:
        self._raw, self._start = raw, start
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(FEED_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last compressed frame is cut off")
                return 0
            if self._frame is None:
                self._input = self._input.lstrip(b"\0")  # tapes and some writers pad with zeros
                if not self._input:
                    continue
                self._frame = self._start()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _sample(line: bytes) -> str:
    return line[: SAMPLE_CHARACTERS * 4].decode("utf-8", "replace")[:SAMPLE_CHARACTERS]
