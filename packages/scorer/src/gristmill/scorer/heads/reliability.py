"""Whether a prediction means what it says: predicted against graded quality, and chances to reach a level.

Decisions use raw scores, since isotonic maps create ties (scikit-learn#16321); the maps here are for reporting alone.
Shapes: N documents, D dimensions, B bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gristmill.scorer.heads.metrics import Resamples, mean, ratio
from gristmill.scorer.rubric import Dimension, Rubric

BINS = 10
MINIMUM_MAP = 50  # graded documents, below which no isotonic map is fitted


def predicted_quality(truth_N: np.ndarray, predicted_N: np.ndarray, resamples: Resamples) -> dict[str, Any]:
    """Reliability of the predicted quality itself: ece with its interval, and bins of equally many documents.

    ece: mean over the bins, by documents, of |mean predicted - mean graded| (expected calibration error, Guo 2017).
    """
    known_N = np.isfinite(truth_N) & np.isfinite(predicted_N)
    truth_N, predicted_N = truth_N[known_N], predicted_N[known_N]
    if not len(truth_N):
        return {"n": 0, "ece": None, "ece_ci95": None, "bins": []}
    edges = np.unique(np.quantile(predicted_N, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins_N = np.searchsorted(edges, predicted_N, side="right")
    return _binned(truth_N, predicted_N, bins_N, resamples, known_N)


def level_chances(
    dimension: Dimension, fit_truth_N: np.ndarray, fit_predicted_N: np.ndarray, truth_N: np.ndarray,
    predicted_N: np.ndarray, resamples: Resamples,
) -> dict[str, Any] | None:  # fmt: skip
    """Of P(grade >= level), per level above the least: brier and ece with intervals, base (the Brier score of always
    saying the level's own frequency), and bins of a tenth of the chance each.

    The chance is an isotonic map of the predicted score, fitted on documents other than those judged here. None where
    fewer than MINIMUM_MAP are there to fit on.
    """
    fitted = np.isfinite(fit_truth_N) & np.isfinite(fit_predicted_N)
    known_N = np.isfinite(truth_N) & np.isfinite(predicted_N)
    if fitted.sum() < MINIMUM_MAP or not known_N.any():
        return None
    found: dict[str, Any] = {}
    for level in dimension.levels[1:]:
        # Grades may be expectations or means of repeats: a level is reached where rounding gives it.
        reached_N = (truth_N[known_N] >= level - 0.5).astype(float)
        knots = isotonic(fit_predicted_N[fitted], (fit_truth_N[fitted] >= level - 0.5).astype(float))
        chance_N = np.interp(predicted_N[known_N], knots["x"], knots["y"])
        bins_N = np.minimum((chance_N * BINS).astype(int), BINS - 1)
        binned = _binned(reached_N, chance_N, bins_N, resamples, known_N)
        share = float(reached_N.mean())
        found[str(level)] = {
            **resamples.estimate("brier", mean((chance_N - reached_N) ** 2), known_N),
            "base": share * (1 - share),
            **binned,
        }
    return found


def isotonic(predicted_N: np.ndarray, truth_N: np.ndarray) -> dict[str, list[float]]:
    """The non-decreasing map with the least squared error, as knots {"x", "y"} between which it is a line."""
    from sklearn.isotonic import IsotonicRegression

    found = IsotonicRegression(out_of_bounds="clip").fit(predicted_N, truth_N)
    return {"x": [float(v) for v in found.X_thresholds_], "y": [float(v) for v in found.y_thresholds_]}


def isotonic_knots(truth_ND: np.ndarray, predicted_ND: np.ndarray, rubric: Rubric) -> dict[str, Any]:
    """A map for each dimension and for the quality from predictions to grades; none with fewer than MINIMUM_MAP."""
    columns = {name: (truth_ND[:, i], predicted_ND[:, i]) for i, name in enumerate(rubric.names)}
    columns["quality"] = rubric.quality(truth_ND), rubric.quality(predicted_ND)
    found: dict[str, Any] = {}
    for name, (truth_N, predicted_N) in columns.items():
        known = np.isfinite(truth_N) & np.isfinite(predicted_N)
        if known.sum() >= MINIMUM_MAP:
            found[name] = isotonic(predicted_N[known], truth_N[known])
    return found


def _binned(
    truth_N: np.ndarray, predicted_N: np.ndarray, bins_N: np.ndarray, resamples: Resamples, known_N: np.ndarray
) -> dict[str, Any]:
    names, bins_N = np.unique(bins_N, return_inverse=True)
    inside_NB = bins_N[:, None] == np.arange(len(names))
    apart_NB = inside_NB * (predicted_N - truth_N)[:, None]
    rows: list[dict[str, Any]] = []
    for b in range(len(names)):
        own = inside_NB[:, b]
        graded = resamples.estimate("observed", ratio(own * truth_N, own), known_N)
        rows.append({"n": int(own.sum()), "predicted": float(predicted_N[own].mean()), **graded})
    ece = resamples.estimate("ece", lambda copies: np.abs(copies @ apart_NB).sum(1) / copies.sum(1), known_N)
    return {"n": len(truth_N), **ece, "bins": rows}
