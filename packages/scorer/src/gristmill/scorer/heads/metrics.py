"""How good a head is, against baselines that know no text: a head that loses to them is a domain classifier.

Everything is computed on one split, with percentile-bootstrap intervals over its documents.
Shapes: N documents, D dimensions, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gristmill.scorer.audit import agreement
from gristmill.scorer.rubric import Rubric

RESAMPLES = 300
# Sources with fewer documents say nothing about order within the source.
MINIMUM_SOURCE = 20


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Rank correlation, ties averaged; None for fewer than 3 documents or where one side is constant."""
    if len(a_N) < 3:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(agreement.correlation(rankdata(a_N)[None], rankdata(b_N)[None])[0])
    return value if np.isfinite(value) else None


def spearman_interval(a_N: np.ndarray, b_N: np.ndarray, seed: int = 0) -> list[float] | None:
    """95% percentile-bootstrap interval of spearman()."""
    if len(a_N) < 10:
        return None
    rows_RN = np.random.default_rng([seed, 0xB0]).integers(0, len(a_N), (RESAMPLES, len(a_N)))
    with np.errstate(invalid="ignore", divide="ignore"):
        values_R = agreement.correlation(rankdata(a_N[rows_RN], axis=1), rankdata(b_N[rows_RN], axis=1))
    values_R = values_R[np.isfinite(values_R)]
    return [float(v) for v in np.quantile(values_R, [0.025, 0.975])] if len(values_R) else None


def quadratic_kappa(truth_N: np.ndarray, predicted_N: np.ndarray, low: int, high: int) -> float | None:
    """Quadratic weighted kappa of both rounded to whole levels; None where chance leaves no disagreement."""
    a_N, b_N = (np.clip(np.rint(values), low, high) for values in (truth_N, predicted_N))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(agreement.quadratic_kappa(a_N[None], b_N[None])[0])
    return value if np.isfinite(value) else None


def within_source(truth_N: np.ndarray, predicted_N: np.ndarray, sources: Sequence[str]) -> dict[str, Any]:
    """Spearman inside each source of at least MINIMUM_SOURCE documents, its mean and its worst."""
    names = np.asarray(sources, dtype=object)
    found: dict[str, float] = {}
    for source in sorted(set(sources)):
        rows = names == source
        if rows.sum() >= MINIMUM_SOURCE and (value := spearman(truth_N[rows], predicted_N[rows])) is not None:
            found[source] = value
    values = list(found.values())
    return {"by_source": found, "mean": float(np.mean(values)) if values else None, "worst": min(values, default=None)}


def evaluate(
    rubric: Rubric,
    truth_ND: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    sources: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of every predictor (heads and baselines, each [N, D]) per dimension and for the quality."""
    report: dict[str, Any] = {"documents": len(truth_ND), "predictors": {}}
    targets: list[tuple[str, np.ndarray, tuple[int, int] | None]]
    targets = [(d.name, truth_ND[:, i], (d.min, d.max)) for i, d in enumerate(rubric.dimensions)]
    targets.append(("quality", rubric.quality(truth_ND), None))
    for name, predicted_ND in predictions.items():
        columns = [*predicted_ND.T, rubric.quality(predicted_ND)]
        report["predictors"][name] = {
            target: _one(truth_N, predicted_N, scale, sources, seed)
            for (target, truth_N, scale), predicted_N in zip(targets, columns)
        }
    return report


def baselines(
    fit_truth_ND: np.ndarray, fit_sources: Sequence[str], fit_lengths: Sequence[int],
    sources: Sequence[str], lengths: Sequence[int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Predictions [N, D] of what knows no text, fitted on the fit split: constant, mean of the source, log length."""
    constant_D = np.array([_mean(column, 0.0) for column in fit_truth_ND.T])
    names = np.asarray(fit_sources, dtype=object)
    by_source = {
        source: np.array([_mean(column[names == source], constant_D[i]) for i, column in enumerate(fit_truth_ND.T)])
        for source in set(fit_sources)
    }
    fit_x_N, x_N = np.log1p(np.asarray(fit_lengths, float)), np.log1p(np.asarray(lengths, float))
    length_ND = np.empty((len(x_N), fit_truth_ND.shape[1]))
    for i, column in enumerate(fit_truth_ND.T):
        known = np.isfinite(column)
        varied = known.sum() > 2 and np.ptp(fit_x_N[known]) > 0
        line = np.polyfit(fit_x_N[known], column[known], 1) if varied else np.array([0.0, constant_D[i]])
        length_ND[:, i] = np.polyval(line, x_N)
    return {
        "constant": np.tile(constant_D, (len(sources), 1)),
        "source mean": np.array([by_source.get(source, constant_D) for source in sources]).reshape(len(sources), -1),
        "log length": length_ND,
    }


def _one(
    truth_N: np.ndarray, predicted_N: np.ndarray, scale: tuple[int, int] | None, sources: Sequence[str], seed: int
) -> dict[str, Any]:
    known = np.isfinite(truth_N) & np.isfinite(predicted_N)
    truth_N, predicted_N = truth_N[known], predicted_N[known]
    if not len(truth_N):
        return {"n": 0}
    own_sources = [source for source, kept in zip(sources, known) if kept]
    result: dict[str, Any] = {
        "n": len(truth_N),
        "spearman": spearman(truth_N, predicted_N),
        "spearman_ci95": spearman_interval(truth_N, predicted_N, seed),
        "mae": float(np.abs(truth_N - predicted_N).mean()),
        "bias": float((predicted_N - truth_N).mean()),
        "within_source": within_source(truth_N, predicted_N, own_sources),
    }
    if scale is not None:
        result["qwk"] = quadratic_kappa(truth_N, predicted_N, *scale)
    return result


def _mean(values: np.ndarray, otherwise: float) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float(otherwise)
