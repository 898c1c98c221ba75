"""Thresholds that keep their promise: tau_drop with an exact bound on false drops, tau_keep to a keep rate per source.

tau_drop is on the probe's score and spends labels; tau_keep is on the final quality and needs none. Scores are stored,
thresholds move: nothing here touches a model. Always tau_drop <= tau_keep.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from scipy.stats import beta

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig

FORMAT = "gristmill.calibration/3"
ALL = "(all)"  # the group of text whose source is not told, and of sources with too few documents
# tau_drop is walked up over these quantiles of unlabelled probe scores: a grid fixed without a look at any label, so
# that the fixed-sequence test is exact (Learn then Test, Angelopoulos et al. 2021).
GRID = np.linspace(0.005, 0.8, 160)
MINIMUM_UNLABELLED = 20  # a keep rate of 40% from 20 scores is sure to 21 points; a stranger's threshold is not at all


Documents = TypeVar("Documents", "Labelled", "Unlabelled")


@dataclass(frozen=True)
class Labelled:
    """Graded documents of the certify split: the quality that the oracle gave and the probe's, [n] each.

    weights: the inverse of the chance that each had to be drawn, up to a factor; all alike without. ids decide who
    stays in an even draw; the places of the documents without. whole: the probe read them as scoring will; where it
    read only the part that the oracle was shown, nothing is certified.
    """

    source: Sequence[str]
    oracle: np.ndarray
    probe: np.ndarray
    weights: np.ndarray | None = None
    ids: Sequence[str] | None = None
    whole: bool = True

    def __len__(self) -> int:
        return len(self.probe)

    def evenly(self, sources: Collection[str]) -> Labelled:
        """Documents of these sources, each of which had the same chance to be drawn: one stays with a chance of its
        weight by the greatest. Counts of the labels are only then binomial with the rate that all text has."""
        rows = np.flatnonzero(np.isin(np.asarray(self.source, dtype=object), list(sources)))
        if self.weights is None or not len(rows):
            return _take(self, rows)
        ids = rows if self.ids is None else [self.ids[i] for i in rows]
        # Another hash than that of ties, splits and draws.
        stays = _fractions([f"even {one}" for one in ids]) < self.weights[rows] / self.weights[rows].max()
        return _take(self, rows[stays])


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


def drop_threshold(
    good_probe: np.ndarray, unlabelled_probe: np.ndarray, config: CalibrationConfig, whole: bool = True
) -> Threshold:
    """The largest tau on the grid such that P(probe < tau | good) <= max_false_drop with the confidence asked for.

    Fixed-sequence testing: tau rises and stops at the first bound that fails. With too few good documents it refuses,
    or, where config.allow_uncertified, gives the expected mode: rank floor((n + 1) * eps) of conformal risk control,
    as where the probe has not read them whole.

    Raises:
        DataError: too few good documents; the message says how many are needed.
    """
    n, needed = len(good_probe), labels_needed(config.max_false_drop, config.confidence)

    def threshold(tau: float | None, mode: Literal["certified", "expected"]) -> Threshold:
        errors = int((good_probe < tau).sum()) if tau is not None else 0
        upper = binomial_upper(errors, n, config.confidence) if mode == "certified" else None
        exits = float((unlabelled_probe < tau).mean()) if tau is not None else 0.0
        return Threshold(tau, mode, n, errors, upper, exits)

    if n < needed and not config.allow_uncertified:
        raise DataError(
            f"calibration: {n} good documents in split certify, drawn evenly by weight, and {needed} are needed to "
            f"certify at most {config.max_false_drop:.1%} false drops at {config.confidence:.0%}: {needed - n} more, "
            f"so grade more, raise max_false_drop, or set allow_uncertified (stamped as mode expected)"
        )
    if n < needed or not whole:
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
    rank, the pool's, certified over them together (its bound holds for their mix), and tau_drop is each source's own
    quantile at that rank: an oracle that likes one source less would else forbid every exit. Where they have too few
    good labels together, the sources that have fewest join them. A source without a label has no exits. Where
    config.bounds is "bonferroni" bounds hold all at once, each at confidence 1 - (1 - confidence) / certificates.

    Every bound counts documents that had the same chance to be graded (Labelled.evenly()).

    tau_keep, the rate it reaches and score deciles (for drift) stand per source. Where a source's tau_keep is below
    tau_drop, that source's tau_drop is lowered to it, which can only lower false drops. The group ALL, for text whose
    source is not told, has the least tau_drop of all sources, so that their bounds hold for it too.

    Raises:
        DataError: too few good labels (see drop_threshold), none of a source that is scored, or fewer than
            MINIMUM_UNLABELLED unlabelled documents.
    """
    labelled = _take(labelled, np.isfinite(labelled.oracle) & np.isfinite(labelled.probe))
    sample = _take(unlabelled, np.isfinite(unlabelled.probe))
    if len(sample) < MINIMUM_UNLABELLED:
        raise DataError(f"calibration: {len(sample)} scored unlabelled documents, {MINIMUM_UNLABELLED} needed")
    if config.keep_by == "tokens" and sample.tokens is None:
        raise DataError("calibration: keep_by is tokens, and the unlabelled documents have no column tokens")
    names = np.asarray(sample.source, dtype=object)
    reference = _reference(sample, names)
    certified = _certifiable(labelled, sorted({str(name) for name in names}), reference, config)
    strict = replace(config, confidence=_confidence(certified.tests, config))
    pool: Threshold | None = None
    if certified.pool or not certified.own:
        good, loose = certified.pooled, np.isin(names, list(certified.pool))
        pool = drop_threshold(
            _ranks(good.probe, np.asarray(good.source, dtype=object), reference),
            _ranks(sample.probe[loose], names[loose], reference) if loose.any() else np.linspace(0, 1, 2),
            strict, labelled.whole,
        )  # fmt: skip
    own = {source: drop_threshold(good.probe, reference[source], strict) for source, good in certified.own.items()}
    graded = np.asarray(labelled.source, dtype=object)
    groups: dict[str, dict[str, Any]] = {}
    for source in sorted({str(name) for name in names}):
        rows = names == source if source in reference else np.ones(len(sample), dtype=bool)
        tau_drop, good_probe = None, np.zeros(0)
        if source in own:
            tau_drop, good_probe = own[source].tau_drop, certified.own[source].probe
        elif pool is not None and source in certified.pool:
            good_probe = certified.pooled.probe[np.asarray(certified.pooled.source, dtype=object) == source]
            tau_drop = None if pool.tau_drop is None else float(np.quantile(sample.probe[rows], pool.tau_drop))
        group = _group(_take(sample, rows), config.rate(source), tau_drop, strict)
        groups[source] = group | {
            "n": int((names == source).sum()),
            "graded": int((graded == source).sum()),
            "parent": None if source in reference else ALL,
            "drop_parent": ALL if source in certified.pool else None,
            "oracle": _false_drops(good_probe, group["tau_drop"], strict.confidence),
        }
    certificates = [*own.values(), *([pool] if pool else [])]
    bounds = [one.fd_upper for one in certificates if one.fd_upper is not None]
    together = _together(groups, labelled, sample, config, strict)
    return {
        "format": FORMAT,
        "mode": pool.mode if pool else "certified",
        "whole": labelled.whole,
        "max_false_drop": config.max_false_drop,
        "confidence": config.confidence,
        "bounds": config.bounds,
        "certificates": certified.tests,
        "keep_by": config.keep_by,
        "n_labelled": len(labelled),
        # The poorest certificate: the fewest good documents of any, the greatest bound of any.
        "n_good": min(one.n_good for one in certificates),
        "fd_upper": max(bounds) if bounds else None,
        "pool": None if pool is None else {
            "sources": sorted(certified.pool), "n_good": pool.n_good, "errors": pool.errors, "fd_upper": pool.fd_upper,
            "rank": pool.tau_drop,
        },
        "exit_rate": together["exit_rate"],
        "scores_sha": _sha(labelled.oracle, labelled.probe, sample.probe, sample.judge),
        "groups": {ALL: together, **groups},
    }  # fmt: skip


