"""Rows of Parquet files, row group by row group: a damaged one costs its own rows and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.datapipe.ingest.rows import Bad, Row, Span
from gristmill.datapipe.ingest.storage import Location, open_input

BATCH_BYTES = 2**23
BATCH_ROWS = 1024
CORRUPT = (pa.ArrowException, OSError)


def read(path: Location, text_field: str, span: Span | None) -> Iterator[Row | Bad]:
    with open_input(path) as raw:
        try:
            file = pq.ParquetFile(raw, pre_buffer=True)
        except CORRUPT as error:
            yield Bad(0, "corrupt Parquet file", _line(error))
            return
        schema, groups = file.schema_arrow, range(file.num_row_groups)
        if span is not None:
            groups = groups[span.start : span.end]
        sizes = [file.metadata.row_group(group).num_rows for group in groups]
        if not _is_text(schema, text_field):
            columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
            detail = f"needs a string column {text_field!r}; has {columns}"
            yield Bad(None, "wrong columns", detail[:1000], rows=max(1, sum(sizes)))
            return
        number = span.first if span is not None else 0
        for group, size in zip(groups, sizes, strict=True):
            yield from _read_group(file, group, size, number)
            number += size


def row_groups(path: Location) -> list[tuple[int, int]]:
    """(rows, compressed bytes) of each row group; none where the file is damaged."""
    with open_input(path) as raw:
        try:
            metadata = pq.read_metadata(raw)
        except CORRUPT:
            return []
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        return [(group.num_rows, sum(group.column(c).total_compressed_size for c in range(group.num_columns)))
                for group in groups]  # fmt: skip


def _read_group(file: pq.ParquetFile, group: int, rows: int, number: int) -> Iterator[Row | Bad]:
    done, lost = 0, "it holds fewer rows than it says"
    size = file.metadata.row_group(group).total_byte_size
    try:
        batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES * rows // max(1, size)))
        for batch in file.iter_batches(batch_rows, row_groups=[group]):
            yield from _rows(number + done, batch)
            done += batch.num_rows
    except CORRUPT as error:
        lost = _line(error)
    if done < rows:
        told = f"row {number + done:,} to {number + rows - 1:,}, row group {group}: {lost}"
        yield Bad(number + done, "corrupt Parquet file", told, rows=rows - done)


def _rows(number: int, batch: pa.RecordBatch) -> Iterator[Row | Bad]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
        for index in range(batch.num_rows):
            yield _row(number + index, batch, index)
        return
    for index, values in enumerate(rows):
        yield Row(number + index, values)


def _row(number: int, batch: pa.RecordBatch, index: int) -> Row | Bad:
    try:
        return Row(number, {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns)})
    except UnicodeDecodeError as error:
        return Bad(number, "invalid UTF-8", str(error))
    except (ValueError, OverflowError) as error:
        return Bad(number, "unreadable value", str(error))


def _is_text(schema: pa.Schema, text_field: str) -> bool:
    """Whether the column holds strings; `a.b` may be field b of the struct a."""
    kind: pa.DataType = pa.struct(list(schema))
    names = [text_field] if text_field in schema.names else text_field.split(".")
    for name in names:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        kind = kind.field(name).type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
