"""Words as near-duplicates are found by: folded to lower case and NFC, marks left out; and the identity of a document.

A word is a run of letters, digits and marks; in scripts without spaces it is one character.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.text.buffers import Text, decode, text_of
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, NEWLINE, SPACE, UNSTABLE, properties, tables
from gristmill.datapipe.text.hashing import mix
from gristmill.datapipe.text.kernel import kernel, part

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_SECOND_OFFSET = np.uint64(0x9E3779B97F4A7C15)
_SECOND_PRIME = np.uint64(0xD6E8FEB86659FD93)
_BOUNDARY = np.uint64(ord(" "))
"""What the identity takes in where a run of letters and digits ends; no character folds to it."""


IDENTITY = 2
"""Raised whenever `Folded.identity` changes: what is stored under another number cannot be compared."""


@dataclass(frozen=True)
class Folded:
    """Document d has the words hashes[offsets[d] : offsets[d + 1]]."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    identity: NDArray[np.uint64]
    """[documents, 2]: 128-bit hash of the words and symbols in order. Case, line breaks and how much space there is do
    not count; where words end does: "now here" is not "nowhere". In scripts without spaces no space counts."""


def fold(text: Text) -> Folded:
    text = composed(text)
    classes, folded = tables()
    room = int(text.offsets[-1] - text.offsets[0]) // 2 + len(text)  # every word but the last has two bytes or more
    hashes, offsets = np.empty(room, np.uint64), np.zeros(len(text) + 1, np.int64)
    identity = np.empty((len(text), 2), np.uint64)
    count = _fold(text.data, text.offsets, classes, folded, hashes, offsets, identity)
    return Folded(hashes[:count].copy(), offsets, identity)


def composed(text: Text) -> Text:
    """The text in NFC: only the documents that hold a character which is not, or may not stay as it is, are read."""
    unstable = np.zeros(len(text), np.bool_)
    _unstable(text.data, text.offsets, properties(), unstable)
    if not unstable.any():
        return text
    buffers = [None, pa.py_buffer(np.ascontiguousarray(text.offsets)), pa.py_buffer(text.data)]
    column = pa.Array.from_buffers(pa.large_string(), len(text), buffers)
    mask = pa.array(unstable)
    return text_of(pc.replace_with_mask(column, mask, pc.utf8_normalize(column.filter(mask), form="NFC")))


@kernel
def _unstable(data, offsets, properties, unstable):
    """True where NFC may change the document. What is no UTF-8 has no normal form and stays."""
    for document in range(len(offsets) - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            if data[at] < 0x80:
                at += 1
                continue
            code, after = decode(data, at, end)
            if code == 0xFFFD and after == at + 1:
                unstable[document] = False
                break
            if properties[code] & UNSTABLE:
                unstable[document] = True
            at = after


@kernel
def _fold(data, offsets, classes, folded, hashes, starts, identity):
    count = 0
    for document in range(len(offsets) - 1):
        word, inside = _FNV_OFFSET, False
        first, second = _FNV_OFFSET, _SECOND_OFFSET
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            byte = data[at]
            code, at = (np.int64(byte), at + 1) if byte < 0x80 else decode(data, at, end)
            kind, fold = classes[code], np.uint64(folded[code])
            if kind == LETTER or kind == DIGIT:  # noqa: SIM109 (a tuple is slower here)
                word, inside = (word ^ fold) * _FNV_PRIME, True
                first, second = _extended(first, second, fold)
                continue
            if inside:
                hashes[count] = mix(word)
                count, word, inside = count + 1, _FNV_OFFSET, False
                first, second = _extended(first, second, _BOUNDARY)
            if kind != SPACE and kind != NEWLINE:
                first, second = _extended(first, second, fold)
            if kind == IDEOGRAPH:
                hashes[count] = mix((_FNV_OFFSET ^ fold) * _FNV_PRIME)
                count += 1
        if inside:
            hashes[count] = mix(word)
            count += 1
            first, second = _extended(first, second, _BOUNDARY)
        starts[document + 1] = count
        identity[document, 0], identity[document, 1] = mix(first), mix(second)
    return count


@part
def _extended(first, second, value):
    """The two halves of an identity with one character more."""
    second = (second + value) * _SECOND_PRIME
    return (first ^ value) * _FNV_PRIME, second ^ second >> np.uint64(29)
