"""Documents in any order in, documents in the order of (key, id) out, in bounded memory.

Each part of the input becomes sorted runs (Arrow files) and, last, a record: a part that has one is not read again. A
span of the order is a range of rows in every run; keys are uniform, so equal ranges of keys hold equal shares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError
from gristmill.shards.manifest import numpy_dtype
from gristmill.shards.writing.documents import KEY, LENGTH, Form, compute, normalise, place

STATE, LOCK = "spool.json", "lock"
BATCH_DOCUMENTS = 4096
RANGE_DOCUMENTS = 2**21  # keys and lengths of so many are in memory at a time: about 100 MB
OPEN_RUNS = 1024  # maps at a time; Linux gives a process 65,530


class Cut(NamedTuple):
    """A place in the order of documents: token `skip` of the document (key, id), or of the first one after that."""

    key: int
    id: str
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """The record of a part that is spooled. `loss` is None without documents; `first` is a document, for messages."""

    runs: tuple[str, ...]
    documents: int
    tokens: int
    loss: bool | None
    first: str


class Range(NamedTuple):
    """Documents in order: the tokens of each, and the cut before token `skip` of document i."""

    lengths: np.ndarray
    cut: Callable[[int, int], Cut]


@contextlib.contextmanager
def spool(folder: Path, key: str, keep: bool) -> Iterator[None]:
    """Hold the spool in `folder`; what another `key` left there is removed first, all of it after success.

    `keep`: leave it after an error, for the next attempt.

    Raises:
        GristmillError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise GristmillError(f"{folder}: another process writes this source; wait for it, or stop it") from None
    done = False
    try:
        if not (keep and (folder / STATE).is_file() and files.read_json(folder / STATE) == key):
            _empty(folder)
            files.write_json(folder / STATE, key)
        yield
        done = True
    finally:
        if done or not keep:
            _empty(folder)
            shutil.rmtree(folder)
        lock.release()


