"""How far two gradings of the same documents agree, and what a grading depends on beside the text: length, source.

Every number comes with a 95% percentile-bootstrap interval over documents (Efron 1979), and is None where the data do
not define it. Shapes: N documents, M gradings of each, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 1000
MINIMUM = 10  # documents; below, an interval would say more about the bootstrap than about them
MINIMUM_SOURCE = 5
FLAT = 1e-12  # mean squares below this are rounding: the grades do not vary, and nothing is defined
BLOCK = 500_000  # numbers held at once

Statistic = Callable[[np.ndarray], np.ndarray]
"""Row numbers [R, N] -> one value for each resample [R]; NaN where it is not defined."""
Estimate = dict[str, Any]
"""{"value": float or None, "ci95": [low, high] or None}"""


def estimate(statistic: Statistic, n: int, seed: int = 0) -> Estimate:
    """The statistic of all n documents, and of RESAMPLES draws of n with replacement the 2.5% and 97.5% quantiles."""
    if n == 0:
        return {"value": None, "ci95": None}
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(np.arange(n)[None])[0])
        if n < MINIMUM or not np.isfinite(value):
            return {"value": value if np.isfinite(value) else None, "ci95": None}
        generator = np.random.default_rng([seed, 0xB0])
        block = max(1, BLOCK // n)
        values_R = np.concatenate(
            [
                statistic(generator.integers(0, n, (min(block, RESAMPLES - start), n)))
                for start in range(0, RESAMPLES, block)
            ]
        )
    known_R = values_R[np.isfinite(values_R)]
    return {"value": value, "ci95": [float(v) for v in np.quantile(known_R, [0.025, 0.975])] if len(known_R) else None}


def mean(values_N: np.ndarray, seed: int = 0) -> Estimate:
    return estimate(lambda rows: values_N[rows].mean(1), len(values_N), seed)


def agreement(a_N: np.ndarray, b_N: np.ndarray, low: int, high: int, seed: int = 0) -> dict[str, Any]:
    """Two gradings on the scale low..high, over the documents that both have graded (NaN: not graded).

    n; qwk, exact, within_one: of both rounded to whole levels; alpha and alpha_ordinal: Krippendorff's; spearman;
    shift: mean of b - a. Plain agreement flatters: two graders who almost always say 3 agree almost always.
    """
    a_N, b_N = _both(a_N, b_N)
    x_N, y_N = (np.clip(np.rint(values), low, high) for values in (a_N, b_N))
    both_N2 = np.stack([a_N, b_N], axis=1)
    n = len(a_N)
    return {
        "n": n,
        "qwk": estimate(lambda rows: quadratic_kappa(x_N[rows], y_N[rows]), n, seed),
        "alpha": estimate(lambda rows: krippendorff_alpha(both_N2[rows]), n, seed),
        "alpha_ordinal": estimate(lambda rows: krippendorff_alpha(both_N2[rows], "ordinal"), n, seed),
        "spearman": estimate(lambda rows: _spearman(a_N[rows], b_N[rows]), n, seed),
        "shift": mean(b_N - a_N, seed),
        "exact": mean((x_N == y_N).astype(float), seed),
        "within_one": mean((np.abs(x_N - y_N) <= 1).astype(float), seed),
    }


def quadratic_kappa(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    """Quadratically weighted kappa (Cohen 1968) of whole levels, [R].

    Without a confusion matrix: expected squared disagreement under independence is var x + var y + (mean x - mean y)^2.
    Equals scikit-learn's cohen_kappa_score(weights="quadratic").
    """
    chance_R = x_RN.var(1) + y_RN.var(1) + np.square(x_RN.mean(1) - y_RN.mean(1))
    return 1.0 - np.square(x_RN - y_RN).mean(1) / chance_R


def krippendorff_alpha(ratings_RNM: np.ndarray, level: Literal["interval", "ordinal"] = "interval") -> np.ndarray:
    """Krippendorff's alpha (Computing Krippendorff's Alpha-Reliability, 2011), [R]; NaN is a missing rating.

    Documents with fewer than two ratings are left out, as there. The ordinal metric is the interval metric of
    mid-ranks: the counts from c to k, less half of both ends, are the difference of their mid-ranks.
    """
    pairable_RN = np.isfinite(ratings_RNM).sum(2) >= 2
    x_RNM = np.where(pairable_RN[:, :, None], ratings_RNM, np.nan)
    if level == "ordinal":
        flat = np.where(np.isfinite(x_RNM), x_RNM, np.inf).reshape(len(x_RNM), -1)
        x_RNM = np.where(np.isfinite(x_RNM), rankdata(flat, axis=1).reshape(x_RNM.shape), np.nan)
    known_RNM = np.isfinite(x_RNM)
    n_R, m_RN = known_RNM.sum((1, 2)), known_RNM.sum(2)
    x_RNM = np.where(known_RNM, x_RNM, 0.0)
    grand_R = x_RNM.sum((1, 2)) / n_R
    own_RN = x_RNM.sum(2) / np.maximum(m_RN, 1)
    within_RN = (np.square(x_RNM - own_RN[:, :, None]) * known_RNM).sum(2)
    total_R = (np.square(x_RNM - grand_R[:, None, None]) * known_RNM).sum((1, 2))
    # The mean squared difference of all pairs of m numbers is 2 / (m - 1) times their squared deviations.
    observed_R = (within_RN * 2 * m_RN / np.maximum(m_RN - 1, 1)).sum(1) / n_R
    return np.where(total_R > FLAT * n_R, 1.0 - observed_R / (2 * total_R / (n_R - 1)), np.nan)


def length_bias(scores_N: np.ndarray, lengths_N: np.ndarray, sources: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Whether long documents score higher: spearman, and the slope per doubling of the length.

    within_sources: the same slope with each source's means taken out, as sources differ in both. With scores_N the
    difference of two oracles: whether one likes long texts more than the other does.
    """
    known = np.isfinite(scores_N)
    y_N, x_N = scores_N[known], np.log2(1.0 + np.asarray(lengths_N, np.float64)[known])
    codes = np.unique(np.asarray(sources, dtype=str)[known], return_inverse=True)[1]
    y_own, x_own = (values - _group_means(values, codes) for values in (y_N, x_N))
    return {
        "n": len(y_N),
        "spearman": estimate(lambda rows: _spearman(x_N[rows], y_N[rows]), len(y_N), seed),
        "slope": estimate(lambda rows: _slope(x_N[rows], y_N[rows]), len(y_N), seed),
        "within_sources": estimate(lambda rows: _slope(x_own[rows], y_own[rows]), len(y_N), seed),
    }


