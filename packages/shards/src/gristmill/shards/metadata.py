"""The Parquet file of a shard's documents, which may have been written by anyone: read by name, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.base.errors import DataError
from gristmill.base.terminal import shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

REQUIRED = {"id": "string", "file": "string", "row": "int64", "tokens": "int64"}
OPTIONAL = {"score": "float32", "language": "string"}  # may be null
TYPES = ("string", "int64", "float32")
SPELLED = {"float": "float32", "large_string": "string", "string_view": "string"}  # as Arrow names them
BATCH_ROWS = 2**16


def read(path: Path, documents: int) -> pa.Table:
    """All rows.

    Raises:
        DataError: not Parquet, other columns or types than the format has, or another number of rows.
    """
    with _opened(path, documents) as file:
        table = file.read()
        table.validate(full=True)
        return table


def read_row(path: Path, documents: int, row: int) -> dict[str, Any]:
    """One row; of the file, its row group alone.

    Raises:
        DataError: as read.
    """
    with _opened(path, documents) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                found = file.read_row_group(group).slice(row, 1)
                found.validate(full=True)
                if found.num_rows == 1:
                    return found.to_pylist()[0]
            row -= rows
    raise DataError(f"{path}: its row groups do not hold its {documents:,} rows; pull or write it again")


def batches(path: Path, documents: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """All rows of some columns, BATCH_ROWS at most at a time.

    Raises:
        DataError: as read.
    """
    with _opened(path, documents) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            batch.validate(full=True)
            yield batch


@contextlib.contextmanager
def _opened(path: Path, documents: int) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            if file.metadata.num_rows != documents:
                raise DataError(
                    f"{path}: {file.metadata.num_rows} rows for {documents} documents; pull or write it again"
                )
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:  # no common type covers what Arrow makes of junk
        reason = shown(str(error).partition("\n")[0][:200])
        raise DataError(f"{path}: not Parquet that can be read ({reason}); pull or write it again") from None


def _check_columns(path: Path, schema: pa.Schema) -> None:
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{path}: two columns have one name; write the source again")
    for name in (*REQUIRED, *OPTIONAL):
        if name not in schema.names:
            raise DataError(f"{path}: has no column {name!r}; write the source again")
    for field in schema:
        kind = SPELLED.get(str(field.type), str(field.type))
        expected = (REQUIRED | OPTIONAL).get(field.name, kind if kind in TYPES else "string, int64 or float32")
        if kind != expected:
            about = f"column {field.name[:80]} is {kind[:80]}, not {expected}"
            raise DataError(f"{path}: {shown(about)}; write the source again")
