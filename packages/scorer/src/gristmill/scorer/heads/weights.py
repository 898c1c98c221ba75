"""What each dimension weighs in the quality: what the rubric says, or what the oracle's own overall grade says.

Weights regressed on the mean of the same dimensions would only give that mean back, so without such a grade there is
nothing to fit. Shapes: N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from gristmill.base.errors import DataError
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.rubric import Rubric

DOCUMENTS_PER_WEIGHT = 10


def fit_weights(labels: Labels, rubric: Rubric) -> dict[str, float]:
    """Weights by dimension, none negative, sum 1: least squares of `overall` on the goodness of the dimensions.

    Only the fit split is read, so that what is certified on other splits stays certified.

    Raises:
        DataError: no column overall, too few documents that have it, or an overall grade that no dimension explains.
    """
    goodness_ND = np.stack([d.goodness(labels.scores_ND[:, i]) for i, d in enumerate(rubric.dimensions)], axis=1)
    usable_N = (labels.splits == "fit") & np.isfinite(labels.overall_N) & np.isfinite(goodness_ND).all(1)
    needed = DOCUMENTS_PER_WEIGHT * len(rubric.names)
    if usable_N.sum() < needed:
        raise DataError(
            f"labels: {int(usable_N.sum())} documents of split fit with a grade in column overall, {needed} needed to "
            f"fit {len(rubric.names)} weights; grade an overall dimension of its own, or set weights to rubric"
        )
    x_ND, y_N = goodness_ND[usable_N], labels.overall_N[usable_N]
    weights_D, _ = nnls(x_ND - x_ND.mean(0), y_N - y_N.mean())
    if not weights_D.sum() > 0:
        raise DataError("labels: column overall rises with none of the dimensions; set weights to rubric")
    return {name: float(weight) for name, weight in zip(rubric.names, weights_D / weights_D.sum())}


def weighted(rubric: Rubric, calibration: Mapping[str, Any] | None) -> Rubric:
    """The rubric with the weights that a calibration fitted, if any. Its sha is another: grades keep theirs."""
    weights = (calibration or {}).get("weights")
    if not weights:
        return rubric
    return replace(rubric, dimensions=tuple(replace(d, weight=weights[d.name]) for d in rubric.dimensions))
