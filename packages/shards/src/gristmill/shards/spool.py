"""Documents in any order in, documents in key order out, in bounded memory.

Pass one writes sorted runs beside the output; pass two takes key ranges that fit in memory from all runs at once. The
order is that of (key, id): it depends on the set of documents alone, not on batches, workers or memory sizes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.base.errors import DataError
from gristmill.shards.manifest import TokenizerInfo

CELL_BITS = 16  # key ranges are cut at multiples of 2**(64 - CELL_BITS)
REQUIRED = ("id", "tokens", "file", "row")


def schema(tokenizer: TokenizerInfo) -> pa.Schema:
    token = pa.uint16() if tokenizer.dtype == "u16" else pa.uint32()
    return pa.schema(
        [
            ("key", pa.uint64()),
            ("id", pa.string()),
            ("file", pa.string()),
            ("row", pa.int64()),
            ("tokens", pa.list_(token)),
            ("score", pa.float32()),
            ("language", pa.string()),
        ]
    )


def keys_of(ids: Iterable[str], salt: str) -> np.ndarray:
    """u64 [documents]: the first 8 bytes (big-endian) of blake2b(salt|id)."""
    prefix = hashlib.blake2b(f"{salt}|".encode())
    digests = []
    for document_id in ids:
        state = prefix.copy()
        state.update(document_id.encode("utf-8"))
        digests.append(state.digest()[:8])
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def in_key_order(
    folder: Path, batches: Iterable[pa.Table], tokenizer: TokenizerInfo, salt: str, memory_tokens: int = 2**25
) -> Iterator[pa.Table]:
    """Tables of `schema(tokenizer)` in (key, id) order. `folder` is emptied first and removed at the end.

    Memory: a few times `memory_tokens` tokens, whatever the size of the input (a batch must fit too).

    Raises:
        DataError: a missing column, a null, a token id outside the vocabulary, or two documents with one id.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        cells = np.zeros(2**CELL_BITS, np.int64)
        runs = list(_write_runs(folder, batches, tokenizer, salt, memory_tokens, cells))
        for low, high in _ranges(cells, memory_tokens):
            table = pa.concat_tables([_cut(run, low, high) for run in runs]).combine_chunks()
            table = table.sort_by([("key", "ascending"), ("id", "ascending")]).combine_chunks()
            _refuse_duplicates(table)
            yield table
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_runs(
    folder: Path,
    batches: Iterable[pa.Table],
    tokenizer: TokenizerInfo,
    salt: str,
    memory_tokens: int,
    cells: np.ndarray,
) -> Iterator[Path]:
    """Sorted runs of about `memory_tokens` tokens, as Arrow files; adds each document's tokens to its cell."""
    pending: list[pa.Table] = []
    held = count = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 4096):
            table = normalise(batch.slice(start, 4096), tokenizer, salt)
            lengths = list_lengths(table) + 1  # + EOS
            cell = (table["key"].to_numpy() >> np.uint64(64 - CELL_BITS)).astype(np.int64)
            np.add.at(cells, cell, lengths)
            pending.append(table)
            held += int(lengths.sum())
            if held >= memory_tokens:
                yield _write_run(folder / f"{count:06d}.arrow", pending)
                pending, held, count = [], 0, count + 1
    if pending:
        yield _write_run(folder / f"{count:06d}.arrow", pending)


def _write_run(path: Path, tables: list[pa.Table]) -> Path:
    table = pa.concat_tables(tables).combine_chunks().sort_by("key").combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _ranges(cells: np.ndarray, memory_tokens: int) -> Iterator[tuple[int, int]]:
    """Key ranges [low, high) of whole cells with at most `memory_tokens` tokens each (one cell may have more)."""
    shift = 64 - CELL_BITS
    start, total = 0, 0
    for cell in np.flatnonzero(cells).tolist():
        if total and total + int(cells[cell]) > memory_tokens:
            yield start << shift, cell << shift
            start, total = cell, 0
        total += int(cells[cell])
    if total:
        yield start << shift, 2**64


def _cut(run: Path, low: int, high: int) -> pa.Table:
    """A copy of the run's rows with low <= key < high; the map is let go, so open files stay few."""
    with pa.memory_map(str(run)) as source:
        table = pa.ipc.open_file(source).read_all()
        keys = table["key"].to_numpy()
        first = int(np.searchsorted(keys, np.uint64(low), "left"))
        last = len(keys) if high == 2**64 else int(np.searchsorted(keys, np.uint64(high), "left"))
        return table.take(pa.array(np.arange(first, last)))


def list_lengths(table: pa.Table) -> np.ndarray:
    """int32 [rows]: the number of ids in each row's `tokens`."""
    return pc.list_value_length(table["tokens"]).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]


def normalise(table: pa.Table, tokenizer: TokenizerInfo, salt: str) -> pa.Table:
    """The batch in the spool's schema, checked: required columns, no nulls, ids inside the vocabulary."""
    for name in REQUIRED:
        if name not in table.column_names:
            raise DataError(f"the batch has no column {name!r}; it has {', '.join(table.column_names)}")
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise DataError(f"column {name!r} is null in row {row} of a batch ({_place(table, row)})")
    _check_ids(table, tokenizer)
    columns: list[Any] = []
    for field in schema(tokenizer):
        if field.name == "key":
            columns.append(pa.array(keys_of(table["id"].to_pylist(), salt)))
        elif field.name in table.column_names:
            columns.append(_cast(table[field.name], field))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=schema(tokenizer)).combine_chunks()


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {field.name!r} cannot be {field.type}: {error}") from None


def _check_ids(table: pa.Table, tokenizer: TokenizerInfo) -> None:
    first_row = 0
    for chunk in table["tokens"].chunks:
        values = chunk.flatten()
        if values.null_count:
            raise DataError("a token id is null; token lists must hold numbers only")
        ids = values.to_numpy(zero_copy_only=False)
        bad = np.flatnonzero((ids < 0) | (ids >= tokenizer.vocab_size))
        if bad.size:
            ends = np.cumsum(list_lengths(table.slice(first_row, len(chunk))))
            row = first_row + int(np.searchsorted(ends, bad[0], "right"))
            raise DataError(
                f"{_place(table, row)}: token id {ids[bad[0]]} is outside the vocabulary of {tokenizer.vocab_size} of "
                f"{tokenizer.name}; tokenise with the tokenizer that the manifest names"
            )
        first_row += len(chunk)


def _refuse_duplicates(table: pa.Table) -> None:
    keys = table["key"].to_numpy()
    for row in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
        if table["id"][row].as_py() == table["id"][row + 1].as_py():
            raise DataError(
                f"two documents have one id: {_place(table, row)}, and {_place(table, row + 1)}; "
                "ids must be unique in a source: deduplicate, or prefix them by file"
            )


def _place(table: pa.Table, row: int) -> str:
    value = {name: table[name][row].as_py() for name in ("file", "row", "id") if name in table.column_names}
    return f"{value.get('file')}, row {value.get('row')}, id {value.get('id')!r}"
