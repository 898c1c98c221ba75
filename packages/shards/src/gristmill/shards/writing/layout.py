"""Which documents each shard holds, from their lengths alone: a pure function, one stretch of documents at a time.

A shard is a range of the split's tokens, documents one after the other. It ends where the next document does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Start(NamedTuple):
    """The first token of a shard: number `token` of the split, and token `skip` of document number `document`."""

    token: int
    document: int
    skip: int


class Filling(NamedTuple):
    """How far the filling has come: documents and tokens placed, shards begun, and where the last of them starts."""

    documents: int = 0
    tokens: int = 0
    shards: int = 0
    start: int = 0


def fill(filling: Filling, lengths: np.ndarray, shard_tokens: int, ramp: Sequence[int]) -> tuple[Filling, list[Start]]:
    """Place the next documents, of `lengths` tokens each: the new state, and the shards that begin in them.

    Shard i takes documents up to ramp[i] tokens, or `shard_tokens` after the ramp. One that is longer than the ramp
    allows has a shard to itself; one longer than `shard_tokens` is cut into pieces that each begin a shard.
    """
    ends = filling.tokens + np.cumsum(lengths, dtype=np.int64)
    starts: list[Start] = []
    shards, start, row = filling.shards, filling.start, 0
    while row < len(ends):
        if shards:
            size = min(ramp[shards - 1], shard_tokens) if shards <= len(ramp) else shard_tokens
            row = max(row, int(np.searchsorted(ends, start + size, "right")))
            if row == len(ends):
                break
        first = int(ends[row] - lengths[row])
        for start in range(first, int(ends[row]), shard_tokens):
            starts.append(Start(start, filling.documents + row, start - first))
            shards += 1
        row += 1
    tokens = int(ends[-1]) if len(ends) else filling.tokens
    return Filling(filling.documents + len(ends), tokens, shards, start), starts
