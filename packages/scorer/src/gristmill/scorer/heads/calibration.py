"""Thresholds that keep their promise: tau_drop with an exact bound on false drops, tau_keep to a keep rate per source.

tau_drop is on the probe's score and spends labels; tau_keep is on the final quality and needs none. Scores are stored,
thresholds move: nothing here touches a model. Always tau_drop <= tau_keep.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import beta

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig

FORMAT = "gristmill.calibration/2"
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
    """A uniform sample of what will be scored, run without exits. `judge` is None for a bundle without a judge.

    ids decide which of equal scores are kept; tokens are the documents' sizes, for a keep rate by tokens.
    """

    source: Sequence[str]
    probe: np.ndarray
    judge: np.ndarray | None
    ids: Sequence[str] | None = None
    tokens: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.probe)

    def take(self, rows_N: np.ndarray) -> Unlabelled:
        """The documents of a mask."""
        picked = {
            name: None if values is None else np.asarray(values, dtype=object if name in ("source", "ids") else None)
            for name, values in self.__dict__.items()
        }
        return replace(self, **{name: None if v is None else v[rows_N] for name, v in picked.items()})


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


def keeps(quality_N: np.ndarray, ids: Sequence[str], group: Mapping[str, Any]) -> np.ndarray:
    """Mask of the documents that a group's tau_keep keeps: those above it, and of those at it the share `ties`, lowest
    hashes of their ids first. NaN is not kept."""
    at = [int(row) for row in np.flatnonzero(quality_N == group["tau_keep"])]
    kept_N = quality_N > group["tau_keep"]
    kept_N[at] = _fractions([ids[i] for i in at]) < group["ties"]
    return kept_N


def calibrate(labelled: Labelled, unlabelled: Unlabelled, config: CalibrationConfig) -> dict[str, Any]:
    """The content of calibration.json from predictions alone.

    A source whose good labels suffice has a tau_drop that is certified for it (config.certify). The others share one
    rank, certified over all sources together (its bound holds for the mix of the label sample), and tau_drop is each
    source's own quantile at that rank: an oracle that likes one source less would else forbid every exit. Where
    config.bounds is "bonferroni" bounds hold all at once, each at confidence 1 - (1 - confidence) / certificates.

    tau_keep, the rate it reaches and score deciles (for drift) stand per source. Where a source's tau_keep is below
    tau_drop, that source's tau_drop is lowered to it, which can only lower false drops.

    Raises:
        DataError: too few good labels (see drop_threshold) or fewer than MINIMUM_UNLABELLED unlabelled documents.
    """
    known = np.isfinite(labelled.oracle) & np.isfinite(labelled.probe)
    oracle, probe = labelled.oracle[known], labelled.probe[known]
    sources = np.asarray(labelled.source, dtype=object)[known]
    sample = unlabelled.take(np.isfinite(unlabelled.probe))
    if len(sample) < MINIMUM_UNLABELLED:
        raise DataError(f"calibration: {len(sample)} scored unlabelled documents, {MINIMUM_UNLABELLED} needed")
    if config.keep_by == "tokens" and sample.tokens is None:
        raise DataError("calibration: keep_by is tokens, and the unlabelled documents have no column tokens")
    names = np.asarray(sample.source, dtype=object)
    reference = _reference(sample, names)
    good = good_documents(oracle, list(sources), config)
    good_probe, good_sources = probe[good], sources[good]
    own = _certifiable(good_sources, reference, config)
    tests = len(own) + 1
    strict = (
        replace(config, confidence=1 - (1 - config.confidence) / tests) if config.bounds == "bonferroni" else config
    )
    pooled = drop_threshold(_ranks(good_probe, good_sources, reference), _ranks(sample.probe, names, reference), strict)
    everything = np.ones(len(sample), dtype=bool)
    groups: dict[str, dict[str, Any]] = {}
    for source in [ALL, *sorted({str(name) for name in names})]:
        rows = names == source if source in reference and source != ALL else everything
        certificate = (
            drop_threshold(good_probe[good_sources == source], reference[source], strict) if source in own else None
        )
        if certificate is not None:
            tau_drop = certificate.tau_drop
        else:
            tau_drop = None if pooled.tau_drop is None else float(np.quantile(sample.probe[rows], pooled.tau_drop))
        group = _group(
            sample.take(rows), config.keep_default if source == ALL else config.rate(source), tau_drop, strict
        )
        mine = good_sources == source if source != ALL else np.ones(len(good_sources), dtype=bool)
        groups[source] = group | {
            "n": int((names == source).sum()) if source != ALL else len(sample),
            "parent": None if source in reference else ALL,
            "drop_parent": None if source in own or source == ALL else ALL,
            "oracle": _false_drops(good_probe[mine], group["tau_drop"], strict.confidence) if source != ALL else None,
        }
    groups[ALL]["oracle"] = _false_drops_of_all(groups, good_probe, good_sources, strict.confidence)
    return {
        "format": FORMAT,
        "mode": pooled.mode,
        "max_false_drop": config.max_false_drop,
        "confidence": config.confidence,
        "bounds": config.bounds,
        "certificates": tests,
        "keep_by": config.keep_by,
        "n_labelled": len(oracle),
        "n_good": pooled.n_good,
        "errors": pooled.errors,
        "fd_upper": pooled.fd_upper,
        "drop_rank": pooled.tau_drop,
        "tau_drop": groups[ALL]["tau_drop"],
        "exit_rate": pooled.exit_rate,
        "scores_sha": _sha(oracle, probe, sample.probe, sample.judge),
        "groups": groups,
    }


def _certifiable(good_sources: np.ndarray, reference: Mapping[str, np.ndarray], config: CalibrationConfig) -> list[str]:
    """Sources with good labels enough for a certificate of their own, beside the pool's; decided by counts alone."""
    counts = {source: int((good_sources == source).sum()) for source in sorted(reference) if source != ALL}
    own = list(counts) if config.certify == "sources" else []
    while own:
        confidence = (
            1 - (1 - config.confidence) / (len(own) + 1) if config.bounds == "bonferroni" else config.confidence
        )
        needed = labels_needed(config.max_false_drop, confidence)
        enough = [source for source in own if counts[source] >= needed]
        if len(enough) == len(own):
            break
        # The poorest goes first: with one test less, the next may have enough.
        own = sorted(own, key=lambda source: counts[source])[1:]
    return sorted(own)