def source_effects(scores_N: np.ndarray, sources: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """What the source alone says of the score.

    explained: share of the variance between sources (eta squared; above 0 by chance where sources are small).
    effects: for each source of at least MINIMUM_SOURCE documents its mean less the mean over all sources, in points.
    """
    known = np.isfinite(scores_N)
    y_N, names = scores_N[known], np.asarray(sources, dtype=str)[known]
    found, codes = np.unique(names, return_inverse=True)

    def explained(rows: np.ndarray) -> np.ndarray:
        y_RN, codes_RN = y_N[rows], codes[rows]
        grand_R = y_RN.mean(1)
        between_R = np.zeros(len(rows))
        for code in range(len(found)):
            own_RN = codes_RN == code
            count_R = own_RN.sum(1)
            own_mean_R = (y_RN * own_RN).sum(1) / np.maximum(count_R, 1)
            between_R += count_R * np.square(own_mean_R - grand_R)
        total_R = np.square(y_RN - grand_R[:, None]).sum(1)
        return np.where(total_R > FLAT * len(y_N), between_R / total_R, np.nan)

    def effect(code: int) -> Statistic:
        def statistic(rows: np.ndarray) -> np.ndarray:
            own_RN = codes[rows] == code
            return (y_N[rows] * own_RN).sum(1) / own_RN.sum(1) - y_N[rows].mean(1)

        return statistic

    counts = np.bincount(codes, minlength=len(found))
    return {
        "n": len(y_N),
        "explained": estimate(explained, len(y_N), seed),
        "effects": {
            str(name): {"n": int(counts[code]), **estimate(effect(code), len(y_N), seed)}
            for code, name in enumerate(found)
            if counts[code] >= MINIMUM_SOURCE
        },
    }


def _both(a_N: np.ndarray, b_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(a_N) & np.isfinite(b_N)
    return a_N[known], b_N[known]


def _spearman(a_RN: np.ndarray, b_RN: np.ndarray) -> np.ndarray:
    return correlation(rankdata(a_RN, axis=1), rankdata(b_RN, axis=1))


def correlation(a_RN: np.ndarray, b_RN: np.ndarray) -> np.ndarray:
    a_RN, b_RN = a_RN - a_RN.mean(1, keepdims=True), b_RN - b_RN.mean(1, keepdims=True)
    return (a_RN * b_RN).sum(1) / np.sqrt(np.square(a_RN).sum(1) * np.square(b_RN).sum(1))


def _slope(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    x_RN = x_RN - x_RN.mean(1, keepdims=True)
    spread_R = np.square(x_RN).sum(1)
    return np.where(spread_R > FLAT * x_RN.shape[1], (x_RN * y_RN).sum(1) / spread_R, np.nan)


def _group_means(values_N: np.ndarray, codes_N: np.ndarray) -> np.ndarray:
    return (np.bincount(codes_N, values_N) / np.maximum(np.bincount(codes_N), 1))[codes_N]
