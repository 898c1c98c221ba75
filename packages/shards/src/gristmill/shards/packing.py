"""How documents lie in sequences: cut as they come (concat), or whole where they fit (best fit); and where they begin.

A segment starts at the EOS before a document, not at the document's first token: so EOS doubles as the beginning of
text, and every token of a document is learnt from its own document alone.
Legend: B sequences, S tokens of one (its label token not counted), N segments in a batch.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PACKED_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # whose rows are counted when a shard is written


class Rows(NamedTuple):
    """Best-fit rows of one shard. Row r holds pieces bounds[r] to bounds[r + 1]; a piece is tokens [start, start +
    length) of the shard, all of one document; `continues` where it does not begin that document."""

    bounds: np.ndarray
    start: np.ndarray
    length: np.ndarray
    continues: np.ndarray


def best_fit(ends: np.ndarray, length: int, first_continues: bool = False) -> Rows:
    """Documents into rows of at most `length` tokens: each whole, if it fits at all (Ding et al., arXiv 2404.10830).

    A longer document fills whole rows from its start; what is left of it is packed like a document. Best-fit
    decreasing: the longest piece first, into the fullest row that has room. Every token is in one row, once.
    `ends` are a shard's end offsets; `first_continues`: its first document goes on from the shard before.
    """
    ends = ends.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    full = sizes // length
    piece_document = np.repeat(np.arange(len(sizes)), full + (sizes % length > 0))
    first_piece = np.cumsum(full + (sizes % length > 0)) - (full + (sizes % length > 0))
    within = np.arange(len(piece_document)) - first_piece[piece_document]
    start = starts[piece_document] + within * length
    size = np.minimum(ends[piece_document] - start, length)
    continues = within > 0
    if first_continues and len(continues):
        continues[first_piece[0]] = True
    row, count = _assign(size, length)
    order = np.argsort(row, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
    bounds, start, size = (part.astype(np.uint32) for part in (bounds, start[order], size[order]))  # narrow, to be kept
    return Rows(bounds, start, size, continues[order])


def row_counts(ends: np.ndarray, lengths: Sequence[int] = PACKED_LENGTHS) -> dict[str, int]:
    """How many rows best_fit makes of a shard, by row length (as the manifest keeps it)."""
    sizes = np.diff(ends.astype(np.int64), prepend=0)
    counts = {}
    for length in lengths:
        rest = sizes % length
        counts[str(length)] = int((sizes // length).sum()) + _assign(rest[rest > 0], length)[1]
    return counts


def _assign(size: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """(row of each piece, number of rows). Pieces of one size are placed together: the work grows with the sizes.

    Rows wait in queues by the room they have; a bit set of the queues that are not empty finds the fullest that fits.
    """
    row = np.empty(len(size), np.int64)
    order = np.argsort(-size, kind="stable")
    distinct, firsts = np.unique(-size[order], return_index=True)
    bounds = [*firsts.tolist(), len(size)]
    queues: dict[int, collections.deque[np.ndarray]] = collections.defaultdict(collections.deque)
    rooms, made = 0, 0  # bit r of rooms: some row has room for exactly r more tokens

    def park(rows: np.ndarray, room: int) -> None:
        nonlocal rooms
        if room and len(rows):
            queues[room].append(rows)
            rooms |= 1 << room

    for each, first, last in zip((-distinct).tolist(), bounds, bounds[1:]):
        while first < last:
            fitting = rooms >> each
            room = each + (fitting & -fitting).bit_length() - 1 if fitting else length
            per_row = room // each  # once a piece is in, that row is the fullest with room until it is full
            wanted = -(-(last - first) // per_row)
            if fitting:
                rows = queues[room].popleft()
                if len(rows) > wanted:
                    queues[room].appendleft(rows[wanted:])
                    rows = rows[:wanted]
                if not queues[room]:
                    rooms &= ~(1 << room)
            else:
                rows = np.arange(made, made + wanted)
                made += wanted
            taken = min(len(rows) * per_row, last - first)
            row[order[first : first + taken]] = np.repeat(rows, per_row)[:taken]
            first += taken
            whole, left = divmod(taken, per_row)
            park(rows[:whole], room - per_row * each)
            if left:
                park(rows[whole:], room - left * each)
    return row, made


def document_starts(
    ends: np.ndarray, row_B: np.ndarray, start_B: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row, column), int64, of the EOS before each document that begins inside a window, where it is among the inputs.

    `ends` are a shard's end offsets; row row_B[i] is its tokens [start_B[i], start_B[i] + length]. Column 0, where each
    row begins anyway, is left out.
    """
    first = start_B + 1
    # In the type of `ends`: else searchsorted would copy all of them.
    low, high = (ends.searchsorted(bound.astype(ends.dtype), "right") for bound in (first, first + length - 1))
    count = high - low
    place = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
    return np.repeat(row_B, count), ends[place].astype(np.int64) - np.repeat(first, count)


def cu_seqlens(row: np.ndarray, column: np.ndarray, batch: int, length: int) -> np.ndarray:
    """int32 [N + 1]: bounds of the segments in the flattened [B * S] inputs, 0 to B * S, for varlen attention.

    (row, column) are where segments begin among the inputs, column 0 of each row not repeated.
    """
    flat = np.concatenate([np.arange(batch + 1, dtype=np.int64) * length, row * length + column])
    return np.unique(flat).astype(np.int32)


def positions(bounds: np.ndarray, batch: int, length: int) -> np.ndarray:
    """int32 [B, S]: each token's distance from the start of its segment."""
    lengths = np.diff(bounds)
    flat = np.arange(batch * length, dtype=np.int32) - np.repeat(bounds[:-1], lengths)
    return flat.reshape(batch, length)
