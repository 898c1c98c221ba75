"""How far an oracle agrees with itself: the same documents graded again, and what more grades would buy.

One grade's reliability bounds what any head can reach: its correlation with the grades is at most the root of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.audit.agreement import FLAT, Estimate, estimate
from gristmill.scorer.rubric import Rubric


def reliability(scores_NK: np.ndarray, times: Sequence[int] = (1, 2, 3, 5), seed: int = 0) -> dict[str, Any]:
    """Test-retest reliability of scores [N, K], K gradings of each document, NaN where one failed.

    r: of one grade, ICC(1,1) with its 95% interval; r_k: of the mean of k grades; ceiling: sqrt(r), the correlation
    that a perfect head would have with single grades; spread: standard deviation of one document's grades.
    """
    usable = np.isfinite(scores_NK).sum(1) >= 2
    scores_NK = scores_NK[usable]
    n = len(scores_NK)
    r: Estimate = estimate(lambda rows: intraclass_correlation(scores_NK[rows]), n, seed)
    own = max(r["value"], 0.0) if r["value"] is not None else None
    spread = None if n == 0 else math.sqrt(float(_squares(scores_NK[None])[1][0]))
    return {
        "n": n,
        "r": r,
        "r_k": {str(k): None if own is None else spearman_brown(own, k) for k in times},
        "ceiling": None if own is None else math.sqrt(own),
        "spread": spread,
    }


def intraclass_correlation(scores_RNK: np.ndarray) -> np.ndarray:
    """ICC(1,1), one-way random effects (Shrout and Fleiss 1979), [R]; NaN is a missing grade.

    With unequal numbers of grades k is their n0 (Snedecor and Cochran): the mean less its variance over the total.
    """
    between_R, within_R, k_R = _squares(scores_RNK)
    total_R = between_R + (k_R - 1) * within_R
    return np.where(total_R > FLAT, (between_R - within_R) / total_R, np.nan)


def spearman_brown(r: float, k: float) -> float:
    """Reliability of the mean of k grades from that of one: k r / (1 + (k - 1) r)."""
    return k * r / (1 + (k - 1) * r)


def mean_of_repeats(labels: pa.Table, rubrics: Sequence[Rubric]) -> pa.Table:
    """One row for each id, in the order of first gradings: the first row with the mean grades of all its repeats.

    rubrics: those that the labels were made with; column rubric_sha says which a row is of, where there are several.
    A dimension of which every grade failed stays null; quality follows from the means. Adds `repeats` (int32), the
    number of gradings. Do this before anything counts documents: three grades of one are no three to a bound.

    Raises:
        DataError: no column id, or none of a dimension.
    """
    names = list(dict.fromkeys(name for rubric in rubrics for name in rubric.names))
    for name in ("id", *names):
        if name not in labels.column_names:
            raise DataError(f"labels: no column {name!r}; columns are {', '.join(labels.column_names)}")
    rows: dict[str, list[int]] = {}
    for row, identifier in enumerate(labels["id"].to_pylist()):
        rows.setdefault(identifier, []).append(row)
    table = labels.take(pa.array([own[0] for own in rows.values()], pa.int64()))
    scores_ND = np.stack([floats(labels, name) for name in names], axis=1)
    means_ND = np.array([_means(scores_ND[own]) for own in rows.values()]).reshape(len(rows), len(names))
    quality_N = np.full(len(rows), np.nan)
    statuses: list[Any] = table["status"].to_pylist() if "status" in table.column_names else [None] * len(rows)
    shas = table["rubric_sha"].to_pylist() if len(rubrics) > 1 else [rubrics[0].sha] * len(rows)
    for rubric in rubrics:
        own = np.flatnonzero([sha == rubric.sha for sha in shas])
        own_ND = means_ND[own][:, [names.index(name) for name in rubric.names]]
        quality_N[own] = rubric.quality(own_ND)
        for row, scores_D in zip(own, own_ND):
            statuses[row] = "ok" if np.isfinite(scores_D).all() else statuses[row]
    for name, values in [*zip(names, means_ND.T), ("quality", quality_N)]:
        table = _replaced(table, name, pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values)))
    table = _replaced(table, "status", pa.array(statuses, pa.string()))
    return _replaced(table, "repeats", pa.array([len(own) for own in rows.values()], pa.int32()))


def floats(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where it is null."""
    return np.array([math.nan if value is None else value for value in table[name].to_pylist()], np.float64)


def repeats_matrix(labels: pa.Table, name: str) -> np.ndarray:
    """The grades [N, K] of the documents that were graded more than once, by column `id`; NaN where one failed."""
    values: dict[str, list[float]] = {}
    for identifier, value in zip(labels["id"].to_pylist(), floats(labels, name)):
        values.setdefault(identifier, []).append(value)
    again = [own for own in values.values() if len(own) > 1]
    width = max((len(own) for own in again), default=0)
    return np.array([own + [math.nan] * (width - len(own)) for own in again], np.float64).reshape(len(again), width)


def _squares(x_RNK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squares between and within documents, and the effective number of grades of each."""
    known_RNK = np.isfinite(x_RNK)
    k_RN = known_RNK.sum(2)
    n, total_R = x_RNK.shape[1], k_RN.sum(1)
    x_RNK = np.where(known_RNK, x_RNK, 0.0)
    own_RN = x_RNK.sum(2) / k_RN
    grand_R = x_RNK.sum((1, 2)) / total_R
    between_R = (k_RN * np.square(own_RN - grand_R[:, None])).sum(1)
    within_R = (np.square(x_RNK - own_RN[:, :, None]) * known_RNK).sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        effective_R = (total_R - np.square(k_RN).sum(1) / total_R) / (n - 1)
        return between_R / (n - 1), within_R / (total_R - n), effective_R


def _means(scores_KD: np.ndarray) -> np.ndarray:
    known_KD = np.isfinite(scores_KD)
    with np.errstate(invalid="ignore"):
        return np.where(known_KD, scores_KD, 0.0).sum(0) / known_KD.sum(0)


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name not in table.column_names:
        return table.append_column(name, values)
    return table.set_column(table.schema.get_field_index(name), name, values)
