"""Documents in a flat, memory-mapped array of tokens, found by an index or by the tokens between them, as tables.

A table holds a bounded number of tokens, whatever the size of the file, and is made without a loop over documents.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError

BATCH_TOKENS = 2**22
BATCH_DOCUMENTS = 2**16
PART_TOKENS = 2**27  # one process reads that much at a time
CHECKED = 2**20  # index entries that are looked at together

Tables = Callable[[], Iterator[pa.Table]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What an importer sees in one input: the files, for provenance, and the parts that read it, in any process."""

    files: tuple[Path, ...]
    parts: dict[str, Tables]
    documents: int | None = None
    """As its index or its lines tell, if they do; the empty ones too."""
    quarantined: int = 0


@dataclasses.dataclass(frozen=True)
class Indexed:
    """The tokens of one file. bounds(first, last): offsets of documents first to last; what document last begins with
    is what document last - 1 ends with."""

    path: Path
    tokens: np.ndarray
    count: int
    bounds: Callable[[int, int], np.ndarray]
    loss: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class IndexedPart:
    """Reads documents [first, last) of a file, which it opens itself. `masks`: with a column `loss`."""

    open: Callable[[Path], Indexed]
    path: Path
    name: str
    eos_id: int
    masks: bool
    first: int
    last: int

    def __call__(self) -> Iterator[pa.Table]:
        documents = self.open(self.path)
        for first, bounds in _batches(documents, self.first, self.last):
            rows = np.arange(first, first + len(bounds) - 1)
            loss = _loss(documents, bounds) if self.masks else None
            yield from _tables(self.name, documents.tokens, rows, bounds, self.eos_id, loss)


@dataclasses.dataclass(frozen=True)
class ScannedPart:
    """Reads a file whose documents are told apart by EOS alone, after each or before each. Empty ones do not count."""

    open: Callable[[Path], np.ndarray]
    path: Path
    name: str
    eos_id: int

    def __call__(self) -> Iterator[pa.Table]:
        tokens, row, start, window = self.open(self.path), 0, 0, BATCH_TOKENS
        while start < len(tokens):
            stop = min(start + window, len(tokens))
            ends = np.flatnonzero(tokens[start:stop] == self.eos_id) + (start + 1)
            if stop == len(tokens):
                if not len(ends) and not start:
                    raise DataError(
                        f"{self.path}: has no token {self.eos_id} that would tell documents apart; "
                        "name the token that does (eos)"
                    )
                ends = np.union1d(ends, [stop])
            if not len(ends):
                window *= 2
                continue
            bounds = np.concatenate([[start], ends])
            filled = np.diff(bounds) > (tokens[ends - 1] == self.eos_id)
            yield from _tables(self.name, tokens, row + np.cumsum(filled) - 1, bounds, self.eos_id, None)
            row, start, window = row + int(filled.sum()), int(ends[-1]), BATCH_TOKENS


def indexed(
    open_: Callable[[Path], Indexed], path: Path, name: str, eos_id: int, files: tuple[Path, ...], masks: bool = False
) -> Found:
    """Check a file's index against its tokens, and cut it into parts of about PART_TOKENS.

    Raises:
        DataError: documents that overlap, or that leave tokens out.
    """
    documents = open_(path)
    _check(documents)
    cuts = [0]
    while cuts[-1] < documents.count:
        limit = int(documents.bounds(cuts[-1], cuts[-1])[0]) + PART_TOKENS
        end = bisect.bisect_right(range(documents.count + 1), limit, key=lambda i: int(documents.bounds(i, i)[0])) - 1
        cuts.append(max(end, cuts[-1] + 1))
    parts = {
        f"{name}:{first}": IndexedPart(open_, path, name, eos_id, masks, first, last)
        for first, last in itertools.pairwise(cuts)
    }
    return Found(files, parts, documents.count)


