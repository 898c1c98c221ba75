"""What train-heads prints and the card carries: heads and baselines alike, on documents that none was fitted on.

Every estimate NAME comes with NAME_ci95, a 95% interval by bootstrap over Labels.groups, None where undefined. Numbers
describe the label sample as it is mixed, not weighted back to the population.

metrics["splits"][SPLIT], for the splits select and audit:
  documents, groups           how many, and how many units the bootstrap draws
  predictors.NAME.TARGET      a TARGET is a dimension or "quality"; a score of another system has the quality alone
    n; spearman, pearson; mae, rmse, bias (none for scores in units of their own); qwk; recall by level and tails, of
    dimensions; within_source: by_source, mean, worst, spread, flat (Spearman inside each source, metrics.within_source)
  decision.NAME               keeping the documents that this score puts at the top of their source (decisions.py), at
                              the keep rates that CalibrationConfig has by default
    n, good; auroc, auprc; precision, recall, lift; keep_rate, kept_tokens; by.{source,language,length}.VALUE
  slices.{source,language,length}.VALUE.NAME   n, spearman, mae, bias of the quality
  reliability.HEAD            quality: n, ece, bins; levels.DIMENSION.LEVEL: brier, base, ece, bins (reliability.py),
                              with maps fitted on the other split
  bias                        length.NAME.TARGET: partial Spearman with log length, the oracle's grade given (of what
                              is no head, for the quality alone);
                              correlations.{oracle,HEAD}: Spearman of pairs of dimensions; redundant: those above .95
  ceiling.DIMENSION           r, repeats, ceiling: what a perfect head could reach, from an audit's retest reliability
  verdict                     head; against.NAME: by how much its Spearman of the quality beats that predictor's

metrics["exits"], from evaluate_exits():
  probe, judge, layers        k, J, K of exits.saved() and saved_full(); J = k without a judge
  splits.SPLIT                n_good; tau (rank within its source), exit_rate, false_drop, false_drop_upper (95%),
                              false_drop_judge (None without a judge), saved, saved_full: a curve, as lists
  splits.SPLIT.expected.EPS   tau, exit_rate, saved, saved_full where EPS of the good are lost in expectation
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from gristmill.base.errors import DataError
from gristmill.scorer.audit.reliability import spearman_brown
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.baselines import FASTTEXT, baselines, fasttext_quality
from gristmill.scorer.heads.calibration import binomial_upper, good_documents
from gristmill.scorer.heads.decisions import decision, document_tokens, slices
from gristmill.scorer.heads.exits import exit_curve, expected_exit, saved, saved_full
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import (
    MINIMUM_SOURCE,
    Resamples,
    Statistic,
    agreement,
    partial_rank_correlation,
    rank_correlation,
    ranks_within,
    spearman,
)
from gristmill.scorer.heads.reliability import level_chances, predicted_quality
from gristmill.scorer.rubric import Rubric

EVALUATED = ("select", "audit")
HEADS = ("judge", "probe")  # the one that decides first
REDUNDANT = 0.95
FALSE_DROPS = (0.01, 0.02, 0.05)
QUALITY = "quality"


def evaluate_splits(
    labels: Labels,
    lengths_N: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    rubric: Rubric,
    config: TrainConfig,
    *,
    audit: Mapping[str, Any] | None = None,
    others: Mapping[str, np.ndarray] | None = None,
    splits: tuple[str, ...] = EVALUATED,
) -> dict[str, Any]:
    """metrics["splits"]: for each split the metrics of the heads and of baselines fitted on the fit split, if any.

    lengths_N: tokens read of each document. predictions: scores [N, D] or a quality [N] of each head, NaN where it has
    none. audit: the content of an audit.json, for the noise ceiling. others: scores [N] of other systems, in units of
    their own, NaN where they lack a document.
    """
    fit = labels.take(labels.splits == "fit")
    rows = {split: (labels.splits == split) & np.isfinite(_quality(predictions["probe"], rubric)) for split in splits}
    tokens_N = document_tokens(lengths_N, labels.texts, config.windows * config.window_tokens)
    worded_N = np.full(len(labels), np.nan)
    asked = np.flatnonzero(np.any(list(rows.values()), axis=0))
    if len(fit) and (quality_N := fasttext_quality(fit, [labels.texts[i] for i in asked], rubric)) is not None:
        worded_N[asked] = quality_N
    found: dict[str, Any] = {}
    for split in splits:
        mask_N = rows[split]
        if not mask_N.any():
            continue
        own = labels.take(mask_N)
        every = {name: predicted[mask_N] for name, predicted in predictions.items()}
        if len(fit):
            every |= baselines(fit, lengths_N[labels.splits == "fit"], own, lengths_N[mask_N])
            if np.isfinite(worded_N[mask_N]).all():
                every[FASTTEXT] = worded_N[mask_N]
        every |= {name: score_N[mask_N] for name, score_N in (others or {}).items()}
        report = _evaluate(own, tokens_N[mask_N], every, rubric, config.seed, set(others or {}))
        heads = [name for name in HEADS if name in predictions]
        apart = next((rows[name] for name in splits if name != split and rows[name].any()), None)
        report["reliability"] = {
            name: _reliability(labels, predictions[name], mask_N, apart, rubric, config.seed) for name in heads
        }
        if audit is not None:
            report["ceiling"] = _ceilings(audit, own, rubric)
        found[split] = report
    return found


def evaluate_exits(
    labels: Labels, predictions: Mapping[str, np.ndarray], rubric: Rubric, taps: tuple[int, int], layers: int
) -> dict[str, Any]:
    """metrics["exits"]: what each tau would spare and lose, before any bound. layers: blocks of the whole backbone."""
    judged = "judge" in predictions
    k, J = taps if judged else (taps[0], taps[0])
    truth_N = rubric.quality(labels.scores_ND)
    qualities = {name: _quality(predicted, rubric) for name, predicted in predictions.items()}
    found: dict[str, Any] = {"probe": k, "judge": J, "layers": layers, "splits": {}}
    for split in EVALUATED:
        rows = (labels.splits == split) & np.isfinite(truth_N) & np.all([np.isfinite(q) for q in qualities.values()], 0)
        if not rows.any():
            continue
        sources = [source for source, own in zip(labels.sources, rows) if own]
        score_N = ranks_within(qualities["probe"][rows], sources)
        good_N = good_documents(truth_N[rows], sources, CalibrationConfig())
        curve = exit_curve(score_N, good_N)
        lost = np.searchsorted(np.sort(score_N[good_N]), curve["tau"])
        best = None
        if judged:
            kept_N = good_documents(qualities["judge"][rows], sources, CalibrationConfig())
            best = [float((score_N[kept_N] < tau).mean()) for tau in curve["tau"]]
        expected: dict[str, Any] = {}
        for budget in FALSE_DROPS:
            tau, rate = expected_exit(score_N, good_N, budget)
            expected[f"{budget:g}"] = {
                "tau": tau if np.isfinite(tau) else None, "exit_rate": rate,
                "saved": saved(rate, k, J), "saved_full": saved_full(rate, k, J, layers),
            }  # fmt: skip
        found["splits"][split] = {
            "n": len(score_N),
            "n_good": int(good_N.sum()),
            **{name: values.tolist() for name, values in curve.items()},
            "false_drop_upper": [binomial_upper(int(errors), int(good_N.sum()), 0.95) for errors in lost],
            "false_drop_judge": best,
            "saved": saved(curve["exit_rate"], k, J).tolist(),
            "saved_full": saved_full(curve["exit_rate"], k, J, layers).tolist(),
            "expected": expected,
        }
    return found


def _evaluate(
    own: Labels, tokens_N: np.ndarray, predictions: Mapping[str, np.ndarray], rubric: Rubric, seed: int,
    foreign: set[str],
) -> dict[str, Any]:  # fmt: skip
    resamples = Resamples(own.groups, seed)
    truth_N = rubric.quality(own.scores_ND)
    by = slices(own.sources, own.languages, tokens_N)
    report: dict[str, Any] = {"documents": len(own), "groups": resamples.groups, "predictors": {}, "decision": {}}
    report["slices"] = {kind: {name: {} for name in sorted(set(names_N))} for kind, names_N in by.items()}
    lengths: dict[str, Any] = {}
    known_N = np.isfinite(truth_N)
    good_N = np.zeros(len(own), dtype=bool)
    good_N[known_N] = good_documents(truth_N[known_N], _at(own.sources, known_N), CalibrationConfig())
    for name, predicted in predictions.items():
        targets = {QUALITY: (truth_N, _quality(predicted, rubric), None)}
        if predicted.ndim == 2:
            targets |= {
                d.name: (own.scores_ND[:, i], predicted[:, i], (d.min, d.max)) for i, d in enumerate(rubric.dimensions)
            }
        measured = {
            target: agreement(truth, values, own.sources, resamples, scale)
            for target, (truth, values, scale) in targets.items()
        }
        if name in foreign:
            _without_errors(measured[QUALITY])
        report["predictors"][name] = measured
        lengths[name] = {
            target: _length_bias(truth, values, tokens_N, resamples)
            for target, (truth, values, _) in targets.items()
            if name in HEADS or target == QUALITY
        }
        quality_N = targets[QUALITY][1]
        both_N = known_N & np.isfinite(quality_N)
        if not both_N.any():
            continue
        score_N, keep_N = np.full(len(own), np.nan), np.zeros(len(own), dtype=bool)
        score_N[both_N] = ranks_within(quality_N[both_N], _at(own.sources, both_N))
        keep_N[both_N] = good_documents(quality_N[both_N], _at(own.sources, both_N), CalibrationConfig())
        report["decision"][name] = decision(good_N, score_N, keep_N, tokens_N, by, resamples, both_N)
        for kind, names_N in by.items():
            for value in report["slices"][kind]:
                rows_N = both_N & (names_N == value)
                report["slices"][kind][value][name] = _slice(truth_N, quality_N, rows_N, resamples, name in foreign)
    report["bias"] = {"length": lengths, **_correlations(own.scores_ND, predictions, rubric)}
    report["verdict"] = _verdict(truth_N, predictions, rubric, resamples)
    return report


def _reliability(
    labels: Labels, predicted: np.ndarray, rows_N: np.ndarray, apart_N: np.ndarray | None, rubric: Rubric, seed: int
) -> dict[str, Any]:
    own = labels.take(rows_N)
    resamples = Resamples(own.groups, seed)
    quality_N = _quality(predicted, rubric)[rows_N]
    found: dict[str, Any] = {"quality": predicted_quality(rubric.quality(own.scores_ND), quality_N, resamples)}
    if predicted.ndim == 2 and apart_N is not None:
        found["levels"] = {
            d.name: level_chances(
                d, labels.scores_ND[apart_N, i], predicted[apart_N, i], own.scores_ND[:, i], predicted[rows_N, i],
                resamples,
            )
            for i, d in enumerate(rubric.dimensions)
        }  # fmt: skip
    return found


def _slice(
    truth_N: np.ndarray, quality_N: np.ndarray, rows_N: np.ndarray, resamples: Resamples, foreign: bool
) -> dict[str, Any]:
    n = int(rows_N.sum())
    if n < MINIMUM_SOURCE:
        return {"n": n}
    error_N = quality_N[rows_N] - truth_N[rows_N]
    result = {"n": n, **resamples.estimate("spearman", rank_correlation(truth_N[rows_N], quality_N[rows_N]), rows_N)}
    if not foreign:
        result |= {"mae": float(np.abs(error_N).mean()), "bias": float(error_N.mean())}
    return result


def _length_bias(
    truth_N: np.ndarray, predicted_N: np.ndarray, tokens_N: np.ndarray, resamples: Resamples
) -> dict[str, Any]:
    rows_N = np.isfinite(truth_N) & np.isfinite(predicted_N)
    statistic = partial_rank_correlation(predicted_N[rows_N], np.log1p(tokens_N[rows_N]), truth_N[rows_N])
    return resamples.estimate("partial", statistic, rows_N)


def _correlations(truth_ND: np.ndarray, predictions: Mapping[str, np.ndarray], rubric: Rubric) -> dict[str, Any]:
    """Dimensions that rank documents alike are one dimension asked twice (halo)."""
    graded = {"oracle": truth_ND} | {name: predictions[name] for name in HEADS if name in predictions}
    found: dict[str, Any] = {}
    redundant: dict[str, list[str]] = {}
    for name, scores_ND in graded.items():
        if scores_ND.ndim < 2:
            continue
        pairs: dict[str, float | None] = {}
        for i, j in combinations(range(len(rubric.names)), 2):
            rows_N = np.isfinite(scores_ND[:, i]) & np.isfinite(scores_ND[:, j])
            pairs[f"{rubric.names[i]} {rubric.names[j]}"] = spearman(scores_ND[rows_N, i], scores_ND[rows_N, j])
        found[name] = pairs
        redundant[name] = [pair for pair, value in pairs.items() if value is not None and value > REDUNDANT]
    return {"correlations": found, "redundant": redundant}


def _verdict(
    truth_N: np.ndarray, predictions: Mapping[str, np.ndarray], rubric: Rubric, resamples: Resamples
) -> dict[str, Any]:
    head = next(name for name in HEADS if name in predictions)
    best_N = _quality(predictions[head], rubric)
    against: dict[str, Any] = {}
    for name, predicted in predictions.items():
        other_N = _quality(predicted, rubric)
        rows_N = np.isfinite(truth_N) & np.isfinite(best_N) & np.isfinite(other_N)
        if name in HEADS or not rows_N.any() or np.ptp(other_N[rows_N]) == 0:
            continue
        ours, theirs = (rank_correlation(truth_N[rows_N], values[rows_N]) for values in (best_N, other_N))
        against[name] = resamples.estimate("difference", _difference(ours, theirs), rows_N)
    return {"head": head, "against": against}


def _difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda copies_RN: a(copies_RN) - b(copies_RN)


def retest_reliabilities(audit: Mapping[str, Any], rubric: Rubric) -> dict[str, float]:
    """How well one grading of a dimension agrees with the next, 0 to 1, of those that an audit measured.

    Raises:
        DataError: it is not the content of an audit.json.
    """
    try:
        section = next((s for s in audit["rubrics"].values() if s.get("rubric_sha") == rubric.sha), {})
        graded = (section.get("retest") or section.get("stored_repeats") or {"dimensions": {}})["dimensions"]
        values = {name: graded[name]["r"]["value"] for name in rubric.names if graded.get(name)}
        return {name: max(float(r), 0.0) for name, r in values.items() if r is not None}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError("audit: not what `scorer audit-oracle` writes; give its audit.json") from None


def _ceilings(audit: Mapping[str, Any], own: Labels, rubric: Rubric) -> dict[str, Any]:
    repeats = float(own.repeats_N.mean())
    return {
        name: {"r": r, "repeats": repeats, "ceiling": float(np.sqrt(spearman_brown(r, repeats)))}
        for name, r in retest_reliabilities(audit, rubric).items()
    }


def _without_errors(measured: dict[str, Any]) -> None:
    for name in ("mae", "rmse", "bias"):
        measured.pop(name, None)
        measured.pop(f"{name}_ci95", None)
    for name in ("spread", "flat"):
        measured.get("within_source", {}).pop(name, None)


def _quality(predicted: np.ndarray, rubric: Rubric) -> np.ndarray:
    return rubric.quality(predicted) if predicted.ndim == 2 else predicted


def _at(values: list[str], rows_N: np.ndarray) -> list[str]:
    return [value for value, inside in zip(values, rows_N) if inside]
