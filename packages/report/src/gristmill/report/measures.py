"""Distributions of what the stages measured: medians, labels, agreement with the oracle.

Each function reads the columns it needs, one at a time, and returns numbers that a chart can draw as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gristmill.report.columns import Array, NotThere, Rows

HEADS = ("quality", "probe", "judge")
IDENTIFIERS = {"cluster"}  # numbers that name something; their median means nothing
LABELS_SHOWN = 12


def kept_and_dropped(rows: Rows, keep: Array | None, set_aside: Array) -> dict[str, Any]:
    """Per numeric column the 10th, 50th and 90th percentile of kept and of dropped, and the share measured.

    A flag has its share of yes instead, three times. What is `set_aside` was neither kept nor dropped.
    """
    if not rows.columns:
        raise NotThere("annotations/", "the annotating stages")
    out: list[dict[str, Any]] = []
    for column in rows.columns:
        if column.kind == "label" or column.name in IDENTIFIERS:
            continue
        values = rows.numbers(column.folder, column.name)
        known = np.isfinite(values)
        sides = {"kept": known & keep, "dropped": known & ~keep & ~set_aside} if keep is not None else {"all": known}
        out.append(
            {
                "stage": column.stage,
                "column": column.name,
                "flag": column.kind == "flag",
                "measured": float(known.mean()) if rows.total else 0.0,
                **{name: _quantiles(values[side], column.kind) for name, side in sides.items()},
            }
        )
    return {"columns": out, "labels": _labels(rows, keep)}


def agreement(row: Array, oracle: Array, split: list[str], rows: Rows) -> dict[str, Any] | None:
    """Oracle's quality against the head's, on graded documents that the heads were not fitted on."""
    head = next((name for name in HEADS if rows.has("annotations/scores", name)), None)
    if head is None or not rows.total:
        return None
    inside = (row >= 0) & (row < rows.total)
    scores = np.where(inside, rows.numbers("annotations/scores", head)[np.where(inside, row, 0)], np.nan)
    usable = np.isfinite(scores) & np.isfinite(oracle) & (np.array(split) != "fit")
    if usable.sum() < 10:
        return None
    x, y = scores[usable], oracle[usable]
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, min(10, len(order) // 5))
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), 500)).round().astype(np.int64))
    return {
        "head": head,
        "documents": len(x),
        "spearman": spearman(x, y),
        "bins": [
            {"score": float(x[group].mean()), "oracle": float(y[group].mean()), "n": len(group)} for group in groups
        ],
        "points": [[float(x[index]), float(y[index])] for index in pick],
    }


def spearman(x: Array, y: Array) -> float | None:
    """Rank correlation with ties given their mean rank; None where one side does not vary."""
    rank_x, rank_y = _ranks(x), _ranks(y)
    if np.ptp(rank_x) == 0 or np.ptp(rank_y) == 0:
        return None
    return float(np.corrcoef(rank_x, rank_y)[0, 1])


def histogram(values: Array) -> list[dict[str, Any]]:
    """Counts per distinct value where there are few, else in ten equal bins: [{"from", "to", "count"}]."""
    values = values[np.isfinite(values)] + 0.0  # no -0
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 12:
        return [
            {"from": float(value), "to": float(value), "count": int(count)} for value, count in zip(distinct, counts)
        ]
    counts, edges = np.histogram(values, bins=10)
    return [
        {"from": float(low), "to": float(high), "count": int(count)}
        for low, high, count in zip(edges, edges[1:], counts)
    ]


def _labels(rows: Rows, keep: Array | None) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for column in rows.columns:
        if column.kind != "label":
            continue
        codes, names = rows.labels(column.folder, column.name)
        total = np.bincount(codes[codes >= 0], minlength=len(names))
        kept = np.bincount(codes[(codes >= 0) & keep], minlength=len(names)) if keep is not None else None
        top = np.argsort(-total, kind="stable")[:LABELS_SHOWN]
        out.append(
            {
                "column": column.label,
                "distinct": len(names),
                "values": [
                    {
                        "name": names[code],
                        "documents": int(total[code]),
                        "kept": int(kept[code]) if kept is not None else None,
                    }
                    for code in top
                ],
            }
        )
    return out


def _quantiles(values: Array, kind: str) -> list[float] | None:
    if kind == "flag":  # of yes and no the share of yes tells more than a median
        return [float(values.mean())] * 3 if len(values) else None
    return [float(value) for value in np.quantile(values, [0.1, 0.5, 0.9])] if len(values) else None


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