@dataclass(frozen=True)
class _Certifiable:
    """Good documents of each source that has a certificate of its own, and of the sources of the pool together."""

    own: dict[str, Labelled]
    pool: frozenset[str] = frozenset()
    pooled: Labelled = field(default_factory=lambda: Labelled([], np.zeros(0), np.zeros(0)))

    @property
    def tests(self) -> int:
        return max(len(self.own) + bool(self.pool), 1)


def _certifiable(
    labelled: Labelled, scored: Sequence[str], reference: Mapping[str, np.ndarray], config: CalibrationConfig
) -> _Certifiable:
    """Which sources have a certificate of their own; decided by counts of good documents alone."""
    graded = set(labelled.source) & set(scored)
    if len(labelled) and not graded:
        raise DataError(
            f"calibration: the labels are of {', '.join(sorted(set(labelled.source)))}, and what is to be scored is of "
            f"{', '.join(scored)}; give unlabelled documents of the sources that were graded"
        )
    alone = graded & set(reference) if config.certify == "sources" and labelled.whole else set()
    good = {source: _good(labelled, {source}, config) for source in sorted(alone)}
    own = sorted(good, key=lambda source: -len(good[source]))
    while True:
        pool = frozenset(graded - set(own))
        found = _Certifiable({source: good[source] for source in own}, pool, _good(labelled, pool, config))
        needed = labels_needed(config.max_false_drop, _confidence(found.tests, config))
        counts = [*(len(one) for one in found.own.values()), *([len(found.pooled)] if pool else [])]
        if not own or min(counts) >= needed:
            return found
        own.pop()  # the poorest joins the others: it lacks labels, or they do


