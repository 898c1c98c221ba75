"""Megatron-LM's IndexedDataset: PREFIX.bin holds tokens, PREFIX.idx sequences and the documents made of them.

PREFIX.idx, little-endian: magic, u64 version, u8 dtype code, u64 sequences, u64 documents + 1; then i32 lengths in
tokens and i64 byte offsets of the sequences, i64 numbers of the sequences that documents begin with (the last is their
count), and i8 modes where the data is multimodal. Read from megatron/core/datasets/indexed_dataset.py (core 0.16).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gristmill.base.errors import DataError
from gristmill.shards.importers.flat import CHECKED, Found, Indexed, indexed, integers, mapped

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
HEADER = struct.Struct("<9sQBQQ")
# 9 and 10 are NeMo's (nlp/data/language_modeling/megatron/indexed_dataset.py)
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2", 9: "<u4", 10: "<u8"}


def find(path: Path, name: str, eos_id: int) -> Found:
    """`path`: PREFIX.bin, with PREFIX.idx beside it.

    Raises:
        DataError: no index of this kind, another version, truncated, tokens that are no integers, an index that does
            not cover the tokens, or sequences of another mode than text.
    """
    _check_sequences(path)
    return indexed(_open, path, name, eos_id, (path, index_path(path)))


def index_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".bin") + ".idx")


def has_index(path: Path) -> bool:
    """Whether an index of this kind, of whatever version, stands beside PREFIX.bin."""
    index = index_path(path)
    if not index.is_file():
        return False
    with index.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _open(path: Path) -> Indexed:
    tokens, _lengths, pointers, documents, _modes = _maps(path)

    def bounds(first: int, last: int) -> np.ndarray:
        sequence = documents[first : last + 1]
        if not len(pointers):
            return np.zeros(len(sequence), np.int64)
        inside = pointers[np.minimum(sequence, len(pointers) - 1)] // tokens.itemsize
        return np.where(sequence < len(pointers), inside, len(tokens))

    return Indexed(path, tokens, len(documents) - 1, bounds)


def _maps(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and of the index: lengths, pointers, documents, modes."""
    index = index_path(path)
    if not index.is_file():
        raise DataError(f"{index}: no such file; {path.name} cannot be read without its index")
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        raise DataError(f"{index}: not the index of a Megatron dataset: it does not begin with MMIDIDX")
    if len(head) < HEADER.size:
        raise DataError(f"{index}: truncated: {len(head)} bytes, its header alone has {HEADER.size}")
    _magic, version, code, sequences, documents = HEADER.unpack(head)
    if version != VERSION:
        raise DataError(f"{index}: version {version}, this reads version {VERSION}; write it again with Megatron-LM")
    if code not in DTYPES:
        raise DataError(f"{index}: unknown dtype code {code}; known are 1 to {max(DTYPES)}")
    dtype = integers(index, np.dtype(DTYPES[code]))
    size, plain = index.stat().st_size, HEADER.size + 12 * sequences + 8 * documents
    if size not in (plain, plain + sequences):
        wrong = "truncated" if size < plain else "wrong size"
        raise DataError(f"{index}: {wrong}: {size:,} bytes, {plain:,} expected for {sequences:,} sequences")
    if not documents:
        raise DataError(f"{index}: its list of documents is empty, without even the 0 that it begins with")
    at = HEADER.size
    return (
        mapped(path, dtype),
        mapped(index, "<i4", at, sequences),
        mapped(index, "<i8", at + 4 * sequences, sequences),
        mapped(index, "<i8", at + 12 * sequences, documents),
        mapped(index, "<i1", plain, sequences if size > plain else 0),
    )


def _check_sequences(path: Path) -> None:
    """Sequences must follow one another from byte 0 to the end of the tokens; documents must be made of all of them."""
    index = index_path(path)
    tokens, lengths, pointers, documents, modes = _maps(path)
    end = 0
    for first in range(0, len(lengths), CHECKED):
        size = lengths[first : first + CHECKED].astype(np.int64) * tokens.itemsize
        begin = end + np.cumsum(size) - size
        wrong = (size < 0) | (pointers[first : first + CHECKED] != begin)
        if wrong.any():
            row = first + int(np.argmax(wrong))
            raise DataError(
                f"{index}: sequence {row} has {lengths[row]} tokens at byte {pointers[row]}; sequences must follow "
                "one another (32-bit overflow in an old writer?)"
            )
        end += int(size.sum())
        if modes[first : first + CHECKED].any():
            row = first + int(np.argmax(modes[first : first + CHECKED] != 0))
            raise DataError(f"{index}: sequence {row} is of mode {modes[row]}; only text (mode 0) can be imported")
    if end != tokens.nbytes:
        wrong = "truncated" if end > tokens.nbytes else "longer than its index"
        raise DataError(f"{path}: {wrong}: {tokens.nbytes:,} bytes, but its index covers {end:,}")
    if documents[0] != 0 or documents[-1] != len(lengths):
        raise DataError(
            f"{index}: its documents cover sequences {documents[0]} to {documents[-1]} of {len(lengths)}; "
            "the last document was not ended"
        )
    for first in range(0, len(documents) - 1, CHECKED):
        if (np.diff(documents[first : first + CHECKED + 1]) < 0).any():
            raise DataError(f"{index}: its list of documents does not ascend")