def _reference(sample: Unlabelled, names: np.ndarray) -> dict[str, np.ndarray]:
    """Sorted probe scores of each source that has enough of them, and of all together."""
    found = {ALL: np.sort(sample.probe)}
    for source in sorted({str(name) for name in names}):
        own = sample.probe[names == source]
        if len(own) >= MINIMUM_UNLABELLED:
            found[source] = np.sort(own)
    return found


def _ranks(probe: np.ndarray, sources: np.ndarray, reference: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where each score stands among its source's, in [0, 1]: rank < q exactly where score < the source's quantile q."""
    ranks = np.empty(len(probe))
    for source in set(sources):
        rows, ladder = sources == source, reference.get(source, reference[ALL])
        ranks[rows] = np.interp(probe[rows], ladder, np.linspace(0, 1, len(ladder)))
    return ranks


def _group(sample: Unlabelled, rate: float, tau_drop: float | None, config: CalibrationConfig) -> dict[str, Any]:
    size = np.ones(len(sample)) if config.keep_by == "documents" else np.asarray(sample.tokens, dtype=np.float64)
    for attempt in range(9):
        if attempt == 8:  # a judge on another level than the probe: then nothing exits early
            tau_drop = None
        quality = final_quality(sample.probe, sample.judge, tau_drop)
        tau_keep, ties = _keep_threshold(quality, size, rate)
        if tau_drop is None or tau_drop <= tau_keep:
            break
        tau_drop = tau_keep
    threshold = {"tau_keep": tau_keep, "ties": ties}
    ids = sample.ids if sample.ids is not None else [str(i) for i in range(len(sample))]
    kept = keeps(quality, ids, threshold)
    deciles = np.quantile(quality, np.linspace(0.1, 0.9, 9))
    best = None
    if sample.judge is not None:
        bar = _keep_threshold(sample.judge, size, rate)[0]
        best = _false_drops(sample.probe[sample.judge >= bar], tau_drop, config.confidence)
    return {
        "target": rate,
        "keep_rate": float(size[kept].sum() / size.sum()),
        "keep_ci95": _keep_interval(rate, _effective(size)),
        "n_effective": _effective(size),
        "tau_keep": tau_keep,
        "ties": ties,
        "tau_drop": tau_drop,
        "exit_rate": float((sample.probe < tau_drop).mean()) if tau_drop is not None else 0.0,
        "judge": best,
        "deciles": [float(v) for v in deciles],
        # Tenths, but for scores that many documents share.
        "at_or_below": [float((quality <= v).mean()) for v in deciles],
    }


def _keep_threshold(quality: np.ndarray, size: np.ndarray, rate: float) -> tuple[float, float]:
    """The score down to which `rate` of the total size is kept, and what share of the documents at it."""
    values, inverse = np.unique(-quality, return_inverse=True)
    per_value = np.bincount(inverse, weights=size)
    above = np.cumsum(per_value)
    at = min(int(np.searchsorted(above, rate * size.sum() * (1 - 1e-12))), len(values) - 1)
    missing = rate * size.sum() - (above[at] - per_value[at])
    return float(-values[at]), float(np.clip(missing / per_value[at], 0, 1)) if per_value[at] else 1.0


def _keep_interval(rate: float, n: float) -> list[float]:
    """Between what rates, with 95%, the threshold keeps of all documents: the share above the k-th greatest of n scores
    is Beta(k, n + 1 - k)."""
    k = np.clip(rate * n, 1, n)
    return [float(beta.ppf(q, k, n + 1 - k)) for q in (0.025, 0.975)]


def _effective(size: np.ndarray) -> float:
    """As how many documents of equal size these count: (sum)^2 / sum of squares (Kish 1965)."""
    return float(size.sum() ** 2 / np.square(size).sum())


def _false_drops(good_probe: np.ndarray, tau_drop: float | None, confidence: float) -> dict[str, Any]:
    """How many of the documents that should be kept exit early, and the upper bound of their share."""
    errors = 0 if tau_drop is None else int((good_probe < tau_drop).sum())
    return _share(errors, len(good_probe), confidence)


def _false_drops_of_all(
    groups: Mapping[str, Mapping[str, Any]], good_probe: np.ndarray, good_sources: np.ndarray, confidence: float
) -> dict[str, Any]:
    """The same for all sources together, each at its own tau_drop."""
    taus = [groups.get(source, groups[ALL])["tau_drop"] for source in good_sources]
    errors = sum(tau is not None and score < tau for score, tau in zip(good_probe, taus))
    return _share(int(errors), len(good_probe), confidence)


def _share(errors: int, n: int, confidence: float) -> dict[str, Any]:
    rate = errors / n if n else None
    return {"n": n, "errors": errors, "rate": rate, "upper": binomial_upper(errors, n, confidence) if n else None}


def _fractions(ids: Sequence[str]) -> np.ndarray:
    """A number in [0, 1) that an id alone decides."""
    digests = [hashlib.blake2b(str(one).encode("utf-8", "replace"), digest_size=8).digest() for one in ids]
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])


def _sha(*parts: np.ndarray | None) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(b"-" if part is None else np.asarray(part, dtype="<f8").tobytes())
    return total.hexdigest()
