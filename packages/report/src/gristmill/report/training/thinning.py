"""Curves of many points as ones short enough to draw, that keep what stands out; and their running means."""

from __future__ import annotations

import numpy as np

from gristmill.report.columns import Array


def extremes(values: Array, points: int) -> Array:
    """Indices, ascending, of at most `points` values (4 at least): of equal stretches the least and the greatest each,
    and the first and the last of all."""
    count = len(values)
    if count <= max(points, 4):
        return np.arange(count)
    buckets = (max(points, 4) - 2) // 2
    edges = np.linspace(0, count, buckets + 1).astype(np.int64)
    width = int(np.diff(edges).max())
    place = np.minimum(edges[:-1, None] + np.arange(width), edges[1:, None] - 1)  # short stretches repeat their last
    of = values[place]
    rows = np.arange(buckets)
    least, most = (place[rows, pick(of, axis=1)] for pick in (np.argmin, np.argmax))
    return np.unique(np.concatenate([[0, count - 1], least, most]))


def evenly(count: int, points: int) -> Array:
    """Indices of at most `points` of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).round().astype(np.int64))


def smooth(values: Array, span: float) -> Array:
    """Exponential mean with the start's bias taken out, so that the first point is the first value."""
    decay = 1.0 - 1.0 / max(span, 1.0)
    out = np.empty(len(values))
    total = weight = 0.0
    for index, value in enumerate(values.tolist()):
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        out[index] = total / weight
    return out


def span_of(count: int) -> float:
    """Steps that a running mean looks back on, where nothing else is asked for: a hundredth of the run."""
    return max(count / 100, 4.0)