def mapped(path: Path, dtype: np.dtype[Any] | str, offset: int = 0, count: int | None = None) -> np.ndarray:
    """`count` values from byte `offset` on, or all that follow, memory-mapped read-only.

    Raises:
        DataError: no such file, or one that ends in the middle of them.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind, size = np.dtype(dtype), path.stat().st_size - offset
    wanted = size if count is None else count * kind.itemsize
    if wanted > size or wanted % kind.itemsize or size < 0:
        raise DataError(
            f"{path}: truncated: {max(size, 0):,} bytes from byte {offset} on are not "
            + (f"whole {kind} values" if count is None else f"{count:,} {kind} values")
        )
    if not wanted:
        return np.empty(0, kind)
    return np.asarray(np.memmap(path, kind, "r", offset, (wanted // kind.itemsize,)))


def by_ends(ends: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """`Indexed.bounds` of documents that follow one another, from the offset after each."""

    def bounds(first: int, last: int) -> np.ndarray:
        inner = ends[max(first - 1, 0) : last].astype(np.int64)
        return inner if first else np.concatenate([np.zeros(1, np.int64), inner])

    return bounds


def integers(path: Path, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type, if tokens can be of it."""
    if dtype.kind not in "iu":
        raise DataError(f"{path}: holds {dtype} values; token ids are whole numbers")
    return dtype


def _check(documents: Indexed) -> None:
    path, tokens = documents.path, len(documents.tokens)
    if documents.loss is not None and len(documents.loss) != tokens:
        raise DataError(f"{path}: {tokens:,} tokens, but its loss mask has {len(documents.loss):,} values")
    for first in range(0, documents.count, CHECKED):
        bounds = documents.bounds(first, min(first + CHECKED, documents.count))
        if (np.diff(bounds) < 0).any():
            row = first + int(np.argmax(np.diff(bounds) < 0))
            raise DataError(f"{path}: its index is wrong: document {row} ends before it begins")
    low, high = (int(documents.bounds(i, i)[0]) for i in (0, documents.count))
    if low != 0 or high != tokens:
        raise DataError(
            f"{path}: its index covers tokens {low:,} to {high:,}, but the file holds {tokens:,}: "
            "one of them is truncated, or they do not belong together"
        )


def _batches(documents: Indexed, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first document, bounds), at most BATCH_TOKENS tokens each unless one document is longer."""
    for start in range(first, last, BATCH_DOCUMENTS):
        bounds = documents.bounds(start, min(start + BATCH_DOCUMENTS, last))
        begin = 0
        while begin < len(bounds) - 1:
            end = int(np.searchsorted(bounds, bounds[begin] + BATCH_TOKENS, "right")) - 1
            end = max(end, begin + 1)
            yield start + begin, bounds[begin : end + 1]
            begin = end


def _loss(documents: Indexed, bounds: np.ndarray) -> np.ndarray:
    low, high = int(bounds[0]), int(bounds[-1])
    return np.ones(high - low, np.uint8) if documents.loss is None else documents.loss[low:high]


def _tables(
    name: str, tokens: np.ndarray, rows: np.ndarray, bounds: np.ndarray, eos_id: int, loss: np.ndarray | None
) -> Iterator[pa.Table]:
    """The documents between `bounds`, each less one EOS at its end; those that hold no token are left out."""
    low = int(bounds[0])
    values, lengths = tokens[low : int(bounds[-1])], np.diff(bounds)
    filled = np.flatnonzero(lengths)
    last = bounds[1:][filled] - 1 - low
    ended = values[last] == eos_id
    text = np.ones(len(values), bool)
    text[last[ended]] = False
    lengths[filled] -= ended
    held = lengths > 0
    if not held.any():
        return
    rows = rows[held]
    offsets = pa.array(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[held])]))

    def lists(flat: np.ndarray) -> pa.Array:
        whole = flat[text]
        return pa.LargeListArray.from_arrays(offsets, pa.array(whole.astype(whole.dtype.newbyteorder("="), copy=False)))

    columns = {
        "id": [f"{name}:{row}" for row in rows.tolist()],
        "tokens": lists(values),
        "file": pa.repeat(name, len(rows)),
        "row": pa.array(rows, pa.int64()),
    }
    yield pa.table(columns | ({} if loss is None else {"loss": lists(loss)}))
