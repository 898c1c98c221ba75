"""How a large file becomes several pieces of work, the same ones wherever it is read, and what must be known for that.

A piece is the lines that begin in a range of bytes, or a range of row groups. Rows are told by their number in the
whole file, so lines are counted first, by the workers; the same pass hashes what no store vouches for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

from gristmill.base.errors import DataError
from gristmill.base.files import fingerprint, read_object, write_json
from gristmill.datapipe.ingest import parquet
from gristmill.datapipe.ingest.inputs import InputFile
from gristmill.datapipe.ingest.rows import Span
from gristmill.datapipe.ingest.storage import open_input, unchanged

READ_BYTES = 2**20
BATCH_RANGES, BATCH_BYTES = 256, 2**26
"""Small files are looked at many at a time: a task costs more than one of them does."""
KEEP_SECONDS = 30.0
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Range:
    """Bytes [start, end) of a file that is to be looked at before it is read."""

    file: InputFile
    start: int
    end: int
    hashed: bool
    lines: bool
    groups: bool


@dataclass(frozen=True)
class Piece:
    """What one worker reads at a time: a file, or a part of it."""

    key: str
    name: str
    """For errors and progress; rows carry the file's name."""
    file: InputFile
    span: Span | None
    content: tuple[str | int, ...]
    """What identifies the bytes and the part of them: file content, and the span."""
    fingerprint: str = ""


def ranges(file: InputFile, piece_bytes: int) -> list[Range]:
    """What to look at; nothing where a store vouches for the content of a file that stays whole."""
    lower, large = file.name.lower(), file.size > piece_bytes
    hashed, lines = not file.content, large and lower.endswith(LINES)
    groups = large and lower.endswith(".parquet")
    if not (hashed or lines):
        return [Range(file, 0, 0, False, False, True)] if groups else []
    cuts = _cuts(file.size, piece_bytes)
    return [Range(file, start, end, hashed, lines, groups and not start) for start, end in pairwise(cuts)]


def pieces(file: InputFile, piece_bytes: int, seen: Sequence[dict[str, Any]]) -> list[Piece]:
    """The pieces of a file, in row order. `seen`: what look() found in each of its ranges().

    They depend on the file and `piece_bytes` alone. Keys sort as the rows stand.
    """
    content = file.content or _joined([each["sha256"] for each in seen])
    spans = _spans(file, piece_bytes, seen)
    if len(spans) < 2:
        return [Piece(file.key, file.name, file, None, (content,))]
    digits = max(5, len(str(len(spans) - 1)))
    return [
        Piece(
            f"{file.key}-{index:0{digits}d}", f"{file.name} (piece {index + 1} of {len(spans)})", file, span,
            (content, span.start, span.end, span.first),
        )
        for index, span in enumerate(spans)
    ]  # fmt: skip


def look(part: Range) -> dict[str, Any]:
    """sha256 of the bytes, line feeds in them, row groups as (rows, bytes): what the range asks for."""
    found: dict[str, Any] = {}
    if part.hashed or part.lines:
        digest, feeds = hashlib.sha256(), 0
        with open_input(part.file.path) as file:
            file.seek(part.start)
            left = part.end - part.start
            while left > 0 and (data := file.read(min(READ_BYTES, left))):
                left -= len(data)
                feeds += data.count(b"\n") if part.lines else 0
                if part.hashed:
                    digest.update(data)
        found = {"sha256": digest.hexdigest(), "feeds": feeds}
    if part.groups:
        found["groups"] = parquet.row_groups(part.file.path)
    return found


@dataclass
class LookJob:
    """look() at a batch of ranges, in a worker."""

    name: str
    stateful: ClassVar[bool] = False

    def setup(self) -> None:
        pass

    def __call__(self, batch: tuple[Range, ...]) -> list[dict[str, Any]]:
        found = []
        for part in batch:
            with unchanged(part.file.path, part.file.stamp):
                found.append(look(part))
        return found


class Seen:
    """What was found in ranges, kept from run to run: looked at again only when size or stamp of the file changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._kept: dict[str, dict[str, Any]] = read_object(path) if path.exists() else {}
        except DataError:  # it only saves time
            self._kept = {}
        self._known = dict(self._kept)
        self._written = time.monotonic()

    def missing(self, parts: Sequence[Range]) -> list[tuple[Range, ...]]:
        """Those not yet known, in batches of about the same size; what is none of `parts` is forgotten."""
        used = {_key(part) for part in parts}
        self._known = {key: found for key, found in self._known.items() if key in used}
        batches: list[list[Range]] = []
        size = 0
        for part in parts:
            if _key(part) not in self._known:
                size += part.end - part.start
                if not batches or size > BATCH_BYTES or len(batches[-1]) >= BATCH_RANGES:
                    batches.append([])
                    size = part.end - part.start
                batches[-1].append(part)
        return [tuple(batch) for batch in batches]

    def learn(self, batch: tuple[Range, ...], found: Sequence[dict[str, Any]]) -> None:
        self._known |= {_key(part): each for part, each in zip(batch, found, strict=True)}
        if time.monotonic() - self._written > KEEP_SECONDS:
            self.keep()

    def of(self, parts: Sequence[Range]) -> list[dict[str, Any]]:
        return [self._known[_key(part)] for part in parts]

    def keep(self) -> None:
        """For the next run."""
        self._written = time.monotonic()
        if self._known != self._kept:
            write_json(self._path, self._known)
            self._kept = dict(self._known)


def _key(part: Range) -> str:
    what = f"{part.hashed:d}{part.lines:d}{part.groups:d}"
    return f"{part.file.path.as_posix()} {part.file.stamp} {part.start}-{part.end} {what}"


def _cuts(size: int, piece_bytes: int) -> list[int]:
    """Evenly, so that no piece is a small rest."""
    count = max(1, -(-size // piece_bytes))
    return [size * index // count for index in range(count + 1)]


def _spans(file: InputFile, piece_bytes: int, seen: Sequence[dict[str, Any]]) -> list[Span]:
    if file.size <= piece_bytes:
        return []
    if file.name.lower().endswith(LINES):
        cuts = _cuts(file.size, piece_bytes)
        before = accumulate([each["feeds"] for each in seen], initial=0)
        return [Span(start, end, first) for (start, end), first in zip(pairwise(cuts), before)]
    spans: list[Span] = []
    start, first, size, rows = 0, 0, 0, 0
    groups = seen[0].get("groups", []) if seen else []
    for index, (group_rows, group_bytes) in enumerate(groups):
        if size and size + group_bytes > piece_bytes:
            spans.append(Span(start, index, first))
            start, first, size = index, rows, 0
        rows, size = rows + group_rows, size + group_bytes
    return [*spans, Span(start, len(groups), first)] if groups else []


def _joined(hashes: Sequence[str]) -> str:
    return hashes[0] if len(hashes) == 1 else fingerprint(list(hashes))
