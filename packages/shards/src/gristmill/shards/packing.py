"""Where documents begin inside windows, from the file of ends: for attention within a document, positions that reset.

Legend: B windows, S tokens of a window (its label token not counted), N documents or parts of them in a batch.
"""

from __future__ import annotations

import numpy as np


def document_starts(ends: np.ndarray, start_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of every document that starts inside a window after its first token, in order.

    `ends` are a shard's end offsets, ascending; window r is tokens [start_B[r], start_B[r] + length] of it. Columns are
    in 1..length; column `length` is the label of the last token. Column 0 always starts a document or the rest of one.
    """
    first = np.searchsorted(ends, start_B.astype(ends.dtype), "right")  # one dtype: no copy of ends
    last = np.searchsorted(ends, (start_B + length).astype(ends.dtype), "right")
    count = last - first
    row = np.repeat(np.arange(len(start_B)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    place = ends[first[row] + within].astype(np.int64)
    return row, place - start_B[row]


def cu_seqlens(row: np.ndarray, column: np.ndarray, batch: int, length: int) -> np.ndarray:
    """int32 [N + 1]: bounds of the documents in the flattened [B * S] inputs, 0 to B * S, for varlen attention."""
    inside = column < length
    flat = np.concatenate([np.arange(batch + 1, dtype=np.int64) * length, row[inside] * length + column[inside]])
    return np.sort(flat).astype(np.int32)


def positions(bounds: np.ndarray, batch: int, length: int) -> np.ndarray:
    """int32 [B, S]: each token's distance from the start of its document, or of the window if that is later."""
    lengths = np.diff(bounds)
    flat = np.arange(batch * length, dtype=np.int32) - np.repeat(bounds[:-1], lengths)
    return flat.reshape(batch, length)


def loss_mask(row: np.ndarray, column: np.ndarray, batch: int, length: int) -> np.ndarray:
    """bool [B, S]: False where the label is the first token of another document than the input's."""
    mask = np.ones((batch, length), bool)
    mask[row, column - 1] = False
    return mask
