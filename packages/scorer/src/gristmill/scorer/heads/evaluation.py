"""What train-heads prints and the card carries: heads and baselines alike, on documents that none was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import baselines, evaluate
from gristmill.scorer.rubric import Rubric

EVALUATED = ("select", "audit")


def evaluate_splits(
    labels: Labels, lengths_N: np.ndarray, predictions: Mapping[str, np.ndarray], rubric: Rubric, config: TrainConfig
) -> dict[str, Any]:
    """metrics["splits"]: for each of EVALUATED the metrics of the heads' predictions [N, D] and of baselines.

    lengths_N: tokens read of each document. Predictions are NaN where a head has none.
    """
    fit_N = labels.splits == "fit"
    fit = labels.take(fit_N)
    found: dict[str, Any] = {}
    for split in EVALUATED:
        rows = (labels.splits == split) & np.isfinite(predictions["probe"]).all(1)
        if not rows.any():
            continue
        own = labels.take(rows)
        known = baselines(fit.scores_ND, fit.sources, list(lengths_N[fit_N]), own.sources, list(lengths_N[rows]))
        heads = {name: predicted_ND[rows] for name, predicted_ND in predictions.items()}
        found[split] = evaluate(rubric, own.scores_ND, heads | known, own.sources, config.seed)
    return found
