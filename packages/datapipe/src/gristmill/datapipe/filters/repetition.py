"""Repetition inside a document, after Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), over shared features.

Duplicate lines and paragraphs do not count their first occurrence; duplicate n-grams are found greedily from the left,
a repeated one skipping past itself, as datatrove's GopherRepetitionFilter does. All values are fractions in [0, 1].
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.features import Features, mix

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)


def repetition(features: Features) -> dict[str, NDArray[np.float32]]:
    """Columns duplicate_line*, duplicate_paragraph*, top_N_gram and duplicate_N_gram, one value per document."""
    total = np.maximum(features.class_counts.sum(axis=1), 1)
    columns: dict[str, NDArray[np.float32]] = {}
    for kind in ("line", "paragraph"):
        hashes, lengths = getattr(features, f"{kind}_hash"), getattr(features, f"{kind}_length")
        offsets = getattr(features, f"{kind}_offsets")
        items, letters = _duplicates(hashes, lengths, offsets)
        columns[f"duplicate_{kind}s"] = (items / np.maximum(np.diff(offsets), 1)).astype(np.float32)
        columns[f"duplicate_{kind}_characters"] = (letters / total).astype(np.float32)
    word_total = np.maximum(_sums(features.word_length, features.word_offsets), 1)
    for size in TOP_NGRAMS:
        top = _top_ngram(features.word_hash, features.word_length, features.word_offsets, size)
        columns[f"top_{size}_gram"] = np.minimum(top / word_total, 1).astype(np.float32)
    for size in DUPLICATE_NGRAMS:
        repeated = _duplicate_ngrams(features.word_hash, features.word_length, features.word_offsets, size)
        columns[f"duplicate_{size}_gram"] = (repeated / word_total).astype(np.float32)
    return columns


def _sums(values: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    return running[offsets[1:]] - running[offsets[:-1]]


@numba.njit(cache=True)
def _table_size(items):
    size = 16
    while size < 2 * items:
        size *= 2
    return size


@numba.njit(cache=True)
def _slot(table, used, key):
    """Open addressing: where `key` is, or where it would go. `used` marks slots that hold a key."""
    mask = len(table) - 1
    at = np.int64(key & np.uint64(mask))
    while used[at] and table[at] != key:
        at = (at + 1) & mask
    return at


@numba.njit(cache=True)
def _duplicates(hashes, lengths, offsets):
    documents = len(offsets) - 1
    items, characters = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
    for document in range(documents):
        start, end = offsets[document], offsets[document + 1]
        size = _table_size(end - start)
        table, used = np.zeros(size, np.uint64), np.zeros(size, np.bool_)
        for at in range(start, end):
            slot = _slot(table, used, hashes[at])
            if used[slot]:
                items[document] += 1
                characters[document] += lengths[at]
            else:
                table[slot], used[slot] = hashes[at], True
    return items, characters


@numba.njit(cache=True)
def _ngram(hashes, at, size):
    value = hashes[at]
    for step in range(1, size):
        value = value * np.uint64(0x9E3779B97F4A7C15) + hashes[at + step]
    return mix(value)


@numba.njit(cache=True)
def _top_ngram(hashes, lengths, offsets, size):
    """Characters in all occurrences of the n-gram that covers most; n-grams that occur once do not count."""
    documents = len(offsets) - 1
    covered = np.zeros(documents, np.int64)
    for document in range(documents):
        start, end = offsets[document], offsets[document + 1] - size + 1
        if end - start < 2:
            continue
        slots = _table_size(end - start)
        table, used, count = np.zeros(slots, np.uint64), np.zeros(slots, np.bool_), np.zeros(slots, np.int64)
        best_count, best_characters = 1, 0
        for at in range(start, end):
            key = _ngram(hashes, at, size)
            slot = _slot(table, used, key)
            table[slot], used[slot] = key, True
            count[slot] += 1
            characters = 0
            for step in range(size):
                characters += lengths[at + step]
            if count[slot] > best_count or (
                count[slot] == best_count and best_count > 1 and characters > best_characters
            ):
                best_count, best_characters = count[slot], characters
        if best_count > 1:
            covered[document] = best_count * best_characters
    return covered


@numba.njit(cache=True)
def _duplicate_ngrams(hashes, lengths, offsets, size):
    documents = len(offsets) - 1
    repeated = np.zeros(documents, np.int64)
    for document in range(documents):
        start, end = offsets[document], offsets[document + 1]
        slots = _table_size(max(end - start, 1))
        table, used = np.zeros(slots, np.uint64), np.zeros(slots, np.bool_)
        at = start
        while at + size <= end:
            key = _ngram(hashes, at, size)
            slot = _slot(table, used, key)
            if used[slot]:
                for step in range(size):
                    repeated[document] += lengths[at + step]
                at += size
            else:
                table[slot], used[slot] = key, True
                at += 1
    return repeated
