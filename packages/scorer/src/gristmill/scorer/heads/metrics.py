"""How close predictions come to the oracle's grades, each number with a 95% interval by bootstrap over groups.

A resample is a number of copies of each document, so that ranks, moments and bins of all resamples come from sorted
cumulative sums and matrix products instead of copies of the data. Row 0 of the copies is the sample itself.
Shapes: N documents, R resamples (and the sample), K distinct values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 500
MINIMUM = 10  # documents; below, an interval would say more about the bootstrap than about them
# Sources with fewer documents say nothing about order within the source.
MINIMUM_SOURCE = 20
# A source whose predictions spread less than this share of the scale is not told apart (12 of 98 in marin#6860).
FLAT = 0.1
BLOCK = 2_000_000  # numbers held at once

Statistic = Callable[[np.ndarray], np.ndarray]
"""Copies of each document [R, N] -> one value of each resample [R]; NaN where it is not defined."""


class Resamples:
    """Copies of each of N documents in RESAMPLES bootstrap draws of whole groups, with replacement (Efron 1979)."""

    def __init__(self, groups: Sequence[object], seed: int = 0) -> None:
        names, self._codes_N = np.unique(
            np.asarray([str(group) for group in groups], dtype=object), return_inverse=True
        )
        self.groups = len(names)
        shares = np.full(max(self.groups, 1), 1 / max(self.groups, 1))
        drawn_RG = np.random.default_rng([seed, 0xB0]).multinomial(self.groups, shares, RESAMPLES)
        self._copies_RG = np.vstack([np.ones_like(drawn_RG[:1]), drawn_RG]).astype(np.uint16)

    def estimate(self, name: str, statistic: Statistic, rows_N: np.ndarray | None = None) -> dict[str, Any]:
        """{name: value, name_ci95: [low, high]}, None where undefined. rows_N: mask of the documents that count."""
        codes_N = self._codes_N if rows_N is None else self._codes_N[rows_N]
        result: dict[str, Any] = {name: None, f"{name}_ci95": None}
        if not len(codes_N):
            return result
        step = max(1, BLOCK // len(codes_N))
        with np.errstate(invalid="ignore", divide="ignore"):
            values_R = np.concatenate(
                [
                    statistic(self._copies_RG[start : start + step][:, codes_N].astype(np.float64))
                    for start in range(0, len(self._copies_RG), step)
                ]
            )
        if not np.isfinite(values_R[0]):
            return result
        result[name] = float(values_R[0])
        known_R = values_R[1:][np.isfinite(values_R[1:])]
        if len(codes_N) >= MINIMUM and self.groups > 1 and len(known_R):
            result[f"{name}_ci95"] = [float(v) for v in np.quantile(known_R, [0.025, 0.975])]
        return result


class Ranked:
    """Values sorted once, whose ranks in any resample then cost a cumulative sum."""

    def __init__(self, values_N: np.ndarray) -> None:
        self.values_K, self.inverse_N = np.unique(values_N, return_inverse=True)
        self.order_N = np.argsort(self.inverse_N, kind="stable")
        self.starts_K = np.searchsorted(self.inverse_N[self.order_N], np.arange(len(self.values_K)))

    def per_value(self, copies_RN: np.ndarray) -> np.ndarray:
        """Copies that have each distinct value, ascending: [R, K]."""
        return np.add.reduceat(copies_RN[:, self.order_N], self.starts_K, axis=1)

    def ranks(self, copies_RN: np.ndarray) -> np.ndarray:
        """Rank of each document among all copies, ties averaged: [R, N]."""
        per_RK = self.per_value(copies_RN)
        return (np.cumsum(per_RK, axis=1) - (per_RK - 1) / 2)[:, self.inverse_N]


def correlation(a_RN: np.ndarray, b_RN: np.ndarray, copies_RN: np.ndarray) -> np.ndarray:
    """Pearson's r of each resample, [R]; NaN where a side is constant."""
    total_R1 = copies_RN.sum(1, keepdims=True)
    a_RN = a_RN - (copies_RN * a_RN).sum(1, keepdims=True) / total_R1
    b_RN = b_RN - (copies_RN * b_RN).sum(1, keepdims=True) / total_R1
    spread_R = (copies_RN * a_RN * a_RN).sum(1) * (copies_RN * b_RN * b_RN).sum(1)
    return np.where(spread_R > 1e-18, (copies_RN * a_RN * b_RN).sum(1) / np.sqrt(spread_R), np.nan)


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> Statistic:
    """Spearman's rho."""
    a, b = Ranked(a_N), Ranked(b_N)
    return lambda copies_RN: correlation(a.ranks(copies_RN), b.ranks(copies_RN), copies_RN)


