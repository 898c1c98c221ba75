"""tau_drop holds its bound on fresh data or is refused; tau_keep reaches its rate; metrics see through empty heads."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.base.errors import DataError
from gristmill.scorer.heads.calibration import (
    ALL,
    CalibrationConfig,
    Labelled,
    Unlabelled,
    binomial_upper,
    calibrate,
    drop_threshold,
    labels_needed,
)
from gristmill.scorer.heads.metrics import baselines, evaluate, quadratic_kappa, spearman, within_source
from gristmill.scorer.rubric import rubric_from_mapping

RUBRIC = rubric_from_mapping(
    {"name": "r", "dimensions": [{"name": "clarity", "question": "?", "anchors": {"0": "no", "4": "yes"}}]}, "test"
)


def world(n: int, seed: int, judge: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The oracle's quality and what probe and judge say of it."""
    generator = np.random.default_rng(seed)
    oracle = generator.beta(2, 2, n)
    probe = np.clip(oracle + generator.normal(0, 0.15, n), 0, 1)
    return oracle, probe, np.clip(oracle + generator.normal(0, 0.08, n), 0, 1) if judge else None


def test_the_needed_numbers_are_those_of_the_exact_binomial() -> None:
    # The published table: 0 errors at 95%.
    assert [labels_needed(e, 0.95) for e in (0.005, 0.01, 0.02, 0.05)] == [598, 299, 149, 59]
    assert binomial_upper(0, 59, 0.95) <= 0.05 < binomial_upper(0, 58, 0.95)
    assert binomial_upper(10, 1693, 0.95) == pytest.approx(0.01, abs=1e-5)
    assert binomial_upper(5, 5, 0.95) == 1.0


def test_too_few_labels_are_refused_with_the_number_that_is_missing() -> None:
    _, probe, _ = world(1000, 0)
    with pytest.raises(DataError, match=r"40 good documents.*59 are needed.*19 more"):
        drop_threshold(probe[:40], probe, CalibrationConfig())
    stamped = drop_threshold(probe[:40], probe, CalibrationConfig(allow_uncertified=True))
    assert stamped.mode == "expected" and stamped.fd_upper is None
    assert stamped.tau_drop is not None and stamped.errors <= 0.05 * 41
    assert drop_threshold(probe[:10], probe, CalibrationConfig(allow_uncertified=True)).tau_drop is None


def test_certified_bound_holds_over_resplits_and_still_drops_something() -> None:
    config = CalibrationConfig(max_false_drop=0.05, confidence=0.95)
    oracle, probe, _ = world(60_000, 1)
    good = probe[oracle >= np.quantile(oracle, 0.7)]
    generator = np.random.default_rng(2)
    broken, exits = 0, []
    for _ in range(200):
        threshold = drop_threshold(generator.choice(good, 250, replace=False), generator.choice(probe, 400), config)
        assert threshold.mode == "certified" and threshold.tau_drop is not None
        broken += float((good < threshold.tau_drop).mean()) > config.max_false_drop
        exits.append(threshold.exit_rate)
    # At most 5% of 200 may break; 18 is the 99.7% quantile of that binomial. An empirical 5% quantile breaks in ~half.
    assert broken <= 18
    assert np.mean(exits) > 0.3


@pytest.mark.parametrize("with_judge", [False, True])
def test_keep_rate_is_reached_on_fresh_documents_per_source(with_judge: bool) -> None:
    config = CalibrationConfig(keep={"code": 0.5}, keep_default=0.3)
    oracle, probe, _ = world(2000, 3)
    _, loose_probe, loose_judge = world(20_000, 4, with_judge)
    sources = ["web", "code"] * 10_000
    result = calibrate(Labelled(["web"] * 2000, oracle, probe), Unlabelled(sources, loose_probe, loose_judge), config)
    _, fresh_probe, fresh_judge = world(20_000, 5, with_judge)
    for source, rate in (("web", 0.3), ("code", 0.5)):
        group = result["groups"][source]
        assert group["tau_drop"] <= group["tau_keep"]
        final = (
            fresh_probe if fresh_judge is None else np.where(fresh_probe >= group["tau_drop"], fresh_judge, fresh_probe)
        )
        assert (final >= group["tau_keep"]).mean() == pytest.approx(rate, abs=0.02)
    assert result["mode"] == "certified" and result["fd_upper"] <= 0.05


def test_a_source_with_few_documents_inherits_and_says_so() -> None:
    oracle, probe, _ = world(1000, 6)
    sources = ["web"] * 990 + ["rare"] * 10
    result = calibrate(Labelled(["web"] * 1000, oracle, probe), Unlabelled(sources, probe, None), CalibrationConfig())
    assert result["groups"]["rare"]["parent"] == ALL and result["groups"]["rare"]["n"] == 10
    assert result["groups"]["web"]["parent"] is None


def test_drop_threshold_never_passes_keep_threshold_even_for_a_useless_judge() -> None:
    generator = np.random.default_rng(7)
    oracle, probe, _ = world(3000, 7)
    judge = generator.uniform(0, 0.2, 3000)  # on another level than the probe
    config = CalibrationConfig(keep_default=0.9)
    result = calibrate(Labelled(["a"] * 3000, oracle, probe), Unlabelled(["a"] * 3000, probe, judge), config)
    for group in result["groups"].values():
        assert group["tau_drop"] is None or group["tau_drop"] <= group["tau_keep"]
        assert group["keep_rate"] == pytest.approx(0.9, abs=0.01)


def test_metrics_match_hand_computed_values() -> None:
    truth = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert spearman(truth, truth**3) == pytest.approx(1.0)
    assert spearman(truth, -truth) == pytest.approx(-1.0)
    assert spearman(truth, np.ones(5)) is None
    assert quadratic_kappa(truth, truth, 0, 4) == pytest.approx(1.0)
    assert quadratic_kappa(truth, truth[::-1].copy(), 0, 4) == pytest.approx(-1.0)


def test_source_identity_alone_shows_as_a_baseline_and_not_within_sources() -> None:
    generator = np.random.default_rng(8)
    sources = ["good"] * 200 + ["bad"] * 200
    level = np.where(np.arange(400) < 200, 3.0, 1.0)
    truth_ND = (level + generator.normal(0, 0.5, 400))[:, None]
    lengths = [100] * 400
    known = baselines(truth_ND, sources, lengths, sources, lengths)
    report = evaluate(RUBRIC, truth_ND, {"domain": (level + generator.normal(0, 0.01, 400))[:, None], **known}, sources)
    domain = report["predictors"]["domain"]["quality"]
    assert domain["spearman"] > 0.7 and abs(domain["within_source"]["mean"]) < 0.2
    assert report["predictors"]["source mean"]["quality"]["spearman"] > 0.7
    assert report["predictors"]["constant"]["quality"]["spearman"] is None
    low, high = domain["spearman_ci95"]
    assert low < domain["spearman"] < high
    assert within_source(truth_ND[:, 0], truth_ND[:, 0], sources)["worst"] == pytest.approx(1.0)
