"""Repeated passages: spans of `words` words or more that stood in the corpus before, exact, in two rounds.

Round one chooses about 2 of 27 grams of `anchor` words by winnowing (Schleimer, Wilkerson and Aiken 2003), so that of
two equal windows of `words` words each holds a chosen gram that is chosen more than once. Round two hashes only the
windows that hold such an anchor. So what is found is what comparing every window with every other would find, and few
are compared: a window without a repeated anchor has no equal, and one with a chance anchor is found alone and dropped.

Cut are all windows of one key but the first of the run; a window that overlaps the first of its own document only
from that one's end on, so that one word repeated a million times leaves its first `words`. A span reaches from the
start of its first word to the end of its last: space and signs stay on both sides, and what stood around it does not
run together (but for a letter next to a character that is a word by itself). Words that a cut brings together are not
looked at again. `tidied` drops the signs and line feeds between two passages that go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.dedup.minhash import shingle_hash
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import Text, decode
from gristmill.datapipe.text.characters import DIGIT, IDEOGRAPH, LETTER, tables
from gristmill.datapipe.text.hashing import BASE, mix, table_size
from gristmill.datapipe.text.kernel import kernel, part
from gristmill.datapipe.text.places import places

_BASE, _SECOND_BASE, _SECOND = np.uint64(BASE), np.uint64(0xD6E8FEB86659FD93), np.uint64(0xCBF29CE484222325)
_SMALLEST = 16
"""Slots that the table of a document's windows begins with; a power of two."""