def partial_rank_correlation(a_N: np.ndarray, b_N: np.ndarray, given_N: np.ndarray) -> Statistic:
    """Spearman's rho of a and b with what both share with `given` taken out."""
    a, b, given = Ranked(a_N), Ranked(b_N), Ranked(given_N)

    def statistic(copies_RN: np.ndarray) -> np.ndarray:
        ranks = [one.ranks(copies_RN) for one in (a, b, given)]
        ab, ag, bg = (correlation(ranks[i], ranks[j], copies_RN) for i, j in ((0, 1), (0, 2), (1, 2)))
        return (ab - ag * bg) / np.sqrt((1 - ag**2) * (1 - bg**2))

    return statistic


def mean(values_N: np.ndarray) -> Statistic:
    return lambda copies_RN: copies_RN @ values_N / copies_RN.sum(1)


def ratio(above_N: np.ndarray, below_N: np.ndarray) -> Statistic:
    return lambda copies_RN: (copies_RN @ above_N.astype(float)) / (copies_RN @ below_N.astype(float))


def kappa(truth_N: np.ndarray, predicted_N: np.ndarray, low: int, high: int) -> Statistic:
    """Quadratically weighted kappa (Cohen 1968) of both rounded to whole levels.

    Without a confusion matrix: expected squared disagreement under independence is var x + var y + (mean x - mean y)^2.
    """
    x_N, y_N = (np.clip(np.rint(values), low, high) - low for values in (truth_N, predicted_N))
    sums_N5 = np.stack([x_N, y_N, x_N**2, y_N**2, (x_N - y_N) ** 2], axis=1)

    def statistic(copies_RN: np.ndarray) -> np.ndarray:
        x, y, xx, yy, apart = (copies_RN @ sums_N5 / copies_RN.sum(1, keepdims=True)).T
        chance = xx - x**2 + yy - y**2 + (x - y) ** 2
        return np.where(chance > 1e-12, 1 - apart / chance, np.nan)

    return statistic


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Rank correlation, ties averaged; None for fewer than 3 documents or where one side is constant."""
    if len(a_N) < 3:
        return None
    ranks = [rankdata(values)[None] for values in (a_N, b_N)]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(correlation(ranks[0], ranks[1], np.ones((1, len(a_N))))[0])
    return value if np.isfinite(value) else None


def agreement(
    truth_N: np.ndarray,
    predicted_N: np.ndarray,
    sources: Sequence[str],
    resamples: Resamples,
    scale: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """One predictor on one target, over the documents where both are known; the keys are in evaluation.py.

    scale: least and greatest level of a dimension, None for the quality, which has none to round to.
    """
    known_N = np.isfinite(truth_N) & np.isfinite(predicted_N)
    truth_N, predicted_N = truth_N[known_N], predicted_N[known_N]
    result: dict[str, Any] = {"n": len(truth_N)}
    if not len(truth_N):
        return result
    error_N = predicted_N - truth_N
    statistics = {
        "spearman": rank_correlation(truth_N, predicted_N),
        "pearson": lambda copies_RN: correlation(truth_N[None], predicted_N[None], copies_RN),
        "mae": mean(np.abs(error_N)),
        "rmse": lambda copies_RN: np.sqrt(mean(error_N**2)(copies_RN)),
        "bias": mean(error_N),
    }
    if scale is not None:
        statistics["qwk"] = kappa(truth_N, predicted_N, *scale)
    for name, statistic in statistics.items():
        result |= resamples.estimate(name, statistic, known_N)
    if len(truth_N) < 3:  # two documents always correlate
        result |= dict.fromkeys(("spearman", "pearson"))
    low, high = scale or (0, 1)
    names = [source for source, is_known in zip(sources, known_N) if is_known]
    result["within_source"] = within_source(truth_N, predicted_N, names, high - low) | resamples.estimate(
        "mean", mean_within(truth_N, predicted_N, names), known_N
    )
    if scale is not None:
        result |= levels(truth_N, predicted_N, low, high, resamples, known_N)
    return result


def within_source(
    truth_N: np.ndarray, predicted_N: np.ndarray, sources: Sequence[str], span: float = 1.0
) -> dict[str, Any]:
    """Spearman inside each source of at least MINIMUM_SOURCE documents, its mean and its worst.

    spread: standard deviation of each such source's predictions; flat: those below FLAT of the scale's span.
    """
    names = np.asarray(sources, dtype=object)
    found: dict[str, float] = {}
    spread: dict[str, float] = {}
    for source in sorted(set(sources)):
        rows = names == source
        if rows.sum() < MINIMUM_SOURCE:
            continue
        spread[source] = float(predicted_N[rows].std())
        if (value := spearman(truth_N[rows], predicted_N[rows])) is not None:
            found[source] = value
    values = list(found.values())
    return {
        "by_source": found,
        "mean": float(np.mean(values)) if values else None,
        "worst": min(values, default=None),
        "spread": spread,
        "flat": [source for source, value in spread.items() if value < FLAT * span],
    }


def mean_within(truth_N: np.ndarray, predicted_N: np.ndarray, sources: Sequence[str]) -> Statistic:
    """The mean over sources of at least MINIMUM_SOURCE documents of Spearman's rho inside each."""
    names = np.asarray(sources, dtype=object)
    inside = [rows for source in sorted(set(sources)) if (rows := names == source).sum() >= MINIMUM_SOURCE]
    parts = [(rows, rank_correlation(truth_N[rows], predicted_N[rows])) for rows in inside]

    def statistic(copies_RN: np.ndarray) -> np.ndarray:
        values = np.array([one(copies_RN[:, rows]) for rows, one in parts]).reshape(len(parts), len(copies_RN))
        known = np.isfinite(values)
        return np.where(known, values, 0.0).sum(0) / known.sum(0)

    return statistic


