"""One pass over a batch of documents: words, lines and paragraphs as hashes and lengths, characters counted by class.

Every heuristic filter and the MinHash shingles are numeric code over these flat arrays. A word is a run of letters,
digits and marks, case-folded; in scripts without spaces it is one character. Text is compared in NFC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.text import characters
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, OTHER, SPACE, SYMBOL

CLASSES = 7
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_SECOND_OFFSET = np.uint64(0x9E3779B97F4A7C15)
_SECOND_PRIME = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Features:
    """Flat arrays over a batch; `*_offsets` (documents + 1) say where a document's items start. Lengths: characters."""

    word_hash: NDArray[np.uint64]
    word_length: NDArray[np.int32]
    word_offsets: NDArray[np.int64]
    line_hash: NDArray[np.uint64]
    line_length: NDArray[np.int32]
    line_offsets: NDArray[np.int64]
    paragraph_hash: NDArray[np.uint64]
    paragraph_length: NDArray[np.int32]
    paragraph_offsets: NDArray[np.int64]
    class_counts: NDArray[np.int64]
    """[documents, CLASSES]: characters of each class of text.characters."""
    identity: NDArray[np.uint64]
    """[documents, 2]: 128-bit hash of the words and symbols in order; space, case and line breaks do not count."""

    def __len__(self) -> int:
        return len(self.word_offsets) - 1


def featurise(texts: pa.ChunkedArray | pa.Array) -> Features:
    """Featurise a column of strings; a null counts as empty."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    normal = pc.utf8_normalize(pc.fill_null(texts, ""), form="NFC").cast(pa.large_string())
    buffers = normal.buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[normal.offset : normal.offset + len(normal) + 1]
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None and buffers[2].size else np.zeros(1, np.uint8)
    classes, folded = characters.tables()
    sizes = np.zeros((len(normal) + 1, 3), np.int64)
    counts = np.zeros((len(normal), CLASSES), np.int64)
    identity = np.zeros((len(normal), 2), np.uint64)
    hashes, lengths = np.zeros(0, np.uint64), np.zeros(0, np.int32)  # the first scan only counts
    _scan(
        data, offsets, classes, folded, sizes, counts, identity,
        hashes, lengths, hashes, lengths, hashes, lengths, False,
    )  # fmt: skip
    starts = np.cumsum(sizes, axis=0)
    words, lines, paragraphs = starts[-1]
    word_hash, word_length = np.empty(words, np.uint64), np.empty(words, np.int32)
    line_hash, line_length = np.empty(lines, np.uint64), np.empty(lines, np.int32)
    paragraph_hash, paragraph_length = np.empty(paragraphs, np.uint64), np.empty(paragraphs, np.int32)
    _scan(
        data, offsets, classes, folded, starts, counts, identity,
        word_hash, word_length, line_hash, line_length, paragraph_hash, paragraph_length, True,
    )  # fmt: skip
    word_offsets, line_offsets, paragraph_offsets = (starts[:, kind].copy() for kind in range(3))
    return Features(
        word_hash, word_length, word_offsets, line_hash, line_length, line_offsets,
        paragraph_hash, paragraph_length, paragraph_offsets, counts, identity,
    )  # fmt: skip


@numba.njit(cache=True, inline="always")
def mix(value):
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True)
def _scan(
    data, offsets, classes, folded, starts, counts, identity,
    word_hash, word_length, line_hash, line_length, paragraph_hash, paragraph_length, fill,
):  # fmt: skip
    """Counts items into starts[document + 1] where not `fill`; else writes them from starts[document] on."""
    for document in range(len(offsets) - 1):
        words = starts[document, 0] if fill else 0
        lines = starts[document, 1] if fill else 0
        paragraphs = starts[document, 2] if fill else 0
        word, length = _FNV_OFFSET, 0
        line, line_characters, line_trailing = _FNV_OFFSET, 0, 0
        paragraph, paragraph_characters = _FNV_OFFSET, 0
        first, second = _FNV_OFFSET, _SECOND_OFFSET
        newlines = 0
        position, end = offsets[document], offsets[document + 1]
        while position <= end:
            if position == end:  # a virtual blank line ends every open item
                code, kind, position = np.int64(10), NEWLINE, position + 1
            else:
                byte = data[position]
                if byte < 0x80:
                    code, position = np.int64(byte), position + 1
                elif byte < 0xE0:
                    code = (np.int64(byte & 0x1F) << 6) | np.int64(data[position + 1] & 0x3F)
                    position += 2
                elif byte < 0xF0:
                    code = (np.int64(byte & 0x0F) << 12) | (np.int64(data[position + 1] & 0x3F) << 6)
                    code |= np.int64(data[position + 2] & 0x3F)
                    position += 3
                else:
                    code = (np.int64(byte & 0x07) << 18) | (np.int64(data[position + 1] & 0x3F) << 12)
                    code |= (np.int64(data[position + 2] & 0x3F) << 6) | np.int64(data[position + 3] & 0x3F)
                    position += 4
                kind = classes[code]
                if fill:
                    counts[document, kind] += 1
            fold = np.uint64(folded[code])
            if kind in (LETTER, DIGIT):
                word = (word ^ fold) * _FNV_PRIME
                length += 1
            else:
                if length:
                    if fill:
                        word_hash[words], word_length[words] = mix(word), length
                    words += 1
                    word, length = _FNV_OFFSET, 0
                if kind == IDEOGRAPH:
                    if fill:
                        word_hash[words], word_length[words] = mix((_FNV_OFFSET ^ fold) * _FNV_PRIME), 1
                    words += 1
            if kind == NEWLINE:
                newlines += 1
                if line_characters:
                    if fill:
                        line_hash[lines], line_length[lines] = mix(line), line_characters
                    lines += 1
                    line, line_characters, line_trailing = _FNV_OFFSET, 0, 0
                if paragraph_characters and (newlines >= 2 or position > end):
                    if fill:
                        paragraph_hash[paragraphs], paragraph_length[paragraphs] = mix(paragraph), paragraph_characters
                    paragraphs += 1
                    paragraph, paragraph_characters = _FNV_OFFSET, 0
            elif kind == SPACE:
                line_trailing += 1
            else:
                newlines = 0
                if line_characters:
                    line_characters += line_trailing
                line_trailing = 0
                line = (line ^ fold) * _FNV_PRIME
                line_characters += 1
                paragraph = (paragraph ^ fold) * _FNV_PRIME
                paragraph_characters += 1
                first = (first ^ fold) * _FNV_PRIME
                second = (second + fold) * _SECOND_PRIME
                second ^= second >> np.uint64(29)
        if fill:
            identity[document, 0], identity[document, 1] = mix(first), mix(second)
        else:
            starts[document + 1, 0], starts[document + 1, 1], starts[document + 1, 2] = words, lines, paragraphs


assert OTHER == 0 and SYMBOL == CLASSES - 1