def _empty(folder: Path) -> None:
    """Remove all but the lock. The state goes first: without it nobody goes on with what is left after a kill."""
    (folder / STATE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finished(folder: Path, number: int) -> Part | None:
    """The record of part `number`, if it is spooled."""
    path = folder / f"part-{number:06d}.json"
    if not path.is_file():
        return None
    value = files.read_json(path)
    return Part(**{**value, "runs": tuple(value["runs"])})


def write_part(
    folder: Path, number: int, make: Callable[[], Iterable[pa.Table]], form: Form, memory_tokens: int
) -> Part:
    """Spool the tables that `make()` gives, in runs of about `memory_tokens` tokens (metadata counts by its bytes).

    Raises:
        DataError: as normalise; two documents with one id; loss masks for some documents only.
    """
    runs = folder / f"part-{number:06d}"
    shutil.rmtree(runs, ignore_errors=True)
    written: list[str] = []
    pending: list[pa.Table] = []
    held = documents = tokens = 0
    loss, first = None, ""

    def flush() -> None:
        nonlocal pending, held
        path = runs / f"{len(written):06d}.arrow"
        _write_run(path, pending)
        written.append(path.relative_to(folder).as_posix())
        pending, held = [], 0

    for batch in make():
        for start in range(0, batch.num_rows, BATCH_DOCUMENTS):
            rows = batch.slice(start, BATCH_DOCUMENTS)
            table = normalise(rows, form)
            masked = "loss" in table.column_names
            if loss is None:
                loss, first = masked, place(rows, 0)
            elif masked != loss:
                raise mixed_loss(*((first, place(rows, 0)) if loss else (place(rows, 0), first)))
            pending.append(table)
            documents += table.num_rows
            tokens += compute.sum(table[LENGTH]).as_py()
            held += table.nbytes
            if held >= memory_tokens * numpy_dtype(form.tokenizer.dtype).itemsize:
                flush()
    if pending:
        flush()
    part = Part(tuple(written), documents, tokens, loss, first)
    files.write_json(folder / f"part-{number:06d}.json", dataclasses.asdict(part))
    return part


def mixed_loss(masked: str, bare: str) -> DataError:
    return DataError(f"{masked}: has a loss mask, but {bare}: has none; give all documents of a source one, or none")


def key_ranges(runs: Sequence[Path], low: int, high: int, documents: int) -> Iterator[Range]:
    """The documents with low <= key < high, in order, a stretch at a time; `documents` are those of all runs.

    Raises:
        DataError: two documents with one id, both places named.
    """
    step = -(-(2**64) // max(1, -(-documents // RANGE_DOCUMENTS)))
    for start in range(low, high, step):
        yield _range(runs, Cut(start, ""), Cut(min(start + step, high), ""))


def read_span(runs: Sequence[Path], first: Cut, after: Cut) -> pa.Table:
    """All columns of the documents from `first` up to `after` (that one too, if tokens of it are before the cut)."""
    tables: list[pa.Table] = []
    for some in range(0, len(runs), OPEN_RUNS):
        slices = [_rows(_open(run), first, after) for run in runs[some : some + OPEN_RUNS]]
        tables.append(pa.concat_tables(slices).combine_chunks())
    table = pa.concat_tables(tables).combine_chunks()
    order = _in_order(table[KEY].to_numpy(), lambda row: _document(table, row))
    return table.take(pa.array(order)).combine_chunks()


def _write_run(path: Path, tables: list[pa.Table]) -> None:
    table = pa.concat_tables(tables).combine_chunks()
    order = _in_order(table[KEY].to_numpy(), lambda row: _document(table, row))
    table = table.take(pa.array(order)).combine_chunks()
    with (
        files.atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def _open(run: Path) -> pa.Table:
    """A run's columns, mapped. The file is closed; the map lives as long as what looks into it."""
    with pa.memory_map(str(run)) as source:
        return pa.ipc.open_file(source).read_all()


def _rows(table: pa.Table, first: Cut, after: Cut) -> pa.Table:
    start = _row(table, first)
    return table.slice(start, _row(table, after, behind=after.skip > 0) - start)


def _row(table: pa.Table, cut: Cut, behind: bool = False) -> int:
    """The first row that does not come before the cut's document; with `behind`, the first that comes after it."""
    keys = table[KEY].to_numpy()
    if cut.key >= 2**64:
        return len(keys)
    row = int(np.searchsorted(keys, np.uint64(cut.key), "left"))
    while row < len(keys) and int(keys[row]) == cut.key:
        document = table["id"][row].as_py()
        if document > cut.id or (document == cut.id and not behind):
            break
        row += 1
    return row


def _range(runs: Sequence[Path], first: Cut, after: Cut) -> Range:
    """Keys and lengths are copied, so that the maps are let go; an id is looked up where it is asked for."""
    keys, lengths, origins = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    for number, run in enumerate(runs):
        table = _open(run)
        start, stop = _row(table, first), _row(table, after)
        keys.append(table[KEY].to_numpy()[start:stop].copy())
        lengths.append(table[LENGTH].to_numpy()[start:stop].copy())
        origins.append(np.stack([np.full(stop - start, number), np.arange(start, stop)], axis=1))
    origin = np.concatenate(origins)

    def document(i: int) -> tuple[str, str]:
        number, row = origin[i].tolist()
        return _document(_open(runs[number]), row)

    key = np.concatenate(keys)
    order = _in_order(key, document)
    return Range(
        np.concatenate(lengths)[order],
        lambda i, skip: Cut(int(key[order[i]]), document(int(order[i]))[0], skip),
    )


def _document(table: pa.Table, row: int) -> tuple[str, str]:
    """(id, where it comes from)."""
    return table["id"][row].as_py(), place(table, row)


def _in_order(keys: np.ndarray, document: Callable[[int], tuple[str, str]]) -> np.ndarray:
    """Row numbers in the order of (key, id); `document(row)` is asked only where keys are equal.

    Raises:
        DataError: two documents with one id.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(equal):
        return order
    breaks = np.flatnonzero(np.diff(equal) > 1) + 1
    for group in np.split(equal, breaks):
        rows = slice(int(group[0]), int(group[-1]) + 2)
        members = sorted((*document(row), row) for row in order[rows].tolist())
        for (one, here, _), (other, there, _) in itertools.pairwise(members):
            if one == other:
                raise DataError(
                    f"two documents have one id: {here}, and {there}; "
                    "ids must be unique in a source: deduplicate, or prefix them by file"
                )
        order[rows] = [row for _, _, row in members]
    return order