def levels(
    truth_N: np.ndarray, predicted_N: np.ndarray, low: int, high: int, resamples: Resamples, known_N: np.ndarray
) -> dict[str, Any]:
    """recall: of each level that the oracle gave, the share that is predicted as it, both rounded; and the tails:
    what share of grades and of predictions is at the least and at the greatest level (compressed ranges lose them)."""
    x_N, y_N = (np.clip(np.rint(values), low, high) for values in (truth_N, predicted_N))
    recall = {
        str(level): {
            "n": int((x_N == level).sum()),
            **resamples.estimate("recall", ratio((x_N == level) & (y_N == level), x_N == level), known_N),
        }
        for level in range(low, high + 1)
    }
    tails = {
        name: {"oracle": float((x_N == level).mean()), "predicted": float((y_N == level).mean())}
        for name, level in (("least", low), ("greatest", high))
    }
    return {"recall": recall, "tails": tails}


def ranks_within(values_N: np.ndarray, sources: Sequence[str]) -> np.ndarray:
    """Where each value stands among its source's, in (0, 1), ties averaged: what a threshold per source acts on."""
    names = np.asarray(sources, dtype=object)
    ranks_N = np.empty(len(values_N))
    for source in set(sources):
        rows = names == source
        ranks_N[rows] = (rankdata(values_N[rows]) - 0.5) / rows.sum()
    return ranks_N
