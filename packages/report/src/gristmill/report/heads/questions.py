"""What a page asks of the scores: one of them finely, probe against judge, and what exits lost here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, NotThere, Rows, open_rows
from gristmill.report.heads import bundles
from gristmill.report.heads.scores import FOLDER, Scores, axis, bins_of, taus_of
from gristmill.report.live_run import LiveRun
from gristmill.report.measures import spearman

FINE, SQUARE = 120, 48
READS = ("documents", FOLDER, "annotations/tokens", "thresholds")  # what Scores is made of
# Name, whether the probe's score is below tau_drop, whether the judge's reaches tau_keep.
QUADRANTS = (
    ("above_kept", False, True), ("above_not", False, False), ("below_kept", True, True), ("below_not", True, False),
)  # fmt: skip
Taus = Mapping[str, float | None]


def histogram(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """One score of one source, or of all: documents and tokens in 120 bins, and how many lie beyond the thresholds."""
    scores = opened(run)
    name = asked.choice("score", scores.names, scores.names[0])
    inside, label = _rows_of(scores, asked)
    values = scores.column(name)
    known = inside & np.isfinite(values)
    found: dict[str, Any] = {"score": name, "source": label, "scored": int(known.sum()), "of": int(inside.sum())}
    if not known.any():
        return found | {"documents": []}
    own = {} if label is None else taus_of(scores.calibration, label)
    marks = {key: own[key] for key in scores.decided_by(name) if own.get(key) is not None}
    low, high = axis(values[known], [tau for tau in marks.values() if tau is not None])
    bins = bins_of(values[known], low, high, FINE)
    weights = None if scores.tokens is None else np.nan_to_num(scores.tokens[known])

    def reaching(tau: float | None) -> dict[str, Any]:
        above = values[known] >= np.float32(tau)
        return {"tau": tau, "documents": int(above.sum()), "tokens": None if weights is None else weights[above].sum()}

    return found | {
        "low": low, "high": high, "beyond": int(((values[known] < low) | (values[known] > high)).sum()),
        "documents": np.bincount(bins, minlength=FINE),
        "tokens": None if weights is None else np.bincount(bins, weights, FINE).round().astype(np.int64),
        "quantiles": [float(one) for one in np.quantile(values[known], (0.1, 0.5, 0.9))],
        "reaching": {key: reaching(tau) for key, tau in marks.items()},
    }  # fmt: skip


def probe_and_judge(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """The judge's score over the probe's as counts of a grid, their rank correlation, and how many documents lie on
    which side of their own source's thresholds. Documents that exited early have no judge's score, but for those that
    were audited all the same."""
    scores = opened(run)
    inside, label = _rows_of(scores, asked)
    probe, judge = (
        scores.column(name) if name in scores.names else np.full(len(inside), np.nan) for name in ("probe", "judge")
    )
    exits, shadow = inside & scores.flags("exit"), inside & scores.flags("shadow")
    scored, judged = inside & np.isfinite(probe), inside & np.isfinite(probe) & np.isfinite(judge)
    drop, keep = scores.taus("tau_drop").astype(np.float32), scores.taus("tau_keep").astype(np.float32)
    below, kept = probe < drop, judge >= keep  # of float32, as they were scored; with a NaN it is False
    found = {
        "source": label, "of": int(inside.sum()), "scored": int(scored.sum()), "judged": int(judged.sum()),
        "exits": int(exits.sum()), "unjudged": int((scored & ~judged).sum()),
        "unjudged_below": int((scored & ~judged & below).sum()), "audited": int((shadow & judged).sum()),
        "no_threshold": int((judged & np.isnan(keep)).sum()),
        "quadrants": {
            name: int((judged & (below == low) & (kept == high)).sum()) for name, low, high in QUADRANTS
        },
        "false_drops": _false_drops(exits, shadow & judged, kept, inside),
    }  # fmt: skip
    if not judged.any():
        return found
    own: Taus = {} if label is None else taus_of(scores.calibration, label)
    sides = [
        axis(values[judged], [tau for tau in [own.get(key)] if tau is not None])
        for values, key in ((probe, "tau_drop"), (judge, "tau_keep"))
    ]
    x, y = (bins_of(values[judged], *side, SQUARE) for values, side in zip((probe, judge), sides))
    cells, counts = np.unique(x * SQUARE + y, return_counts=True)
    return found | {
        "spearman": spearman(probe[judged], judge[judged]), "bins": SQUARE, "x": sides[0], "y": sides[1], **own,
        "cells": [[int(cell // SQUARE), int(cell % SQUARE), int(n)] for cell, n in zip(cells, counts)],
    }  # fmt: skip


def opened(run: LiveRun) -> Scores:
    """Raises NotThere: no documents."""

    def make() -> Scores:
        rows = open_rows(run.folder)
        return Scores(rows, rows.labels("documents", "source"), _thresholds(run), _tokens(rows))

    return run.kept("scores", READS, make)


def binomial_upper(errors: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided upper bound on a rate of which `errors` of `n` were seen."""
    if errors >= n:
        return 1.0
    k = np.arange(errors + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - k[1:] + 1) / k[1:]))])
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if np.exp(ways + k * np.log(p) + (n - k) * np.log1p(-p)).sum() > 1 - confidence:
            low = p
        else:
            high = p
    return high


def _false_drops(exits: Array, audited: Array, kept: Array, inside: Array) -> dict[str, Any] | None:
    """What exits cost on these documents, as `scorer score` tells it: of what the judge would keep, the share that
    exited, by the exits that it saw all the same."""
    n, total, wrong, stay = (int(one.sum()) for one in (audited, exits, audited & kept, inside & kept & ~exits))
    if not n:
        return None

    def share(rate: float) -> float:
        lost = rate * total
        return lost / (lost + stay) if lost + stay else 0.0

    return {"wrong": wrong, "rate": share(wrong / n), "upper": share(binomial_upper(wrong, n, 0.95))}


def _rows_of(scores: Scores, asked: Asked) -> tuple[Array, str | None]:
    """The rows of the source that is asked for, and its name; all rows where none is."""
    label = asked.text("source")
    if not label:
        return np.ones(scores.rows.total, dtype=bool), None
    if label not in scores.source[1]:
        raise AskedWrong(f"source: {label!r} is none of this run's")
    return scores.source[0] == scores.source[1].index(label), label


def _tokens(rows: Rows) -> Array | None:
    return rows.numbers("annotations/tokens", "count") if rows.has("annotations/tokens", "count") else None


def _thresholds(run: LiveRun) -> Mapping[str, Mapping[str, Any]]:
    try:
        return bundles.read_thresholds(run.folder)
    except NotThere:
        return {}
