"""Scoring that goes on where it was killed: each part of the documents is a file beside the output until all are there.

A part is named by everything its scores depend on, so what is found there is either right or never looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.base.errors import GristmillError
from gristmill.base.files import fingerprint
from gristmill.scorer.tables import read_parquet, write_parquet

FORMAT = "gristmill.scores/1"


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Hold the parts of an output while they are made, and until they are in it.

    Raises:
        GristmillError: another process does.
    """
    folder = _folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), path.stat())  # not that of one who has just finished
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise GristmillError(f"{output}: another process scores into it; wait for it, or name another --output")
        try:
            yield
        finally:
            if not any(folder.glob("*.parquet")):
                finished(output)


def in_parts(
    documents: pa.Table, output: Path, rows: int, key: Mapping[str, Any], score: Callable[[pa.Table], pa.Table]
) -> tuple[pa.Table, int]:
    """score() of each `rows` documents, one after the other, and how many parts were there already.

    key: what the scores depend on besides the documents. Call this within alone(), and finished() once the output is
    written.
    """
    folder = _folder(output)
    tables: list[pa.Table] = []
    known = 0
    for start in range(0, max(len(documents), 1), rows):
        part = documents.slice(start, rows)
        path = folder / f"{fingerprint({'format': FORMAT, 'documents': _sha(part), **key})}.parquet"
        if path.exists():
            known += 1
        else:
            write_parquet(score(part), path)
        tables.append(read_parquet(path))
    return pa.concat_tables(tables), known


def finished(output: Path) -> None:
    """Remove the parts: they are in the output now."""
    shutil.rmtree(_folder(output), ignore_errors=True)


def _folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def _sha(table: pa.Table) -> str:
    total = hashlib.sha256()
    for name in table.column_names:
        total.update(name.encode() + b"\0")
        for value in table[name].to_pylist():
            data = b"" if value is None else str(value).encode(errors="surrogatepass")
            total.update(b"%d:" % (-1 if value is None else len(data)) + data)
    return total.hexdigest()