@dataclass(frozen=True)
class SubstringConfig:
    words: int = 50
    """Shortest passage, in words (as of text.folded). 500 at most: polynomials modulo 2^64 over a thousand words can be
    made to collide whatever their base (by Thue-Morse sequences)."""
    anchor: int = 0
    """Words in a gram of round one; 0: half of `words`. Longer: fewer chance anchors; shorter: fewer grams chosen."""

    def __post_init__(self) -> None:
        check_range("words", self.words, 2, 500)
        if self.anchor:
            check_range("anchor", self.anchor, 2, self.words)

    @property
    def anchor_words(self) -> int:
        """`anchor`, or what 0 stands for."""
        return self.anchor or max(2, self.words // 2)


@dataclass(frozen=True)
class Anchors:
    """The grams that round one compares across the corpus, in the order of the text."""

    document: NDArray[np.int32]
    word: NDArray[np.int32]
    """Index of its first word in its document."""
    key: NDArray[np.uint64]


@dataclass(frozen=True)
class Windows:
    """The windows that round two compares across the corpus, each key once per document, in the order of the text."""

    document: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    """Bytes in the document."""
    key: NDArray[np.uint64]
    """[windows, 2]: 128-bit hash."""
    copies: pa.ListArray
    """[documents] of spans.TYPE: what windows cover that the same document held before. To be cut, whatever the rest of
    the corpus holds."""


def anchors(text: Text, config: SubstringConfig) -> Anchors:
    """The chosen grams of each document that has `words` words. Two equal windows of the corpus each hold a gram whose
    key is chosen at two places at least."""
    found = places(text)
    chosen = np.zeros(len(found.hashes), np.bool_)
    anchor = config.anchor_words
    recent = np.empty(config.words - anchor + 1, np.uint64)
    _winnow(found.hashes, found.offsets, anchor, recent, chosen)
    at = np.flatnonzero(chosen)
    document = np.searchsorted(found.offsets, at, "right") - 1
    key = np.empty(len(at), np.uint64)
    _keys(found.hashes, at, anchor, key)
    return Anchors(document.astype(np.int32), (at - found.offsets[document]).astype(np.int32), key)


def windows(text: Text, repeated: pa.ChunkedArray | pa.Array, config: SubstringConfig) -> Windows:
    """The windows of `words` words that hold a repeated anchor.

    Args:
        repeated: list<int32>, for each document the words at which its anchors begin whose key `anchors` gave more
            than once in the corpus, in any order.

    Raises:
        ValueError: lists for another number of documents, or a word at which no anchor can begin.
    """
    words, offsets = spans.bounds_of(repeated)
    if len(offsets) != len(text) + 1:
        raise ValueError(f"{len(text)} texts, but anchors of {len(offsets) - 1}")
    found = places(text)
    marked, room = np.zeros(len(found.hashes), np.bool_), np.zeros(len(text), np.int64)
    size, anchor = config.words, config.anchor_words
    bad = _mark(words, offsets, found.offsets, size, anchor, marked, room)
    if bad >= 0:
        raise ValueError(f"row {bad}: an anchor at a word that the text has not")
    # Memory that is never written is never taken: a document of one word fills one window of all that it may have.
    total = int(room.sum())
    table = np.empty(max(_SMALLEST, table_size(int(room.max(initial=0)))), np.int32)
    document, start, end = (np.empty(total, np.int32) for _ in range(3))
    word, key, copies = np.empty(total, np.int32), np.empty((total, 2), np.uint64), np.empty(2 * total, np.int32)
    copy_offsets = np.zeros(len(text) + 1, np.int64)
    given = found.hashes, found.starts, found.ends, found.offsets, size, anchor
    count = _windows(*given, marked, room, table, document, start, end, word, key, copies, copy_offsets)
    covered = spans.column(copies[: copy_offsets[-1]].copy(), copy_offsets)
    for array in (document, start, end, key):  # gives back what was not needed, where a copy would hold all twice
        array.resize((count, *array.shape[1:]), refcheck=False)
    return Windows(document, start, end, key, covered)


def merged(
    document: NDArray[np.integer[Any]], start: NDArray[np.integer[Any]], end: NDArray[np.integer[Any]], documents: int
) -> pa.ListArray:
    """[documents] of spans.TYPE: what any of the windows covers, given in any order; those that touch become one."""
    order = np.lexsort((start, document))
    counts = np.bincount(document, minlength=documents)
    bounds = np.stack([start, end], axis=1)[order].reshape(-1)
    return spans.union([spans.column(bounds, np.concatenate([np.zeros(1, np.int64), np.cumsum(2 * counts)]))])


def tidied(text: Text, cut: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """The spans of passages that are cut, without scraps between them: two that no word parts become one, with the
    signs, space and line feeds in between; a document that keeps no word goes as a whole.

    Args:
        cut: [documents] of spans.TYPE, such as `merged` gives.

    Raises:
        ValueError: spans for another number of documents.
    """
    bounds, offsets = spans.bounds_of(cut)
    if len(offsets) != len(text) + 1:
        raise ValueError(f"{len(text)} texts, but spans for {len(offsets) - 1}")
    classes, _ = tables()
    wordy = (classes == LETTER) | (classes == DIGIT) | (classes == IDEOGRAPH)
    out, starts = np.empty(len(bounds), np.int32), np.zeros(len(text) + 1, np.int64)
    used = _tidied(text.data, text.offsets, wordy, bounds, offsets, out, starts)
    return spans.column(out[:used], starts)


@kernel
def _winnow(hashes, offsets, anchor, recent, chosen):
    """Robust winnowing: a window keeps the choice of the one before while that is in it and none is less, and else
    chooses its rightmost least gram: so a run of one word is thinned out like any text, where choosing the rightmost in
    every window takes all of it.

    Two equal windows have equal least grams, which count as repeated where they are two. Where both chose one and the
    same, the first has that gram a second time before it, and saw both when it chose: then both are chosen.
    `recent` is room for the hashes of one window's grams.
    """
    window, top = len(recent), np.uint64(1)
    for _ in range(anchor - 1):
        top *= _BASE
    for document in range(len(offsets) - 1):
        begin, last = offsets[document], offsets[document + 1] - anchor
        if last - begin + 1 < window:
            continue
        value = np.uint64(0)
        for at in range(begin, begin + anchor - 1):
            value = value * _BASE + hashes[at]
        slot, best, least = 0, begin - 1, np.uint64(0)
        for gram in range(begin, last + 1):
            value = value * _BASE + hashes[gram + anchor - 1]
            key = mix(value)
            value -= top * hashes[gram]
            recent[slot] = key
            slot = slot + 1 if slot + 1 < window else 0
            first = gram + 1 - window
            if first < begin:
                continue
            if best < first:
                other = np.int64(-1)
                for at in range(first, gram + 1):  # `slot` is the oldest
                    key = recent[slot]
                    slot = slot + 1 if slot + 1 < window else 0
                    if at == first or key < least:
                        best, least, other = at, key, np.int64(-1)
                    elif key == least:
                        best, other = at, best
                chosen[best] = True
                if other >= 0:
                    chosen[other] = True
            elif key < least:
                best, least = gram, key
                chosen[gram] = True


@kernel
def _keys(hashes, grams, anchor, keys):
    for index in range(len(grams)):
        keys[index] = shingle_hash(hashes, grams[index], anchor)


@kernel
def _mark(words, offsets, word_offsets, size, anchor, marked, room):
    """Marks where repeated anchors begin, and counts the windows that hold one. Returns a bad document, or -1."""
    for document in range(len(offsets) - 1):
        begin, end = word_offsets[document], word_offsets[document + 1]
        if offsets[document] == offsets[document + 1]:
            continue
        for index in range(offsets[document], offsets[document + 1]):
            if not 0 <= words[index] <= end - begin - anchor:
                return document
            marked[begin + words[index]] = True
        latest = np.int64(-1)
        for at in range(begin, end - anchor + 1):
            if marked[at]:
                latest = at
            window = at - (size - anchor)
            room[document] += begin <= window <= latest
    return -1


@kernel
def _windows(
    hashes, starts, ends, offsets, size, anchor, marked, room, table, document, start, end, word, key, copies,
    copy_offsets,
):  # fmt: skip
    """Fills in the windows that are the first of their key in their document, and what the later ones cover. Returns
    how many windows. `table` holds a document's windows by key, numbered from 1, and grows with them."""
    top, second_top = np.uint64(1), np.uint64(1)
    for _ in range(size - 1):
        top, second_top = top * _BASE, second_top * _SECOND_BASE
    count, used = np.int64(0), np.int64(0)
    for row in range(len(offsets) - 1):
        copy_offsets[row + 1] = used
        if not room[row]:
            continue
        begin, fresh, slots = offsets[row], count, np.int64(_SMALLEST)
        table[:slots] = 0
        first, second, latest = np.uint64(0), np.uint64(0), np.int64(-1)
        for at in range(begin, begin + size - 1):
            first, second = first * _BASE + hashes[at], second * _SECOND_BASE + mix(hashes[at] ^ _SECOND)
            if marked[at] and at < begin + size - anchor:
                latest = at
        for window in range(begin, offsets[row + 1] - size + 1):
            after = window + size
            entering, leaving = hashes[after - 1], hashes[window]
            first, second = first * _BASE + entering, second * _SECOND_BASE + mix(entering ^ _SECOND)
            high, low = mix(first), mix(second)
            first, second = first - top * leaving, second - second_top * mix(leaving ^ _SECOND)
            if marked[after - anchor]:
                latest = after - anchor
            if latest < window:
                continue
            slot = _slot(table, slots, key, fresh, high, low)
            if table[slot]:
                begins = max(window, begin + word[fresh + table[slot] - 1] + size)
                used = _cover(copies, copy_offsets[row], used, starts[begins], ends[after - 1])
                continue
            table[slot] = count - fresh + 1
            document[count], start[count], end[count] = row, starts[window], ends[after - 1]
            key[count, 0], key[count, 1], word[count] = high, low, window - begin
            count += 1
            if 2 * (count - fresh) > slots:
                slots *= 2
                table[:slots] = 0
                for index in range(fresh, count):
                    slot = _slot(table, slots, key, fresh, key[index, 0], key[index, 1])
                    table[slot] = index - fresh + 1
        copy_offsets[row + 1] = used
    return count


@part
def _slot(table, slots, key, fresh, high, low):
    """Where the key is in the table, or where it would go."""
    at = np.int64(low & np.uint64(slots - 1))
    while table[at]:
        other = fresh + table[at] - 1
        if key[other, 0] == high and key[other, 1] == low:
            break
        at = (at + 1) & (slots - 1)
    return at


@part
def _cover(bounds, least, used, start, end):
    """The spans bounds[least:used] with start..end, which ends last, joined to those that it overlaps or touches."""
    while used > least and bounds[used - 2] >= start:
        used -= 2
    if used > least and bounds[used - 1] >= start:
        bounds[used - 1] = end
        return used
    bounds[used], bounds[used + 1] = start, end
    return used + 2


@kernel
def _tidied(data, offsets, wordy, bounds, bound_offsets, out, out_offsets):
    used = 0
    for row in range(len(offsets) - 1):
        begin, size, least = offsets[row], offsets[row + 1] - offsets[row], used
        for span in range(bound_offsets[row], bound_offsets[row + 1], 2):
            start, end = bounds[span], bounds[span + 1]
            if used > least and not _holds_word(data, begin + out[used - 1], begin + start, wordy):
                out[used - 1] = end
                continue
            out[used], out[used + 1] = start, end
            used += 2
        if used == least + 2:  # more are parted by words
            before = _holds_word(data, begin, begin + out[least], wordy)
            if not before and not _holds_word(data, begin + out[least + 1], begin + size, wordy):
                out[least], out[least + 1] = 0, size
        out_offsets[row + 1] = used
    return used


@part
def _holds_word(data, at, end, wordy):
    while at < end:
        code, at = decode(data, at, end)
        if wordy[code]:
            return True
    return False
