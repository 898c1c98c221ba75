"""Where to read: taps compared on mean pools by ridge regression, out of fold, before any head is trained.

The last block is the wrong place and the best one differs by backbone, so no tap is written down anywhere: the judge
reads at the shallowest that orders documents as well as the best, the probe where its exits save most of the way there.
Shapes: N documents, K taps, W width, D dimensions, P penalties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.calibration import good_documents
from gristmill.scorer.heads.exits import expected_exit, saved, saved_full
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import ranks_within, spearman
from gristmill.scorer.heads.ridge import ridge
from gristmill.scorer.rubric import Rubric

CANDIDATES, DEPTH = 8, 0.75  # the best tap was at 0.60 to 0.67 of the depth where it was measured
FOLDS = 5
SLACK = 0.01  # Spearman that a shallower judge may lose
MINIMUM = 4 * FOLDS


@dataclass(frozen=True)
class Swept:
    """`report` is metrics["sweep"]: documents, folds, false_drop, probe, judge, and for each tap its numbers."""

    taps: tuple[int, int]
    report: dict[str, Any]


def candidates(layers: int) -> list[int]:
    """Taps spaced evenly over the lower part of the backbone."""
    return sorted({max(1, round(layers * DEPTH * i / CANDIDATES)) for i in range(1, CANDIDATES + 1)})


def sweep(
    pools_NKW: torch.Tensor, taps: Sequence[int], layers: int, labels: Labels, rubric: Rubric, config: TrainConfig
) -> Swept:
    """Choose both taps from documents' mean pools; those whose pools are not finite are left out.

    Where the configuration has no judge there is nothing to save, and both taps are the best one.

    Raises:
        DataError: too few documents of the splits fit and select have all their grades.
    """
    quality_N = rubric.quality(labels.scores_ND)
    finite_N = pools_NKW.flatten(1).isfinite().all(1).numpy()
    used_N = np.isin(labels.splits, ("fit", "select")) & np.isfinite(quality_N) & finite_N
    if used_N.sum() < MINIMUM:
        raise DataError(
            f"labels: {used_N.sum()} documents of fit and select have a grade on each dimension, {MINIMUM} are needed "
            "to choose taps; grade more, or name two taps"
        )
    where = np.flatnonzero(used_N)
    own, quality_N = labels.take(where), quality_N[where]
    good_N = good_documents(quality_N, own.sources, CalibrationConfig())
    folds_N = folds(own.groups)
    rows = []
    exits: list[float] = []
    for k, tap in enumerate(taps):
        predicted_N = out_of_fold(pools_NKW[:, k][where], own, folds_N, rubric)
        standing_N = ranks_within(predicted_N, own.sources)  # as tau_drop is a rank within each source
        _, exit_rate = expected_exit(standing_N, good_N, config.sweep_false_drop, own.weights_N)
        exits.append(exit_rate)
        rows.append({"tap": tap, "spearman": spearman(quality_N, predicted_N) or 0.0, "auc": _auc(predicted_N, good_N)})
    judge = next(row["tap"] for row in rows if row["spearman"] >= max(r["spearman"] for r in rows) - SLACK)
    probe, best = judge, 0.0
    for row, exit_rate in zip(rows, exits):
        if row["tap"] <= judge:
            spared = float(saved(exit_rate, row["tap"], judge))
            row |= {
                "exit_rate": exit_rate, "saved": spared,
                "saved_full": float(saved_full(exit_rate, row["tap"], judge, layers)),
            }  # fmt: skip
            if config.judge and spared > best:
                probe, best = row["tap"], spared
    report = {
        "documents": int(used_N.sum()), "folds": FOLDS, "layers": layers, "false_drop": config.sweep_false_drop,
        "probe": probe, "judge": judge, "taps": [_rounded(row) for row in rows],
    }  # fmt: skip
    return Swept((probe, judge), report)


def folds(groups: Sequence[str]) -> np.ndarray:
    """A fold for each document, int [N]: documents of a group share one, and folds are of like size.

    A group that is larger than a fold has its documents spread over all of them, as there is no other way.
    """
    sizes = Counter(groups)
    fold_of: dict[str, int] = {}
    filled = np.zeros(FOLDS)
    for group in sorted(sizes, key=lambda group: (-sizes[group], group)):
        if sizes[group] * FOLDS <= len(groups):
            fold_of[group] = int(filled.argmin())
            filled[fold_of[group]] += sizes[group]
        else:
            filled += sizes[group] / FOLDS
    return np.array([fold_of.get(group, i % FOLDS) for i, group in enumerate(groups)])


def out_of_fold(x_NW: torch.Tensor, labels: Labels, folds_N: np.ndarray, rubric: Rubric) -> np.ndarray:
    """Quality [N] of each document as predicted from the other folds, with the penalty that errs least over all."""
    scores_ND, weights_N = torch.from_numpy(labels.scores_ND), torch.from_numpy(labels.weights_N)
    predicted: list[torch.Tensor] = []
    order: list[np.ndarray] = []
    for fold in np.unique(folds_N):
        here, others = np.flatnonzero(folds_N == fold), np.flatnonzero(folds_N != fold)
        weight_PDW, bias_PD = ridge(x_NW[others], scores_ND[others], weights_N[others])
        predicted.append(torch.einsum("nw,pdw->pnd", x_NW[here].double(), weight_PDW) + bias_PD[:, None])
        order.append(here)
    back = np.argsort(np.concatenate(order))
    predicted_PND = torch.cat(predicted, dim=1)[:, back]
    spread_D = scores_ND.std(0).clamp(min=1e-9)
    errors_P = (((predicted_PND - scores_ND) / spread_D).square().mean(2) * weights_N).mean(1)
    return rubric.quality(predicted_PND[int(errors_P.argmin())].numpy())


def _auc(score_N: np.ndarray, good_N: np.ndarray) -> float | None:
    n_good, n_bad = int(good_N.sum()), int((~good_N).sum())
    if not n_good or not n_bad:
        return None
    return float((rankdata(score_N)[good_N].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
