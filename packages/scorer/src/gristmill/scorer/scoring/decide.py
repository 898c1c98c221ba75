"""From stored scores to decisions and to what the exits cost, without a model: thresholds move, scores stay.

Shapes: N documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.heads.calibration import ALL, binomial_upper, keeps
from gristmill.scorer.heads.labels import floats

DROP, BAND, KEEP = "drop", "band", "keep"
Calibrations = Mapping[str, dict[str, Any]]
"""calibration.json by the name of the rubric."""


def decide(scores: pa.Table, calibrations: Calibrations) -> pa.Array:
    """drop (the probe's score is below tau_drop), keep (the quality reaches tau_keep), band (neither), or null where
    there is no score.

    scores: columns id, source, quality, probe, and rubric where there are several calibrations.

    Raises:
        DataError: a column is missing, or a rubric that none of the calibrations is for.
    """
    quality_N, probe_N = _column(scores, "quality"), _column(scores, "probe")
    ids = [str(one) for one in scores["id"].to_pylist()]
    decisions_N = np.full(len(scores), None, dtype=object)
    for group, rows in _groups(scores, calibrations):
        keep_N = keeps(quality_N[rows], [ids[i] for i in rows], group)
        drop_N = probe_N[rows] < (-np.inf if group["tau_drop"] is None else group["tau_drop"])
        decisions_N[rows] = np.where(drop_N, DROP, np.where(keep_N, KEEP, BAND))
    decisions_N[~np.isfinite(quality_N)] = None
    return pa.array(decisions_N, pa.string())


def live_false_drops(scores: pa.Table, calibrations: Calibrations, confidence: float = 0.95) -> dict[str, Any] | None:
    """What exits cost on these documents, by the exits that the judge saw all the same: of what the judge would keep,
    the share that exits, with its upper bound at `confidence`. None where no exit was audited.

    Keys: exits, audited, wrong (of those, what the judge would keep), false_drop, upper.
    """
    if "shadow" not in scores.column_names:
        return None
    exit_N, shadow_N = (_flags(scores, name) for name in ("exit", "shadow"))
    judge_N = _column(scores, "judge")
    would_N = np.zeros(len(scores), bool)
    for group, rows in _groups(scores, calibrations):
        would_N[rows] = judge_N[rows] >= group["tau_keep"]
    exits, audited = int(exit_N.sum()), int(shadow_N.sum())
    if not audited:
        return None
    wrong, kept = int((would_N & shadow_N).sum()), int((would_N & ~exit_N).sum())

    def share(rate: float) -> float:
        lost = rate * exits
        return lost / (lost + kept) if lost + kept else 0.0

    return {
        "exits": exits, "audited": audited, "wrong": wrong, "false_drop": share(wrong / audited),
        "upper": share(binomial_upper(wrong, audited, confidence)),
    }  # fmt: skip


def _groups(scores: pa.Table, calibrations: Calibrations) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The thresholds of each rubric and source, and the rows that they are for."""
    sources = np.array([str(name) for name in scores["source"].to_pylist()], dtype=object)
    several = "rubric" in scores.column_names
    rubrics = scores["rubric"].to_pylist() if several else [next(iter(calibrations))] * len(scores)
    names = np.array(rubrics, dtype=object)
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for rubric in sorted({name for name in rubrics if name is not None}):
        if rubric not in calibrations:
            raise DataError(
                f"scores: of rubric {rubric!r}, and there are thresholds for {', '.join(calibrations)}; give its heads "
                f"too, calibrated"
            )
        groups = calibrations[rubric]["groups"]
        for source in sorted(set(sources[names == rubric])):
            rows = np.flatnonzero((names == rubric) & (sources == source))
            found.append((groups.get(source, groups[ALL]), rows))
    return found


def _column(scores: pa.Table, name: str) -> np.ndarray:
    if name not in scores.column_names:
        raise DataError(f"scores: no column {name!r}; give a file that `scorer score` wrote")
    return floats(scores, name)


def _flags(scores: pa.Table, name: str) -> np.ndarray:
    values: Sequence[bool | None] = scores[name].to_pylist()
    return np.array([bool(value) for value in values], bool)
