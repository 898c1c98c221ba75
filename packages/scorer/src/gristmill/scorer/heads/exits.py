"""What an early exit costs and spares: a document whose probe score is below tau never reaches the judge.

Both rates are functions of tau alone, so a curve over tau says all that a probe can offer before any promise is made;
promises with a confidence are calibration's. Shapes: N documents, P points of a curve.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def exit_curve(
    score_N: np.ndarray, good_N: np.ndarray, weights_N: np.ndarray | None = None, points: int = 60
) -> dict[str, Any]:
    """exit_rate and false_drop over tau, as arrays [P] of the keys "tau", "exit_rate" and "false_drop".

    tau runs over the quantiles of the scores from the least, where nothing exits, to just above the greatest, where all
    do; equal quantiles count once. exit_rate: share of the documents with a score below tau. false_drop: that share of
    the good ones. weights_N: what each document stands for; all alike without.

    Raises:
        ValueError: no document, or none that is good.
    """
    weights_N = np.ones(len(score_N)) if weights_N is None else weights_N
    quantiles = np.quantile(score_N, np.linspace(0, 1, points))
    tau_P = np.append(np.unique(quantiles), np.nextafter(score_N.max(), np.inf))
    return {
        "tau": tau_P,
        "exit_rate": _share_below(score_N, weights_N, tau_P),
        "false_drop": _share_below(score_N[good_N], weights_N[good_N], tau_P),
    }


def expected_exit(
    score_N: np.ndarray, good_N: np.ndarray, max_false_drop: float, weights_N: np.ndarray | None = None
) -> tuple[float, float]:
    """The largest tau that loses at most `max_false_drop` of the good documents in expectation, and its exit rate.

    Conformal risk control (Angelopoulos et al. 2022): of n good documents at most floor((n + 1) max_false_drop) - 1 lie
    below tau. Where documents have weights, a further one as heavy as the heaviest must still fit. tau is a good
    document's score, or -inf (and the rate 0) where too few are good to lose any.

    Raises:
        ValueError: no document, or none that is good.
    """
    weights_N = np.ones(len(score_N)) if weights_N is None else weights_N
    order = np.argsort(score_N[good_N], kind="stable")
    good, heavy = score_N[good_N][order], weights_N[good_N][order]
    budget = max_false_drop * (heavy.sum() + heavy.max()) - heavy.max()
    # Weight below each good score: that of all good documents before the first of its equals.
    below = np.append(0.0, np.cumsum(heavy))[np.searchsorted(good, good, side="left")]
    affordable = int(np.searchsorted(below, budget + 1e-9 * heavy.sum(), side="right"))
    if affordable == 0:
        return -math.inf, 0.0
    tau = float(good[affordable - 1])
    return tau, float(_share_below(score_N, weights_N, np.array([tau]))[0])


def saved(exit_rate: float | np.ndarray, k: int, J: int) -> Any:
    """Share of the compute spared, of running every document to the judge's tap J: probe at k, exits stay there."""
    return exit_rate * (1 - k / J)


def saved_full(exit_rate: float | np.ndarray, k: int, J: int, K: int) -> Any:
    """The same of running all K blocks of the backbone for every document; blocks above J are never run."""
    return 1 - (k + (1 - exit_rate) * (J - k)) / K


def _share_below(score_N: np.ndarray, weights_N: np.ndarray, tau_P: np.ndarray) -> np.ndarray:
    order = np.argsort(score_N, kind="stable")
    heap = np.append(0.0, np.cumsum(weights_N[order]))
    return heap[np.searchsorted(score_N[order], tau_P, side="left")] / heap[-1]
