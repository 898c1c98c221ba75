"""What the files of a shard hold, against what its manifest says: hashes prove only that the files are those listed.

Files are mapped and read a block at a time: memory stays bounded whatever their size.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gristmill.base.errors import DataError
from gristmill.shards import metadata, packing
from gristmill.shards.manifest import ShardEntry, SourceManifest

BLOCK = 2**20  # documents or tokens at a time


class Arrays(NamedTuple):
    """A shard's mapped files. `meta` is None where that file is not here (a partial dataset)."""

    tokens: np.ndarray
    ends: np.ndarray
    loss: np.ndarray | None
    meta: Path | None


def check_values(folder: Path, manifest: SourceManifest, split: str, i: int, arrays: Arrays) -> None:
    """The values of one shard, whose files and ends (see ends.map_ends) are those that the manifest lists.

    Raises:
        DataError: another largest id, a document without EOS, a loss mask of other values than 0 and 1, metadata of
            other documents, or another number of best-fit rows; by file.
    """
    shards = manifest.shards(split)
    shard = shards[i]
    _check_tokens(folder / shard.tokens.path, shard, arrays.tokens, manifest.tokenizer.vocab_size)
    goes_on = i + 1 < len(shards) and shards[i + 1].continues
    _check_eos(folder / shard.tokens.path, arrays.tokens, arrays.ends, manifest.tokenizer.eos_id, goes_on)
    if shard.loss is not None and arrays.loss is not None:
        highest = max(int(arrays.loss[at : at + BLOCK].max()) for at in range(0, len(arrays.loss), BLOCK))
        if highest > 1:
            raise DataError(f"{folder / shard.loss.path}: holds other values than 0 and 1; write the source again")
    counted = packing.row_counts(arrays.ends, [int(length) for length in shard.packed])
    for length, rows in shard.packed.items():
        if counted[length] != rows:
            raise DataError(
                f"{folder / shard.ends.path}: best fit makes {counted[length]:,} rows of {length} tokens, but its "
                f"manifest says {rows:,}; write the source again"
            )
    if arrays.meta is not None:
        _check_metadata(arrays.meta, shard, arrays.ends, manifest.order.salt)


def _check_tokens(path: Path, shard: ShardEntry, tokens: np.ndarray, vocab_size: int) -> None:
    largest = max(int(tokens[at : at + BLOCK].max()) for at in range(0, len(tokens), BLOCK))
    if largest >= vocab_size:
        raise DataError(f"{path}: id {largest} is outside the vocabulary of {vocab_size}; write the source again")
    if largest != shard.max_id:
        raise DataError(
            f"{path}: its largest id is {largest}, but its manifest says {shard.max_id}; write the source again"
        )


def _check_eos(path: Path, tokens: np.ndarray, ends: np.ndarray, eos_id: int, goes_on: bool) -> None:
    """`goes_on`: the last document's next piece is in the next shard."""
    whole = len(ends) - goes_on
    for at in range(0, whole, BLOCK):
        wrong = tokens[ends[at : min(at + BLOCK, whole)] - 1] != eos_id
        if wrong.any():
            raise DataError(
                f"{path}: document {at + int(wrong.argmax()):,} does not end in EOS ({eos_id}); write the source again"
            )


def _check_metadata(path: Path, shard: ShardEntry, ends: np.ndarray, salt: str) -> None:
    from gristmill.shards.writing.documents import keys_of

    at, start, low, high = 0, 0, "", ""
    for batch in metadata.batches(path, shard.document_count, list(metadata.REQUIRED)):
        if not batch.num_rows:
            continue
        for name in metadata.REQUIRED:
            if batch[name].null_count:
                row = int(batch[name].is_null().to_numpy(zero_copy_only=False).argmax())
                raise DataError(f"{path}: column {name!r} is null in row {at + row:,}")
        some = ends[at : at + batch.num_rows].astype(np.int64)
        wrong = np.diff(some, prepend=start) != batch["tokens"].to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{path}: row {at + row:,} says {batch['tokens'][row].as_py():,} tokens, but {shard.ends.path} "
                f"{int(some[row]) - (int(some[row - 1]) if row else start):,}; write the source again"
            )
        first, last = keys_of([batch["id"][0].as_py(), batch["id"][batch.num_rows - 1].as_py()], salt).tolist()
        low, high = low or f"{first:016x}", f"{last:016x}"
        at, start = at + batch.num_rows, int(some[-1])
    if at != shard.document_count:
        raise DataError(f"{path}: {at:,} rows for {shard.document_count:,} documents; pull or write it again")
    if (low, high) != (shard.key_low, shard.key_high):
        raise DataError(
            f"{path}: its ids have the keys {low} to {high}, but its manifest says {shard.key_low} to "
            f"{shard.key_high}; write the source again"
        )
