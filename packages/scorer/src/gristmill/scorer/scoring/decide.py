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
"""calibration.json by the identity of its heads (heads.files.identity()), which scores have in their column heads."""


def decide(scores: pa.Table, calibrations: Calibrations) -> pa.Array:
    """drop (the probe's score is below tau_drop), keep (the quality reaches tau_keep), band (neither), or null where
    there is no score.

    scores: columns id, source, quality, probe, exit and heads.

    Raises:
        DataError: a column is missing, other heads than those of the calibrations, or exits that these would have sent
            to the judge.
    """
    quality_N, probe_N = (floats(checked(scores, name), name) for name in ("quality", "probe"))
    exit_N = _flags(checked(scores, "exit"), "exit")
    ids = [str(one) for one in checked(scores, "id")["id"].to_pylist()]
    early = 0
    decisions_N = np.full(len(scores), None, dtype=object)
    for group, rows in _groups(scores, calibrations):
        keep_N = keeps(quality_N[rows], [ids[i] for i in rows], group)
        drop_N = probe_N[rows] < (-np.inf if group["tau_drop"] is None else group["tau_drop"])
        early += int((exit_N[rows] & ~drop_N).sum())
        decisions_N[rows] = np.where(drop_N, DROP, np.where(keep_N, KEEP, BAND))
    if early:
        raise DataError(
            f"scores: {early} documents exited early that these thresholds send to the judge, which never saw them; "
            f"score again with these heads"
        )
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
    judge_N = floats(checked(scores, "judge"), "judge")
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


def thresholds(calibration: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The group of a source. One that was not there at calibration has the tau_keep of all, and no exits: nothing is
    known of what they would cost there."""
    groups = calibration["groups"]
    return groups.get(source) or {**groups[ALL], "tau_drop": None}


def checked(scores: pa.Table, name: str) -> pa.Table:
    """Raises DataError where there is no column of that name."""
    if name not in scores.column_names:
        raise DataError(f"scores: no column {name!r}; give a file that `scorer score` wrote")
    return scores


def _groups(scores: pa.Table, calibrations: Calibrations) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The thresholds of each heads and source, and the rows that they are for."""
    sources = np.array([name or "" for name in checked(scores, "source")["source"].to_pylist()], dtype=object)
    heads = np.array(checked(scores, "heads")["heads"].to_pylist(), dtype=object)
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for name in sorted({name for name in heads if name is not None}):
        if name not in calibrations:
            raise DataError(
                f"scores: made with heads {name}, and there are thresholds for {', '.join(calibrations)}; give those "
                f"heads too, calibrated, or score again"
            )
        for source in sorted(set(sources[heads == name])):
            rows = np.flatnonzero((heads == name) & (sources == source))
            found.append((thresholds(calibrations[name], source), rows))
    return found


def _flags(scores: pa.Table, name: str) -> np.ndarray:
    values: Sequence[bool | None] = scores[name].to_pylist()
    return np.array([bool(value) for value in values], bool)
