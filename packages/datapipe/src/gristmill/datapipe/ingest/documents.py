"""Rows into documents, and documents into partitions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, sha256_file
from gristmill.datapipe.document import SCHEMA
from gristmill.datapipe.ingest.rows import Bad, Row
from gristmill.shards.manifest import NAME_PATTERN

MAX_SOURCE_CHARACTERS = 96  # as the manifest of shards has it
MAX_KNOWN_SOURCES = 10_000
MAX_PARTITIONS = 99_999
REPEATED = ["source", "file"]
"""Columns worth a dictionary; on the others it costs time and is given up."""
# Dates, UUIDs and what else Parquet may hold are spelled by str().
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS

Document = tuple[bytes, bytes, str, bytes | None, bytes | None, bytes | None, str, int]
"""The columns of SCHEMA, with all that came from the row as UTF-8."""


class Documents:
    """Makes documents of the rows of one file."""

    def __init__(
        self, file: str, text_field: str, id_field: str, source_field: str, source: str, sources: tuple[str, ...]
    ) -> None:
        """`source` is that of rows which say none; of `sources`, unless it is empty, all others are left out."""
        self._file, self._text, self._id, self._source_field = file, text_field, id_field, source_field
        self._source = source or source_of(file)
        self._wanted = frozenset(sources)
        self._known: dict[str, bool] = {}

    def document(self, row: Row) -> Document | Bad | None:
        """Bad where the row is no document; None where its source was not asked for. Takes the row's values apart."""
        values = row.values
        text = _take(values, self._text, _MISSING)
        if not isinstance(text, str):
            return self._no_text(row, text)
        if not text or text.isspace():
            return Bad(row.number, "empty document")
        source = str(_take(values, self._source_field) or self._source)
        if source not in self._known:
            if len(source) > MAX_SOURCE_CHARACTERS or not re.fullmatch(NAME_PATTERN, source):
                told = f"{source[:100]!r}: use up to {MAX_SOURCE_CHARACTERS} letters, digits, '.', '_' and '-' only"
                return Bad(row.number, "bad source name", told)
            if len(self._known) >= MAX_KNOWN_SOURCES:
                self._known.clear()
            self._known[source] = not self._wanted or source in self._wanted
        if not self._known[source]:
            return None
        identity = _take(values, self._id)
        identity = f"{self._file}:{row.number}" if identity in (None, "") else str(identity)
        url, created = values.pop("url", None), values.pop("created", None)
        try:
            return (
                identity.encode(), text.encode(), source, _bytes(url), _bytes(created),
                _json(values) if values else None, self._file, row.number,
            )  # fmt: skip
        except UnicodeEncodeError as error:
            return Bad(row.number, "invalid Unicode", f"a lone surrogate at character {error.start}")
        except RecursionError:
            return Bad(row.number, "nested too deeply")

    def _no_text(self, row: Row, text: object) -> Bad:
        if text is _MISSING:
            told = f"no field {self._text!r}; fields: {', '.join(sorted(row.values))[:500]}"
        else:
            told = f"field {self._text!r} is {type(text).__name__}, not a string"
        return Bad(row.number, "no text", told)


def source_of(file: str) -> str:
    """The source of a file's rows that say none: its name up to the first dot."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file).name.split(".", 1)[0]).strip("-_") or "unknown"


class Partitions:
    """Collects documents and writes a partition whenever enough rows or bytes of text have come together."""

    def __init__(self, folder: Path, key: str, rows: int, text_bytes: int) -> None:
        self._folder, self._key, self._max_rows, self._max_bytes = folder, key, rows, text_bytes
        self._rows: list[Document] = []
        self._bytes = 0
        self.written: list[dict[str, Any]] = []

    def add(self, document: Document) -> None:
        self._rows.append(document)
        self._bytes += len(document[1])
        if len(self._rows) >= self._max_rows or self._bytes >= self._max_bytes:
            self.close()

    def close(self) -> None:
        if not self._rows:
            return
        if len(self.written) > MAX_PARTITIONS:
            raise GristmillError(f"more than {MAX_PARTITIONS:,} partitions: raise ingest.rows_per_partition")
        name = part_name(self._key, len(self.written))
        columns = [_array(column, field.type) for column, field in zip(zip(*self._rows, strict=True), SCHEMA)]
        path = self._folder / name
        with atomic_path(path) as temporary:
            dictionary: Any = REPEATED  # pyarrow annotates it as bool alone
            table = pa.Table.from_arrays(columns, schema=SCHEMA)
            pq.write_table(table, temporary, compression="zstd", use_dictionary=dictionary)
        self.written.append(
            {"name": name, "sha256": sha256_file(path), "rows": len(self._rows), "bytes": path.stat().st_size}
        )
        self._rows, self._bytes = [], 0


def _array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    first = next((value for value in values if value is not None), None)
    # Bytes come from str.encode(): to check them again would cost as much as all the rest.
    return pa.array(values, pa.binary()).view(kind) if isinstance(first, bytes) else pa.array(values, kind)


def part_name(key: str, number: int) -> str:
    """Names sort as the rows stand in the inputs: `key` is the file's place among them, and the piece's in the file."""
    return f"part-{key}-{number:05d}.parquet"


_MISSING = object()


def _take(values: dict[str, Any], field: str, default: Any = None) -> Any:
    """Remove and return a field; `a.b` is the field b of the object a, unless there is a field of that whole name."""
    if field in values:
        return values.pop(field)
    head, dot, rest = field.partition(".")
    nested = values.get(head) if dot else None
    if not isinstance(nested, dict) or not nested:
        return default
    found = _take(nested, rest, default)
    if not nested:
        del values[head]
    return found


def _bytes(value: object) -> bytes | None:
    return None if value is None else str(value).encode()


def _json(values: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(values, default=str, option=_OPTIONS)
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair, or more than 254 levels
        return json.dumps(values, ensure_ascii=False, sort_keys=True, default=str, separators=(",", ":")).encode()
