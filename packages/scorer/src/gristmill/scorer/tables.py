"""Documents from JSONL (plain or gzipped) or Parquet as one table, with errors that name file, row and field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import atomic_path
from gristmill.scorer.rubric import Rubric, rubric_from_mapping

RUBRICS_KEY = b"gristmill.rubrics"
TYPE = "content_type"
OPTIONAL = (TYPE, "language")


def read_documents(path: Path) -> pa.Table:
    """Columns id, text, source, content_type and language where a row has them, and all others of a Parquet file or
    folder. An id that is missing or null is the file's name and the row's number; a missing source is the file's name,
    and one that is null is empty.

    Raises:
        UsageError: no such file, or not .jsonl, .jsonl.gz or .parquet.
        DataError: a file that cannot be read, or a row that is not a JSON object with a string text.
    """
    name = path.name
    if path.is_dir() or name.endswith(".parquet"):
        return _defaults(read_parquet(path), path)
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(f"{path}: give a .jsonl, .jsonl.gz or .parquet file, or a folder of .parquet files")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    rows: dict[str, list[Any]] = {name: [] for name in ("id", "text", "source", *OPTIONAL)}
    for number, line in enumerate(_lines(path), 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: row {number}: not JSON ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise DataError(f"{path}: row {number}: field text: a string is needed")
        source = value.get("source", name.split(".")[0])
        rows["id"].append(f"{name}:{number}" if value.get("id") is None else str(value["id"]))
        rows["text"].append(value["text"])
        rows["source"].append("" if source is None else str(source))
        for key in OPTIONAL:
            rows[key].append(None if value.get(key) is None else str(value[key]))
    try:
        table = pa.table({key: pa.array(values, pa.string()) for key, values in rows.items()})
    except UnicodeEncodeError:  # JSON may spell half a surrogate pair, which is no text
        raise DataError(
            f"{path}: row {_unpaired(rows)}: half a surrogate pair (\\ud800 to \\udfff) in a string"
        ) from None
    return table.drop_columns([key for key in OPTIONAL if table[key].null_count == len(table)])


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file, or all part files of a folder in the order of their names.

    Raises:
        UsageError: there is none.
        DataError: one cannot be read, or its column text holds no strings.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(f"{path}: no Parquet file there")
    try:
        table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from None
    if "text" in table.column_names and not _is_text(table.schema.field("text").type):
        raise DataError(f"{path}: column text holds {table.schema.field('text').type}, and strings are needed")
    return table


def write_parquet(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def check_output(path: Path) -> None:
    """Raises UsageError where a file cannot be written because a folder is there: before the work, not after it."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file to write")


def with_rubric(table: pa.Table, *rubrics: dict[str, Any]) -> pa.Table:
    """The table with its rubrics in the schema metadata, so that a label file explains itself."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), RUBRICS_KEY: json.dumps(rubrics).encode()})


def rubrics_of(table: pa.Table, where: str) -> list[Rubric]:
    """Those that a label table says it was graded with; none where it does not say."""
    found = (table.schema.metadata or {}).get(RUBRICS_KEY)
    return [rubric_from_mapping(value, where) for value in json.loads(found)] if found else []


def graded_with(labels: pa.Table, rubric: Rubric) -> pa.Table:
    """The rows that were graded with this rubric.

    Raises:
        DataError: there is none.
    """
    if "rubric_sha" not in labels.column_names:
        return labels
    shas = labels["rubric_sha"].to_pylist()
    own = labels.filter(pa.array([sha == rubric.sha for sha in shas], pa.bool_()))
    if len(labels) and not len(own):
        raise DataError(
            f"labels: none is graded with rubric {rubric.name!r} ({rubric.sha[:12]}); there are "
            f"{', '.join(sorted({str(sha)[:12] for sha in shas}))}; label again, or name one of those"
        )
    return own


def _lines(path: Path) -> Iterator[str]:
    zipped = path.name.endswith(".gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); convert it") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged, or not gzipped ({error}); fetch it again") from None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or kind == pa.null()
    )


def _unpaired(rows: dict[str, list[Any]]) -> int:
    return min(
        number
        for values in rows.values()
        for number, value in enumerate(values, 1)
        if value is not None and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)
    )


def _defaults(table: pa.Table, path: Path) -> pa.Table:
    if "text" not in table.column_names:
        raise DataError(f"{path}: no column text; columns are {', '.join(table.column_names)}")
    names = pa.array([f"{path.name}:{i}" for i in range(len(table))], pa.string())
    sources = pa.array([path.stem] * len(table), pa.string())
    for name, missing, null in (("id", names, names), ("source", sources, "")):
        if name not in table.column_names:
            table = table.append_column(name, missing)
            continue
        try:
            filled = pc.fill_null(table[name].cast(pa.string()), null)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{path}: column {name} holds {table[name].type}, and strings are needed") from None
        table = table.set_column(table.column_names.index(name), name, filled)
    return table