def _good(labelled: Labelled, sources: Collection[str], config: CalibrationConfig) -> Labelled:
    """What the oracle would keep of an even draw from these sources."""
    drawn = labelled.evenly(sources)
    return _take(drawn, good_documents(drawn.oracle, drawn.source, config))


def _confidence(tests: int, config: CalibrationConfig) -> float:
    return 1 - (1 - config.confidence) / tests if config.bounds == "bonferroni" else config.confidence


def _together(
    groups: Mapping[str, Mapping[str, Any]], labelled: Labelled, sample: Unlabelled, config: CalibrationConfig,
    strict: CalibrationConfig,
) -> dict[str, Any]:  # fmt: skip
    """The group ALL: its thresholds are for text whose source is not told, its counts those of each source at its own
    tau_drop."""
    taus = [group["tau_drop"] for group in groups.values()]
    group = _group(sample, config.keep_default, None if None in taus else min(taus), strict)
    good = _good(labelled, groups, config)
    errors = sum(
        _false_drops(np.array([score]), groups[source]["tau_drop"], strict.confidence)["errors"]
        for score, source in zip(good.probe, good.source)
    )
    judged = [one["judge"] for one in groups.values() if one["judge"] is not None]
    return group | {
        "n": len(sample),
        "graded": len(labelled),
        "parent": None,
        "drop_parent": None,
        "exit_rate": sum(one["n"] * one["exit_rate"] for one in groups.values()) / len(sample),
        "oracle": _share(errors, len(good), strict.confidence),
        "judge": _share(sum(one["errors"] for one in judged), sum(one["n"] for one in judged), strict.confidence)
        if judged else None,
    }  # fmt: skip


def _take(documents: Documents, rows: np.ndarray) -> Documents:
    """Some of the documents: row numbers, or a mask."""
    picked = {
        name: np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object)[rows]
        for name, values in vars(documents).items()
        if isinstance(values, (np.ndarray, Sequence))
    }
    return replace(documents, **picked)


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
        # What drift compares: of a partition's documents only what was read of them is known.
        "documents_kept": float(np.mean(np.greater(quality, tau_keep) + ties * np.equal(quality, tau_keep))),
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
