"""Early exits: the curve over tau, the threshold of conformal risk control, and the compute that it spares."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gristmill.scorer.heads.exits import exit_curve, expected_exit, saved, saved_full


def _scores(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=n)
    return truth + generator.normal(size=n), truth > 0.5


def test_the_curve_counts_what_lies_below_each_tau():
    scores, good = _scores(500)
    curve = exit_curve(scores, good, points=20)
    assert np.all(np.diff(curve["tau"]) > 0)
    assert (curve["exit_rate"][0], curve["false_drop"][0]) == (0, 0)
    assert (curve["exit_rate"][-1], curve["false_drop"][-1]) == (1, 1)
    for tau, exits, lost in zip(curve["tau"], curve["exit_rate"], curve["false_drop"]):
        assert exits == pytest.approx((scores < tau).mean())
        assert lost == pytest.approx((scores[good] < tau).mean())


def test_a_weight_counts_like_that_many_documents():
    scores, good = _scores(80)
    weights = np.random.default_rng(1).integers(1, 5, 80)
    curve = exit_curve(scores, good, weights, points=15)
    for tau, exits, lost in zip(curve["tau"], curve["exit_rate"], curve["false_drop"]):
        assert exits == pytest.approx((np.repeat(scores, weights) < tau).mean())
        assert lost == pytest.approx((np.repeat(scores[good], weights[good]) < tau).mean())


@pytest.mark.parametrize("n", [39, 40, 60, 1000])
def test_the_expected_threshold_is_the_good_score_of_its_rank(n: int):
    scores, _ = _scores(n)
    good = np.ones(n, dtype=bool)
    rank = math.floor((n + 1) * 0.05)
    tau, exits = expected_exit(scores, good, 0.05)
    assert tau == np.sort(scores)[rank - 1]
    assert exits == (rank - 1) / n


def test_too_few_good_documents_let_nothing_exit():
    scores, good = _scores(30)
    assert expected_exit(scores, good, 0.05) == (-math.inf, 0.0)


def test_equal_scores_exit_together_or_not_at_all():
    scores = np.repeat([0.0, 1.0], [10, 90])
    assert expected_exit(scores, np.ones(100, dtype=bool), 0.05) == (0.0, 0.0)
    assert expected_exit(scores, np.ones(100, dtype=bool), 0.2) == (1.0, pytest.approx(0.1))


def test_weights_scale_out_of_the_expected_threshold():
    scores, good = _scores(400)
    assert expected_exit(scores, good, 0.05, np.full(400, 7.5)) == pytest.approx(expected_exit(scores, good, 0.05))


def test_the_expected_false_drop_is_within_its_bound_over_many_samples():
    lost = []
    for seed in range(300):
        scores, good = _scores(400, seed)
        tau, _ = expected_exit(scores, good, 0.05)
        fresh, fresh_good = _scores(2000, 10_000 + seed)
        lost.append((fresh[fresh_good] < tau).mean())
    assert np.mean(lost) <= 0.052


def test_compute_saved_against_the_judges_tap_and_against_the_whole_backbone():
    # The seed's own layout: 18 of 24 blocks, 60% exits spare 15% at most.
    assert saved(0.6, 18, 24) == pytest.approx(0.15)
    assert saved_full(0.6, 18, 24, 24) == pytest.approx(0.15)
    assert saved_full(0.0, 12, 20, 30) == pytest.approx(1 / 3)
    assert saved_full(1.0, 12, 20, 30) == pytest.approx(0.6)
    assert saved(np.array([0.0, 1.0]), 10, 20).tolist() == [0.0, 0.5]
