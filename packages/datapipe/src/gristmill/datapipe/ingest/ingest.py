"""Input files into partitions of documents. What cannot be a document goes to quarantine with file, row and reason.

Each input file is one piece of work, a large one several; a piece becomes as many partitions as its rows ask for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from gristmill.base.config import check_range
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import atomic_path, fingerprint, read_json, write_json
from gristmill.datapipe.ingest.documents import Documents, Partitions
from gristmill.datapipe.ingest.inputs import InputFile, check_inputs, discover
from gristmill.datapipe.ingest.main_text import DISTRIBUTIONS, check_installed
from gristmill.datapipe.ingest.readers import Bad, read_rows
from gristmill.datapipe.ingest.splitting import Piece, Range, Seen, pieces, ranges
from gristmill.datapipe.ingest.storage import unchanged
from gristmill.datapipe.ingest.warc import PageConfig, is_warc
from gristmill.datapipe.workflow.ledger import Entry
from gristmill.datapipe.workflow.stage import Resources
from gristmill.shards.manifest import NAME_PATTERN

__all__ = ["Ingest", "IngestConfig", "IngestJob", "InputFile"]


@dataclass(frozen=True)
class IngestConfig:
    text_field: str = "text"
    """A field, or a.b for the field b of the object (or struct) a; so for the other two."""
    id_field: str = "id"
    source_field: str = "source"
    source: str = ""
    """The source of rows that have no such field. Empty: the input file's name up to the first dot."""
    sources: tuple[str, ...] = ()
    """Only documents of these sources; empty means all."""
    rows_per_partition: int = 4096
    bytes_per_partition: int = 32 * 2**20
    max_line_bytes: int = 32 * 2**20
    piece_bytes: int = 256 * 2**20
    """A file of JSON lines that is not compressed, or of Parquet, is read in pieces of about this size at once."""
    page: PageConfig = field(default_factory=PageConfig)

    def __post_init__(self) -> None:
        check_range("ingest.rows_per_partition", self.rows_per_partition, 1)
        check_range("ingest.bytes_per_partition", self.bytes_per_partition, 1, 2**30)
        check_range("ingest.max_line_bytes", self.max_line_bytes, 1, 2**30)
        check_range("ingest.piece_bytes", self.piece_bytes, 1, 2**50)
        if self.source and not re.fullmatch(NAME_PATTERN, self.source):
            raise UsageError(f"ingest.source: {self.source!r}: use letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True)
class Ingest:
    """Raises UsageError where an input's URL holds a secret."""

    inputs: tuple[str, ...]
    config: IngestConfig = field(default_factory=IngestConfig)
    max_bad_fraction: float = 0.01
    resources: Resources = Resources()

    name: ClassVar[str] = "documents"
    version: ClassVar[int] = 2
    dependencies: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_inputs(self.inputs)

    def discover(self, run: Path) -> list[InputFile]:
        files, inside = discover(self.inputs), run.resolve()
        found = [file.name for file in files if isinstance(file.path, Path) and file.path.is_relative_to(inside)]
        if found:
            raise GristmillError(f"input {found[0]} lies in the run folder {run}: give the run its own --output")
        if any(is_warc(file.name) for file in files):
            check_installed()
        return files

    def ranges(self, files: Sequence[InputFile]) -> list[Range]:
        """What must be looked at before the pieces are known."""
        return [part for file in files for part in ranges(file, self.config.piece_bytes)]

    def pieces(self, files: Sequence[InputFile], seen: Seen) -> list[Piece]:
        """The pieces of work, in row order, each with the fingerprint of all that its documents depend on."""
        return [
            replace(piece, fingerprint=self._fingerprint(piece))
            for file in files
            for piece in pieces(file, self.config.piece_bytes, seen.of(ranges(file, self.config.piece_bytes)))
        ]

    def _fingerprint(self, piece: Piece) -> str:
        libraries = _versions() if is_warc(piece.file.name) else []
        return fingerprint([self.version, self.config, piece.file.name, piece.content, libraries])


@functools.cache
def _versions() -> list[str]:
    return [importlib.metadata.version(library) for library in DISTRIBUTIONS]


@dataclass
class IngestJob:
    config: IngestConfig
    documents: Path
    quarantine: Path
    name: ClassVar[str] = "documents"
    stateful: ClassVar[bool] = False

    def setup(self) -> None:
        pass

    def __call__(self, piece: Piece) -> dict[str, Any]:
        started, config, file = time.monotonic(), self.config, piece.file
        id_field = "id" if is_warc(file.name) else config.id_field
        made = Documents(file.name, config.text_field, id_field, config.source_field, config.source, config.sources)
        parts = Partitions(self.documents, piece.key, config.rows_per_partition, config.bytes_per_partition)
        reasons: Counter[str] = Counter()
        with (
            unchanged(file.path, file.stamp),
            atomic_path(self.quarantine / f"{piece.key}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as quarantine,
        ):
            rows = read_rows(file.path, file.name, config.text_field, config.max_line_bytes, piece.span, config.page)
            for row in rows:
                document = row if isinstance(row, Bad) else made.document(row)
                if isinstance(document, Bad):
                    reasons[document.reason] += document.rows
                    record = {"file": file.name, "row": document.number, "reason": document.reason}
                    record |= {"detail": document.detail, "sample": document.sample, "rows": document.rows}
                    quarantine.write(json.dumps(record, ensure_ascii=True) + "\n")
                elif document is not None:
                    parts.add(document)
        parts.close()
        documents = sum(part["rows"] for part in parts.written)
        counts = {"parts": parts.written, "quarantined": dict(sorted(reasons.items()))}
        entry = Entry(piece.fingerprint, "", documents, 0, round(time.monotonic() - started, 3), counts)
        return {"entry": vars(entry), "rows": documents}


def write_inputs(path: Path, pieces: Sequence[Piece], entries: Sequence[Entry]) -> None:
    """RUN/inputs.json: every input file with its size, what its content was told by, and what came of it."""
    files: dict[str, dict[str, Any]] = {}
    for piece, entry in zip(pieces, entries, strict=True):
        told = files.setdefault(
            piece.file.name,
            {
                "file": piece.file.name, "bytes": piece.file.size, "content": piece.content[0], "pieces": 0,
                "documents": 0, "quarantined": 0,
            },
        )  # fmt: skip
        told["pieces"] += 1
        told["documents"] += entry.rows
        told["quarantined"] += sum(entry.counts["quarantined"].values())
    written = list(files.values())
    if not path.exists() or read_json(path) != written:
        write_json(path, written)
