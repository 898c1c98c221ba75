"""Input files into partitions of documents. What cannot be a document goes to quarantine with file, row and reason.

Each input file is one piece of work; it becomes as many partitions as its rows ask for.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.errors import GristmillError
from gristmill.base.files import atomic_path, sha256_file
from gristmill.datapipe.document import SCHEMA
from gristmill.datapipe.ingest.inputs import InputFile, discover
from gristmill.datapipe.ingest.readers import Bad, Row, read_rows
from gristmill.datapipe.workflow.ledger import Entry
from gristmill.datapipe.workflow.stage import Resources
from gristmill.shards.manifest import NAME_PATTERN

__all__ = ["Ingest", "IngestConfig", "IngestJob", "InputFile"]


@dataclass(frozen=True)
class IngestConfig:
    text_field: str = "text"
    id_field: str = "id"
    source_field: str = "source"
    """Where a row has no such field, its source is the input file's name up to the first dot."""
    sources: tuple[str, ...] = ()
    """Only documents of these sources; empty means all."""
    rows_per_partition: int = 4096
    bytes_per_partition: int = 32 * 2**20
    max_line_bytes: int = 32 * 2**20


@dataclass(frozen=True)
class Ingest:
    inputs: tuple[str, ...]
    config: IngestConfig = field(default_factory=IngestConfig)
    max_bad_fraction: float = 0.01
    resources: Resources = Resources()

    name: ClassVar[str] = "documents"
    version: ClassVar[int] = 1
    dependencies: ClassVar[tuple[str, ...]] = ()

    def discover(self, run: Path) -> list[InputFile]:
        files = discover(self.inputs)
        inside = [file.name for file in files if file.path.is_relative_to(run.resolve())]
        if inside:
            raise GristmillError(f"input {inside[0]} lies in the run folder {run}: give the run its own --output")
        return files


@dataclass
class IngestJob:
    config: IngestConfig
    documents: Path
    quarantine: Path
    name: ClassVar[str] = "documents"
    stateful: ClassVar[bool] = False

    def setup(self) -> None:
        pass

    def __call__(self, file: InputFile) -> dict[str, Any]:
        started = time.monotonic()
        parts = _Partitions(self.documents, file.key, self.config)
        reasons: Counter[str] = Counter()
        with (
            atomic_path(self.quarantine / f"{file.key}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as bad,
        ):
            for row in read_rows(file.path, file.name, self.config.text_field, self.config.max_line_bytes):
                document = row if isinstance(row, Bad) else _document(row, file, self.config)
                if isinstance(document, Bad):
                    reasons[document.reason] += document.rows
                    record = {"file": file.name, "row": document.number, "reason": document.reason}
                    record |= {"detail": document.detail, "sample": document.sample, "rows": document.rows}
                    bad.write(json.dumps(record, ensure_ascii=True) + "\n")
                elif document is not None:
                    parts.add(document)
        parts.close()
        rows = sum(part["rows"] for part in parts.written)
        counts = {"parts": parts.written, "quarantined": dict(sorted(reasons.items()))}
        entry = Entry(file.fingerprint, "", rows, 0, round(time.monotonic() - started, 3), counts)
        return {"entry": vars(entry), "documents": rows}


class _Partitions:
    """Collects documents and writes a partition whenever enough rows or bytes have come together."""

    def __init__(self, folder: Path, key: str, config: IngestConfig) -> None:
        self._folder, self._key, self._config = folder, key, config
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self.written: list[dict[str, Any]] = []

    def add(self, document: tuple[Any, ...]) -> None:
        self._rows.append(document)
        self._bytes += len(document[1])
        if len(self._rows) >= self._config.rows_per_partition or self._bytes >= self._config.bytes_per_partition:
            self.close()

    def close(self) -> None:
        if not self._rows:
            return
        name = f"part-{self._key}-{len(self.written):05d}.parquet"
        columns = [pa.array(column, field.type) for column, field in zip(zip(*self._rows, strict=True), SCHEMA)]
        path = self._folder / name
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), temporary, compression="zstd")
        self.written.append(
            {"name": name, "sha256": sha256_file(path), "rows": len(self._rows), "bytes": path.stat().st_size}
        )
        self._rows, self._bytes = [], 0


def _document(row: Row, file: InputFile, config: IngestConfig) -> tuple[Any, ...] | Bad | None:
    """The columns of SCHEMA; Bad where the row is no document; None where its source was not asked for."""
    values = dict(row.values)
    if config.text_field not in values:
        return Bad(row.number, "no text", f"no field {config.text_field!r}; fields: {', '.join(sorted(values))[:500]}")
    text = values.pop(config.text_field)
    if not isinstance(text, str):
        return Bad(row.number, "no text", f"field {config.text_field!r} is {type(text).__name__}, not a string")
    if not text.strip():
        return Bad(row.number, "empty document")
    default_source = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(file.name).name.split(".", 1)[0]).strip("-_") or "unknown"
    source = str(values.pop(config.source_field, None) or default_source)
    if not re.fullmatch(NAME_PATTERN, source):
        return Bad(row.number, "bad source name", f"{source[:100]!r}: use letters, digits, '.', '_' and '-' only")
    if config.sources and source not in config.sources:
        return None
    given_id = values.pop(config.id_field, None)
    identity = str(given_id) if given_id not in (None, "") else f"{file.name}:{row.number}"
    url, created = (_string(values.pop(name, None)) for name in ("url", "created"))
    try:
        meta = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str) if values else None
        for part in (text, identity, source, url, created, meta):
            if part is not None:
                part.encode("utf-8")
    except UnicodeEncodeError as error:
        return Bad(row.number, "invalid Unicode", f"a lone surrogate at character {error.start}")
    return (identity, text, source, url, created, meta, file.name, row.number)


def _string(value: Any) -> str | None:
    return None if value is None else str(value)
