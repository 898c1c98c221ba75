"""Thresholds that keep their promise: tau_drop with an exact bound on false drops, tau_keep to a keep rate per source.

tau_drop is on the probe's score and spends labels; tau_keep is on the final quality and needs none. Scores are stored,
thresholds move: nothing here touches a model. Always tau_drop <= tau_keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import beta

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig

FORMAT = "gristmill.calibration/1"
ALL = "(all)"  # the group that a source without its own falls back to
# tau_drop is walked up over these quantiles of unlabelled probe scores: a grid fixed without a look at any label, so
# that the fixed-sequence test is exact (Learn then Test, Angelopoulos et al. 2021).
GRID = np.linspace(0.005, 0.8, 160)
MINIMUM_UNLABELLED = 20  # a keep rate of 40% from 20 scores is sure to 21 points; a stranger's threshold is not at all


@dataclass(frozen=True)
class Labelled:
    """Graded documents of the certify split: the quality that the oracle gave and the probe's, [n] each."""

    source: Sequence[str]
    oracle: np.ndarray
    probe: np.ndarray


@dataclass(frozen=True)
class Unlabelled:
    """A uniform sample of what will be scored, run without exits. `judge` is None for a bundle without a judge."""

    source: Sequence[str]
    probe: np.ndarray
    judge: np.ndarray | None


@dataclass(frozen=True)
class Threshold:
    """tau_drop (None: nothing exits early) with how it was earned. fd_upper: upper bound, None in the expected mode."""

    tau_drop: float | None
    mode: Literal["certified", "expected"]
    n_good: int
    errors: int
    fd_upper: float | None
    exit_rate: float


def binomial_upper(errors: int, n: int, confidence: float) -> float:
    """Clopper-Pearson one-sided upper bound on a rate of which `errors` of `n` were seen."""
    return 1.0 if errors >= n else float(beta.ppf(confidence, errors + 1, n - errors))


