"""Whether scores are still distributed as when thresholds were set: a threshold is a quantile of a source that was.

A source has drifted where its population stability index is above LIMIT, or its keep rate is none that the calibrated
threshold gives, and chance alone would do so less than once in a thousand times: small partitions raise no alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import betabinom, chi2

from gristmill.base.errors import DataError
from gristmill.scorer.heads.calibration import keeps
from gristmill.scorer.heads.labels import floats

LIMIT = 0.2  # the customary bound of a population stability index, above which a model is fitted anew
CHANCE = 0.001
UNSEEN = "it was not there when thresholds were set"
MINIMUM = 50  # scored documents of a source, below which ten bins say nothing


@dataclass(frozen=True)
class Drift:
    """One source. psi, psi_limit, keep_rate and keep_range are None where the source could not be compared: `reason`.

    psi_limit: LIMIT, or what chance reaches with so few documents. keep_range: where the keep rate of so many documents
    lies, whose distribution has not changed.
    """

    source: str
    n: int
    psi: float | None = None
    psi_limit: float | None = None
    keep_rate: float | None = None
    keep_range: tuple[float, float] | None = None
    reason: str | None = None

    @property
    def drifted(self) -> bool:
        """Of a source that was not there at calibration no threshold is known to hold, which is as good as drift."""
        if self.reason == UNSEEN:
            return True
        if self.psi is None or self.psi_limit is None or self.keep_rate is None or self.keep_range is None:
            return False
        low, high = self.keep_range
        return self.psi > self.psi_limit or not low <= self.keep_rate <= high

    def __str__(self) -> str:
        head = f"{self.source or '(no source)'}: {self.n} documents"
        if self.psi is None or self.keep_range is None:
            return f"{head}, not compared: {self.reason}"
        low, high = self.keep_range
        return (
            f"{head}, population stability index {self.psi:.3f} (limit {self.psi_limit:.2f}), "
            f"{self.keep_rate:.1%} kept ({low:.1%} to {high:.1%} expected)"
        )


def check_drift(scores: pa.Table, calibration: Mapping[str, Any]) -> list[Drift]:
    """Each source of a score table against the deciles and the keep rate of its calibration.

    The keep rate is that of documents, whatever the thresholds were set by: of a document that was scored only what was
    read is known, not its size.

    scores: columns id, source and quality.

    Raises:
        DataError: a column is missing.
    """
    for name in ("id", "source", "quality"):
        if name not in scores.column_names:
            raise DataError(f"scores: no column {name!r} to check drift by; give what `scorer score` wrote")
    quality_N, ids = floats(scores, "quality"), np.asarray(scores["id"].to_pylist(), dtype=object)
    names = np.asarray([name or "" for name in scores["source"].to_pylist()], dtype=object)
    found: list[Drift] = []
    for source in sorted(set(names)):
        rows = (names == source) & np.isfinite(quality_N)
        group, n = calibration["groups"].get(source), int(rows.sum())
        if group is None:
            found.append(Drift(source, n, reason=UNSEEN))
        elif group["parent"] is not None:
            found.append(Drift(source, n, reason="the calibration had too few documents of it"))
        elif n < MINIMUM:
            found.append(Drift(source, n, reason=f"fewer than {MINIMUM} scores"))
        else:
            found.append(_compare(source, quality_N[rows], list(ids[rows]), group))
    return found


def stability_index(quality_N: np.ndarray, group: Mapping[str, Any]) -> tuple[float, int]:
    """Population stability index against the shares of documents between a group's deciles, and in how many bins.

    The sum over bins of (share - expected) log(share / expected); an empty bin counts half a document.
    """
    edges, first = np.unique(group["deciles"], return_index=True)
    expected = np.diff(np.concatenate([[0.0], np.asarray(group["at_or_below"])[first], [1.0]]))
    found = np.bincount(np.searchsorted(edges, quality_N, side="left"), minlength=len(expected))
    shares = np.maximum(found, 0.5) / len(quality_N)
    expected = np.maximum(expected, 0.5 / group["n"])
    return float(((shares - expected) * np.log(shares / expected)).sum()), len(expected)


def _compare(source: str, quality_N: np.ndarray, ids: list[str], group: Mapping[str, Any]) -> Drift:
    n, calibrated = len(quality_N), group["n_effective"]
    psi, bins = stability_index(quality_N, group)
    # Under no drift the index times n m / (n + m) is about chi-squared.
    by_chance = float(chi2.ppf(1 - CHANCE, bins - 1)) * (1 / n + 1 / group["n"])
    rate = float(keeps(quality_N, ids, group).mean())
    # The share above the k-th greatest of m is Beta(k, m + 1 - k); of n new documents so many are above it.
    k = min(max(group["documents_kept"] * calibrated, 1), calibrated)
    low, high = (betabinom.ppf(q, n, k, calibrated + 1 - k) / n for q in (CHANCE / 2, 1 - CHANCE / 2))
    return Drift(source, n, psi, max(LIMIT, by_chance), rate, (float(low), float(high)))
