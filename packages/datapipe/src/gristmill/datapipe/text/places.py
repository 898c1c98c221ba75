"""The folded words of text.folded with the place of each in the text: what finds copied passages, and says where.

Folding sees the text in NFC, places are those of the text as it stands: what is not in NFC hashes otherwise here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.datapipe.text.buffers import Text, decode
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, tables
from gristmill.datapipe.text.hashing import mix
from gristmill.datapipe.text.kernel import kernel

_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # as text.folded, of which tests know


@dataclass(frozen=True)
class Places:
    """Document d has the words offsets[d] to offsets[d + 1]; word w is bytes starts[w] to ends[w] of it."""

    hashes: NDArray[np.uint64]
    """[words], equal to those of text.folded.fold where the text is in NFC."""
    starts: NDArray[np.integer[Any]]
    ends: NDArray[np.integer[Any]]
    """[words], bytes in the document, on the borders of code points: int32, int64 where a document has 2 GB or more.
    A text may have a word for every two of its bytes."""
    offsets: NDArray[np.int64]
    """[documents + 1]"""

    def __len__(self) -> int:
        return len(self.offsets) - 1


def places(text: Text) -> Places:
    """The words of each document: runs of letters, digits and marks; single characters in scripts without spaces."""
    classes, folded = tables()
    ascii_words = np.where((classes[:128] == LETTER) | (classes[:128] == DIGIT), folded[:128], 0).astype(np.uint8)
    room = int(text.offsets[-1] - text.offsets[0]) // 2 + len(text) + 1  # every word but the last has two bytes or more
    hashes, offsets = np.empty(room, np.uint64), np.zeros(len(text) + 1, np.int64)
    place = np.int32 if np.diff(text.offsets).max(initial=0) <= np.iinfo(np.int32).max else np.int64
    starts, ends = np.empty(room, place), np.empty(room, place)  # what is never written takes no memory
    count = _place(text.data, text.offsets, classes, folded, ascii_words, hashes, starts, ends, offsets)
    return Places(hashes[:count], starts[:count], ends[:count], offsets)


@kernel
def _place(data, offsets, classes, folded, ascii_words, hashes, starts, ends, word_offsets):
    """Fills the words in, returns how many. What is known of a word is stored at every byte, and only counted where the
    word ends: no branch depends on the text being ASCII letters, and a processor cannot guess where words end."""
    count = 0
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        at, inside, word, start = begin, False, _FNV_OFFSET, begin
        while at < end:
            alone = False
            if data[at] < 0x80:
                fold, after = np.uint64(ascii_words[data[at]]), at + 1
                now = fold != 0
            else:
                code, after = decode(data, at, end)
                kind, fold = classes[code], np.uint64(folded[code])
                now, alone = (kind == LETTER) | (kind == DIGIT), kind == IDEOGRAPH
            hashes[count], ends[count] = word, at - begin
            count += inside and not now
            if alone:
                hashes[count] = (_FNV_OFFSET ^ fold) * _FNV_PRIME
                starts[count], ends[count] = at - begin, after - begin
                count += 1
            start = start if now else after
            starts[count] = start - begin
            word = (word ^ fold) * _FNV_PRIME if now else _FNV_OFFSET
            inside, at = now, after
        if inside:
            hashes[count], ends[count] = word, end - begin
            count += 1
        word_offsets[document + 1] = count
    for at in range(count):
        hashes[at] = mix(hashes[at])
    return count