def labels_needed(max_false_drop: float, confidence: float) -> int:
    """Good documents needed before even zero errors certify the bound: 59 for 5% at 95%, 299 for 1%."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_false_drop))


def good_documents(oracle: np.ndarray, source: Sequence[str], config: CalibrationConfig) -> np.ndarray:
    """Mask of the documents that the oracle itself would keep: the top `rate` of its own source."""
    names = np.asarray(source, dtype=object)
    good = np.zeros(len(oracle), dtype=bool)
    for name in sorted(set(source)):
        rows = names == name
        good[rows] = oracle[rows] >= np.quantile(oracle[rows], 1 - config.rate(name))
    return good


def drop_threshold(good_probe: np.ndarray, unlabelled_probe: np.ndarray, config: CalibrationConfig) -> Threshold:
    """The largest tau on the grid such that P(probe < tau | good) <= max_false_drop with the confidence asked for.

    Fixed-sequence testing: tau rises and stops at the first bound that fails. With too few good documents it refuses,
    or, where config.allow_uncertified, gives the expected mode: rank floor((n + 1) * eps) of conformal risk control.

    Raises:
        DataError: too few good documents; the message says how many are needed.
    """
    n, needed = len(good_probe), labels_needed(config.max_false_drop, config.confidence)

    def threshold(tau: float | None, mode: Literal["certified", "expected"]) -> Threshold:
        errors = int((good_probe < tau).sum()) if tau is not None else 0
        upper = binomial_upper(errors, n, config.confidence) if mode == "certified" else None
        exits = float((unlabelled_probe < tau).mean()) if tau is not None else 0.0
        return Threshold(tau, mode, n, errors, upper, exits)

    if n < needed:
        if not config.allow_uncertified:
            raise DataError(
                f"calibration: {n} good documents in split certify, and {needed} are needed to certify at most "
                f"{config.max_false_drop:.1%} false drops at {config.confidence:.0%}: {needed - n} more, "
                f"so grade more, raise max_false_drop, or set allow_uncertified (stamped as mode expected)"
            )
        rank = math.floor((n + 1) * config.max_false_drop)
        return threshold(float(np.sort(good_probe)[rank - 1]) if rank else None, "expected")
    found: float | None = None
    for tau in np.unique(np.quantile(unlabelled_probe, GRID)):
        if binomial_upper(int((good_probe < tau).sum()), n, config.confidence) > config.max_false_drop:
            break
        found = float(tau)
    return threshold(found, "certified")


def final_quality(probe: np.ndarray, judge: np.ndarray | None, tau_drop: float | None) -> np.ndarray:
    """The deployed score: the judge's where it ran, else the probe's."""
    if judge is None:
        return probe
    return np.where(probe >= (-math.inf if tau_drop is None else tau_drop), judge, probe)


def calibrate(labelled: Labelled, unlabelled: Unlabelled, config: CalibrationConfig) -> dict[str, Any]:
    """The content of calibration.json from predictions alone.

    One rank is certified over all sources together (the bound holds for the mix of the label sample), and tau_drop is
    each source's own quantile at that rank: an oracle that likes one source less would else forbid every exit.
    tau_keep, the rate it reaches and score deciles (for drift) stand per source. Where a source's tau_keep is below
    tau_drop, that source's tau_drop is lowered to it, which can only lower false drops.

    Raises:
        DataError: too few good labels (see drop_threshold) or fewer than MINIMUM_UNLABELLED unlabelled documents.
    """
    known = np.isfinite(labelled.oracle) & np.isfinite(labelled.probe)
    oracle, probe = labelled.oracle[known], labelled.probe[known]
    sources = [source for source, kept in zip(labelled.source, known) if kept]
    scored = np.isfinite(unlabelled.probe)
    if scored.sum() < MINIMUM_UNLABELLED:
        raise DataError(f"calibration: {int(scored.sum())} scored unlabelled documents, {MINIMUM_UNLABELLED} needed")
    good = good_documents(oracle, sources, config)
    names = np.asarray(unlabelled.source, dtype=object)
    reference = _reference(unlabelled, scored)
    drop = drop_threshold(
        _ranks(probe[good], [source for source, kept in zip(sources, good) if kept], reference),
        _ranks(unlabelled.probe[scored], list(names[scored]), reference),
        config,
    )
    groups = {ALL: _group(unlabelled, scored, config.keep_default, drop, ALL)}
    for source in sorted({str(name) for name in names[scored]}):
        rows = scored & (names == source)
        enough = source in reference
        groups[source] = _group(unlabelled, rows if enough else scored, config.rate(source), drop, source)
        groups[source] |= {"parent": None if enough else ALL, "n": int(rows.sum())}
    return {
        "format": FORMAT,
        "mode": drop.mode,
        "max_false_drop": config.max_false_drop,
        "confidence": config.confidence,
        "n_labelled": len(oracle),
        "n_good": drop.n_good,
        "errors": drop.errors,
        "fd_upper": drop.fd_upper,
        "drop_rank": drop.tau_drop,
        "tau_drop": groups[ALL]["tau_drop"],
        "exit_rate": drop.exit_rate,
        "groups": groups,
    }


def _reference(unlabelled: Unlabelled, scored: np.ndarray) -> dict[str, np.ndarray]:
    """Sorted probe scores of each source that has enough of them, and of all together."""
    names = np.asarray(unlabelled.source, dtype=object)
    found = {ALL: np.sort(unlabelled.probe[scored])}
    for source in sorted({str(name) for name in names[scored]}):
        own = unlabelled.probe[scored & (names == source)]
        if len(own) >= MINIMUM_UNLABELLED:
            found[source] = np.sort(own)
    return found


def _ranks(probe: np.ndarray, sources: Sequence[str], reference: dict[str, np.ndarray]) -> np.ndarray:
    """Where each score stands among its source's, in [0, 1]: rank < q exactly where score < the source's quantile q."""
    ranks = np.empty(len(probe))
    for at, (score, source) in enumerate(zip(probe, sources)):
        ladder = reference.get(source, reference[ALL])
        ranks[at] = np.interp(score, ladder, np.linspace(0, 1, len(ladder)))
    return ranks


def _group(unlabelled: Unlabelled, rows: np.ndarray, rate: float, drop: Threshold, name: str) -> dict[str, Any]:
    probe = unlabelled.probe[rows]
    judge = unlabelled.judge[rows] if unlabelled.judge is not None else None
    tau_drop = None if drop.tau_drop is None else float(np.quantile(probe, drop.tau_drop))
    for _attempt in range(8):
        quality = final_quality(probe, judge, tau_drop)
        tau_keep = float(np.quantile(quality, 1 - rate))
        if tau_drop is None or tau_drop <= tau_keep:
            break
        tau_drop = tau_keep
    else:
        tau_drop = None
        quality = final_quality(probe, judge, None)
        tau_keep = float(np.quantile(quality, 1 - rate))
    return {
        "n": int(rows.sum()),
        "target": rate,
        "keep_rate": float((quality >= tau_keep).mean()),
        "tau_keep": tau_keep,
        "tau_drop": tau_drop,
        "exit_rate": float((probe < tau_drop).mean()) if tau_drop is not None else 0.0,
        "deciles": [float(v) for v in np.quantile(quality, np.linspace(0.1, 0.9, 9))],
        "parent": None if name == ALL else ALL,
    }
