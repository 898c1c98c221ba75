"""The rows of a run as numpy columns: documents, annotations and selection are row-aligned, partition by partition.

A column is read alone and only when asked for, so a page over a million documents never holds their texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.base.errors import DataError, GristmillError

Array = np.ndarray
Labels = tuple[Array, list[str]]  # a code per row, -1 for null, and the names
QUARANTINED = "quarantined"  # the reason of documents that a stage could not handle: neither kept nor dropped
BATCH = 256  # rows that are decoded at once where there may be texts among the columns
HASHES = {"sketch"}  # annotations that hold hashes for the deduplication to compare: numbers, but no measurements


class NotThere(GristmillError):
    """A part of the run folder that does not exist (yet): what it is, and which stage makes it."""

    def __init__(self, what: str, made_by: str) -> None:
        super().__init__(f"{what} is not there; {made_by} makes it")
        self.what, self.made_by = what, made_by


@dataclass(frozen=True)
class Column:
    """A measured column: `folder` is relative to the run (`annotations/exact`), `kind` is number, flag, label or spans
    (start, end, start, end ... as bytes of the text)."""

    folder: str
    name: str
    kind: str
    single: bool = False
    """Stored in 32 bits, so that a policy compares it in 32 bits."""

    @property
    def stage(self) -> str:
        return self.folder.rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        return f"{self.stage}.{self.name}"


@dataclass(frozen=True)
class Rows:
    """Where the rows lie: the names of the partitions in order, and how many rows each one has."""

    run: Path
    parts: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> Array:
        """Global row of each partition's first row, and the total last: int64 [partitions + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every measurement that is one number, flag or label per row, stage by stage; hashes are none."""
        return tuple(column for column in self._found if column.kind != "spans")

    @property
    def spans(self) -> tuple[Column, ...]:
        """Every column that says which parts of a text a stage found."""
        return tuple(column for column in self._found if column.kind == "spans")

    @cached_property
    def _found(self) -> tuple[Column, ...]:
        found: list[Column] = []
        for folder in sorted((self.run / "annotations").glob("*")):
            if folder.name in HASHES:
                continue
            schema = self._schema(f"annotations/{folder.name}")
            found += [
                Column(f"annotations/{folder.name}", field.name, kind, pa.types.is_float32(field.type))
                for field in schema or ()
                if (kind := _kind(field.type))
            ]
        return tuple(found)

    def has(self, folder: str, column: str) -> bool:
        schema = self._schema(folder)
        return schema is not None and column in schema.names

    def resolve(self, name: str) -> Column | None:
        """The column that a policy calls `stage.column`, `stage/column` or, where only one stage has it, `column`."""
        wanted = name.replace("/", ".").removeprefix("annotations.")
        exact = [column for column in self.columns if column.label == wanted]
        bare = [column for column in self.columns if column.name == wanted]
        return exact[0] if exact else bare[0] if len(bare) == 1 else None

    def numbers(self, folder: str, column: str) -> Array:
        """float64 [rows]; NaN for null and for partitions that the stage has not reached."""
        return self._gather(
            folder, column, np.nan, np.float64, lambda array: pc.cast(array, pa.float64(), safe=False)
        )  # an integer beyond 2**53 is rounded

    def absent(self, folder: str, column: str) -> Array:
        """bool [rows]: null, or in partitions that the stage has not reached."""
        return self._gather(folder, column, True, np.bool_, lambda array: array.is_null())

    def integers(self, folder: str, column: str) -> Array:
        """int64 [rows]; -1 for null and for partitions that the stage has not reached."""
        return self._gather(
            folder,
            column,
            -1,
            np.int64,
            lambda array: pc.fill_null(pc.cast(array, pa.int64()), pa.scalar(-1, pa.int64())),
        )

    def labels(self, folder: str, column: str) -> tuple[Array, list[str]]:
        """Codes, int32 [rows] with -1 for null, and their names in order of first appearance."""
        names: dict[str, int] = {}

        def encode(array: Any) -> Any:
            coded = _bytes(array).dictionary_encode()
            coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
            known = [names.setdefault(str(decoded(name)), len(names)) for name in coded.dictionary.to_pylist()]
            indices = pc.fill_null(coded.indices, pa.scalar(-1, coded.indices.type)).to_numpy(zero_copy_only=False)
            return pa.array(np.array([*known, -1], dtype=np.int32)[indices])

        codes = self._gather(folder, column, -1, np.int32, encode)
        return codes, list(names)

    def records(
        self, wanted: Sequence[int], columns: Mapping[str, Sequence[str]], raw: Sequence[str] = ()
    ) -> dict[int, dict[str, Any]]:
        """Values at a few global rows: {row: {"folder/column": value}}. Streams; stops after the last wanted row.

        Text of the columns named in `raw` comes as it lies there, as bytes; other text as str.
        """
        out: dict[int, dict[str, Any]] = {row: {} for row in wanted}
        ordered = np.array(sorted(out), dtype=np.int64)
        for index, part in enumerate(self.parts):
            first = int(self.starts[index])
            local = ordered[(ordered >= first) & (ordered < self.starts[index + 1])] - first
            if not len(local):
                continue
            for folder, names in columns.items():
                for position, row in _take(self.run / folder / part, self.lengths[index], local, names, raw):
                    out[first + position] |= {f"{folder}/{name}": value for name, value in row.items()}
        return out

    def _schema(self, folder: str) -> pa.Schema | None:
        for part in self.parts:
            path = self.run / folder / part
            if path.exists():
                return _facts(path)[0]
        return None

    def _gather(self, folder: str, column: str, missing: float, dtype: Any, convert: Callable[[Any], Any]) -> Array:
        if not self.has(folder, column):
            raise NotThere(f"{folder}/ with {column}", f"the {folder.rsplit('/', 1)[-1]} stage")
        pieces: list[Array] = []
        for part, length in zip(self.parts, self.lengths):
            path = self.run / folder / part
            table = read_file(path, [column]) if path.exists() else None
            if table is None or column not in table.column_names:  # made by another version of the stage
                pieces.append(np.full(length, missing, dtype=dtype))
                continue
            array = table.column(column)
            if len(array) != length:
                raise _unlike(path, len(array), length)
            values = (
                convert(array).to_numpy(zero_copy_only=False) if isinstance(array, pa.Array) else _numpy(convert(array))
            )
            pieces.append(values.astype(dtype, copy=False))
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=dtype)


