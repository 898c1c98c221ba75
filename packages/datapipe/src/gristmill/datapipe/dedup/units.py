"""Lines and paragraphs as units that are looked for across the corpus: where each stands, and what it says.

A line ends at a line feed, and a paragraph at two or more, as text.lines has it; a carriage return is white space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import BATCH_BYTES, Text
from gristmill.datapipe.text.folded import fold
from gristmill.datapipe.text.kernel import kernel

Kind = Literal["line", "paragraph"]
_FEED = 0x0A
_CHUNK = 1 << 14
"""Units folded at once: memory stays flat over a document of 100 MB of short lines."""


@dataclass(frozen=True)
class Units:
    """In the order of the text."""

    document: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    """Bytes in the document. The line feed that ends a line, or all those that end a paragraph, are in."""
    key: NDArray[np.uint64]
    """[units, 2]: 128-bit hash of its words and symbols in order, as text.folded.Folded.identity has it."""


def units(text: Text, kind: Kind, min_words: int) -> Units:
    """The lines or paragraphs of at least `min_words` words (as text.folded counts them), which is 1 or more."""
    check_range("min_words", min_words, 1)
    feeds = 1 if kind == "line" else 2
    document, starts, ends = np.empty(_CHUNK, np.int32), np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.int64)
    row, at, found = 0, text.offsets[0], []
    while row < len(text):
        count, row, at = _units(text.data, text.offsets, feeds, row, at, document, starts, ends)
        # Behind a unit, to where the next starts, are line feeds alone: they count for nothing.
        folded = fold(Text(text.data, np.append(starts[:count], ends[count - 1] if count else at)))
        kept = np.flatnonzero(np.diff(folded.offsets) >= min_words)
        rows = document[kept]
        origin = text.offsets[rows]
        found.append((rows, starts[kept] - origin, ends[kept] - origin, folded.identity[kept]))
    if not found:
        nothing = np.zeros(0, np.int32)
        return Units(nothing, nothing, nothing, np.zeros((0, 2), np.uint64))
    rows, begin, stop, key = (np.concatenate(pieces) for pieces in zip(*found))
    return Units(rows, begin.astype(np.int32), stop.astype(np.int32), key)


def tidied(text: Text, cut: pa.ChunkedArray | pa.Array) -> pa.ListArray:
    """The spans of units that are cut, with the line feeds about them chosen anew so that no empty line is left over.

    Of the line feeds before and after what is cut those stay that part more: paragraphs stay apart, and one that loses
    all its lines goes with the empty line that was before or after it. A document begins and ends with as many as it
    had; one of which all is cut is empty.

    Args:
        cut: [documents] of spans.TYPE, such as a union of units' spans.
    """
    bounds, offsets = spans.bounds_of(cut)
    if len(offsets) != len(text) + 1:
        raise ValueError(f"{len(text)} texts, but spans for {len(offsets) - 1}")
    out, starts = np.empty(len(bounds), np.int32), np.zeros(len(text) + 1, np.int64)
    used = _tidied(text.data, text.offsets, bounds, offsets, out, starts)
    return spans.column(out[:used], starts)


@kernel
def _units(data, offsets, feeds, row, at, document, starts, ends):
    """The units from byte `at` of document `row` on, as far as there is room: (units, row, at) to go on from."""
    count, begin = 0, at
    while row < len(offsets) - 1:
        at, end = max(at, offsets[row]), offsets[row + 1]
        while at < end:
            if data[at] == _FEED:
                at += 1
                continue
            if count == len(starts) or at - begin >= BATCH_BYTES:
                return count, row, at
            document[count], starts[count], ends[count] = row, at, end
            while at < end:
                if data[at] != _FEED:
                    at += 1
                    continue
                first = at
                at = _after_feeds(data, at, end)
                if at - first >= feeds:
                    ends[count] = first + 1 if feeds == 1 else at
                    break
            count += 1
        row += 1
    return count, row, at


@kernel
def _after_feeds(data, at, end):
    while at < end and data[at] == _FEED:
        at += 1
    return at


@kernel
def _before_feeds(data, begin, at):
    while at > begin and data[at - 1] == _FEED:
        at -= 1
    return at


@kernel
def _tidied(data, offsets, bounds, bound_offsets, out, out_offsets):
    used = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        span, last = bound_offsets[row], bound_offsets[row + 1]
        while span < last:
            start, stop = begin + bounds[span], begin + bounds[span + 1]
            after = _after_feeds(data, stop, end)
            span += 2
            while span < last and begin + bounds[span] <= after:  # nothing but line feeds between them
                stop = begin + bounds[span + 1]
                after = _after_feeds(data, stop, end)
                span += 2
            content, before = _before_feeds(data, start, stop), _before_feeds(data, begin, start)
            if before == begin and after == end:
                start, stop = begin, end
            elif before == begin or (after < end and start - before >= after - content):
                stop = after
            else:
                start, stop = before, content
            out[used], out[used + 1] = start - begin, stop - begin
            used += 2
        out_offsets[row + 1] = used
    return used