def open_rows(run: Path) -> Rows:
    """Find the partitions of `run`.

    Raises:
        NotThere: there are no documents.
    """
    paths = sorted((run / "documents").glob("part-*.parquet"))
    if not paths:
        raise NotThere("documents/", "the ingest stage")
    return Rows(run, tuple(path.name for path in paths), tuple(_facts(path)[1] for path in paths))


def read_file(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of one Parquet file, and nothing that its folder's name might seem to add."""
    with open_file(path) as file:
        return file.read(columns=list(columns))


def open_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); delete it to have it made again") from None


def _facts(path: Path) -> tuple[pa.Schema, int]:
    with open_file(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "flag"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_list(kind) and pa.types.is_int32(kind.value_type):
        return "spans"
    return "label" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def selection(rows: Rows) -> tuple[Array, Labels]:
    """(keep, reason) of every row.

    Raises:
        NotThere: nothing was selected yet, or not since there are other documents: neither kept nor dropped is true of
            what nobody decided about.
    """
    if not rows.has("selection", "keep"):
        raise NotThere("selection/", "the select stage")
    if absent := [part for part in rows.parts if not (rows.run / "selection" / part).exists()]:
        raise NotThere(f"selection/{absent[0]}", "the select stage")
    return rows.numbers("selection", "keep") > 0, rows.labels("selection", "reason")


def set_aside(reason: tuple[Array, list[str]]) -> Array:
    """Which rows are QUARANTINED, of their reasons as labels."""
    codes, names = reason
    return codes == names.index(QUARANTINED) if QUARANTINED in names else np.zeros(len(codes), dtype=bool)


def _numpy(array: Any) -> Array:
    return array.to_numpy() if isinstance(array, pa.ChunkedArray) else array.to_numpy(zero_copy_only=False)


def _unlike(path: Path, rows: int, documents: int) -> DataError:
    return DataError(f"{path}: {rows} rows beside {documents} documents; delete it to have it made again")


def decoded(text: bytes | None) -> str | None:
    """Text that may be none. Parquet checks no UTF-8: files of other programs may hold bytes that stand for nothing."""
    return None if text is None else text.decode("utf-8", "replace")


def _bytes(array: Any) -> Any:
    """A column of text as bytes; anything else as text first."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = pc.cast(array, kind.value_type)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = pc.cast(array, pa.string())
    return pc.cast(array, pa.large_binary())


def _is_text(kind: pa.DataType) -> bool:
    return _kind(kind) == "label"


def _take(
    path: Path, length: int, local: Array, names: Sequence[str], raw: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    """The rows `local` (sorted) of one file of `length` rows, a row group at a time; groups without a wanted row are
    never decoded."""
    if not path.exists():
        return []
    out: list[tuple[int, dict[str, Any]]] = []
    with open_file(path) as file:
        if file.metadata.num_rows != length:
            raise _unlike(path, file.metadata.num_rows, length)
        present = [name for name in names if name in file.schema_arrow.names]
        start = 0
        for group in range(file.num_row_groups if present else 0):
            end = start + file.metadata.row_group(group).num_rows
            inside = local[(local >= start) & (local < end)]
            offset = start
            batches = file.iter_batches(BATCH, [group], present) if len(inside) else iter(())
            while len(inside) and (batch := next(batches, None)) is not None:
                here = inside[inside < offset + len(batch)]
                found = batch.take(pa.array(here - offset)) if len(here) else batch.slice(0, 0)
                values = [_values(found.column(name), name in raw) for name in present]
                out += [(row, dict(zip(present, one))) for row, one in zip(here.tolist(), zip(*values))]
                inside, offset = inside[len(here) :], offset + len(batch)
            start = end
    return out


def _values(array: Any, raw: bool) -> list[Any]:
    if not _is_text(array.type):
        return array.to_pylist()
    values = _bytes(array).to_pylist()
    return values if raw else [decoded(value) for value in values]
