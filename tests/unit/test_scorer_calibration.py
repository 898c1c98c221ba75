"""tau_drop holds its bound on fresh data or is refused; tau_keep reaches its rate and says how surely."""

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
    good_documents,
    keeps,
    labels_needed,
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
@pytest.mark.parametrize("by", ["documents", "tokens"])
def test_keep_rate_is_reached_on_fresh_documents_per_source(with_judge: bool, by: str) -> None:
    config = CalibrationConfig(keep={"code": 0.5}, keep_default=0.3, keep_by=by)  # pyright: ignore[reportArgumentType]
    oracle, probe, _ = world(2000, 3)
    _, loose_probe, loose_judge = world(20_000, 4, with_judge)
    sources, ids = np.array(["web", "code"] * 10_000), [f"d{i}" for i in range(20_000)]
    sizes = np.exp(np.random.default_rng(9).normal(6, 1, 20_000))
    loose = Unlabelled(list(sources), loose_probe, loose_judge, ids, sizes)
    result = calibrate(Labelled(list(sources[:2000]), oracle, probe), loose, config)
    _, fresh_probe, fresh_judge = world(20_000, 5, with_judge)
    for source, rate in (("web", 0.3), ("code", 0.5)):
        group = result["groups"][source]
        assert group["tau_drop"] <= group["tau_keep"]
        final = (
            fresh_probe if fresh_judge is None else np.where(fresh_probe >= group["tau_drop"], fresh_judge, fresh_probe)
        )
        # Quality and length are independent here, so that both ways of counting must reach the rate.
        assert keeps(final, ids, group).mean() == pytest.approx(rate, abs=0.015 if by == "documents" else 0.03)
        low, high = group["keep_ci95"]
        assert low < rate < high and (high - low < 0.025 if by == "documents" else high - low > 0.025)
    assert result["mode"] == "certified" and result["fd_upper"] <= 0.05


def test_the_interval_of_the_keep_rate_covers_the_rate_that_the_threshold_has() -> None:
    config, rate = CalibrationConfig(keep_default=0.3), 0.3
    oracle, probe, _ = world(2000, 10)
    everything = np.sort(probe)
    covered = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).choice(probe, 150)
        group = calibrate(Labelled(["a"] * 2000, oracle, probe), Unlabelled(["a"] * 150, sample, None), config)
        low, high = group["groups"]["a"]["keep_ci95"]
        covered += low <= (everything >= group["groups"]["a"]["tau_keep"]).mean() <= high
    assert rate == group["groups"]["a"]["target"]
    assert covered >= 180  # 95% of 200, less three standard deviations


def test_equal_scores_are_kept_by_the_hash_of_their_ids_so_that_the_rate_is_met() -> None:
    quality = np.repeat([0.2, 0.5, 0.9], [3000, 6000, 1000])
    oracle, probe, _ = world(1000, 11)
    ids = [f"d{i}" for i in range(10_000)]
    loose = Unlabelled(["a"] * 10_000, quality, None, ids)
    result = calibrate(Labelled(["a"] * 1000, oracle, probe), loose, CalibrationConfig(keep_default=0.3))
    group = result["groups"]["a"]
    assert group["tau_keep"] == 0.5 and group["ties"] == pytest.approx(1 / 3)
    kept = keeps(quality, ids, group)
    assert kept.mean() == pytest.approx(0.3, abs=0.015) and group["keep_rate"] == kept.mean()
    shuffled = np.random.default_rng(0).permutation(10_000)
    assert np.array_equal(keeps(quality[shuffled], [ids[i] for i in shuffled], group), kept[shuffled])


def test_a_source_with_enough_good_labels_has_a_certificate_of_its_own_and_others_say_whose_they_use() -> None:
    oracle, probe, _ = world(1300, 12)
    sources = ["web"] * 1000 + ["wiki"] * 150 + ["news"] * 150  # 300, 45 and 45 good documents; 59 are needed
    _, loose, _ = world(1200, 13)
    sample = Unlabelled(["web"] * 400 + ["wiki"] * 400 + ["news"] * 400, loose, None)
    result = calibrate(Labelled(sources, oracle, probe), sample, CalibrationConfig())
    groups, pool = result["groups"], result["pool"]
    assert (
        groups["web"]["drop_parent"] is None and groups["wiki"]["drop_parent"] == groups["news"]["drop_parent"] == ALL
    )
    assert groups["web"]["oracle"]["upper"] <= 0.05 < groups["wiki"]["oracle"]["upper"]
    assert groups[ALL]["oracle"]["errors"] == sum(groups[name]["oracle"]["errors"] for name in ("web", "wiki", "news"))
    assert pool["sources"] == ["news", "wiki"] and pool["n_good"] == 90 and pool["fd_upper"] <= 0.05
    assert groups[ALL]["tau_drop"] == min(groups[name]["tau_drop"] for name in ("web", "wiki", "news"))


def test_a_source_whose_probe_is_blind_exits_less_by_its_own_certificate_than_by_the_pool() -> None:
    oracle, probe, _ = world(4000, 14)
    generator = np.random.default_rng(14)
    sources = np.array(["seen"] * 2000 + ["blind"] * 2000)
    blind = sources == "blind"
    probe[blind] = generator.permutation(probe[blind])
    loose = Unlabelled(list(sources), np.tile(generator.permutation(probe[:2000]), 2), None)
    groups = calibrate(Labelled(list(sources), oracle, probe), loose, CalibrationConfig())["groups"]
    assert groups["blind"]["exit_rate"] < 0.06 < 0.2 < groups["seen"]["exit_rate"]


def test_one_bound_for_all_lets_more_exit_than_a_bound_for_each() -> None:
    oracle, probe, _ = world(1200, 19)
    sources, sample = ["a", "b", "c", "d"] * 300, Unlabelled(["a", "b", "c", "d"] * 300, probe, None)
    each, pool = (
        calibrate(Labelled(sources, oracle, probe), sample, CalibrationConfig(certify=certify))
        for certify in ("sources", "pool")
    )
    assert (each["certificates"], pool["certificates"]) == (4, 1)
    for name in "abcd":
        assert each["groups"][name]["drop_parent"] is None and pool["groups"][name]["drop_parent"] == ALL
    exits = [sum(found["groups"][name]["exit_rate"] for name in "abcd") for found in (each, pool)]
    assert exits[0] < exits[1]
    assert pool["groups"][ALL]["oracle"]["upper"] <= 0.05


def test_bounds_that_hold_all_at_once_are_stricter_and_ask_for_more_labels() -> None:
    oracle, probe, _ = world(3000, 15)
    sources, sample = ["a", "b", "c"] * 1000, Unlabelled(["a", "b", "c"] * 1000, probe, None)
    each = calibrate(Labelled(sources, oracle, probe), sample, CalibrationConfig())
    both = calibrate(Labelled(sources, oracle, probe), sample, CalibrationConfig(bounds="bonferroni"))
    assert both["certificates"] == 3 and both["exit_rate"] < each["exit_rate"]
    # 210 documents with 63 good each: enough for one certificate (59), not for three at once.
    few = slice(0, 630)
    few_each = calibrate(Labelled(sources[few], oracle[few], probe[few]), sample, CalibrationConfig())
    few_both = calibrate(
        Labelled(sources[few], oracle[few], probe[few]), sample, CalibrationConfig(bounds="bonferroni")
    )
    assert [few_each["groups"][name]["drop_parent"] for name in "abc"] == [None] * 3
    assert [few_both["groups"][name]["drop_parent"] for name in "abc"] == [ALL] * 3


@pytest.mark.parametrize("bounds", ["marginal", "bonferroni"])
def test_false_drops_of_certified_sources_exceed_the_bound_in_at_most_5_percent_of_resplits(bounds: str) -> None:
    config = CalibrationConfig(bounds=bounds)  # pyright: ignore[reportArgumentType]
    oracle, probe, _ = world(60_000, 16)
    sources = np.array(["a", "b"] * 30_000)
    truth = {name: good_documents(oracle, list(sources), config) & (sources == name) for name in "ab"}
    generator = np.random.default_rng(17)
    broken = {"a": 0, "b": 0, "either": 0}
    for _ in range(200):
        rows = generator.choice(60_000, 1200, replace=False)
        sample = generator.choice(60_000, 1000)
        result = calibrate(
            Labelled(list(sources[rows]), oracle[rows], probe[rows]),
            Unlabelled(list(sources[sample]), probe[sample], None),
            config,
        )
        over = {name: (probe[truth[name]] < result["groups"][name]["tau_drop"]).mean() > 0.05 for name in "ab"}
        for name in "ab":
            broken[name] += over[name]
        broken["either"] += any(over.values())
    # 5% of 200 is 10; 18 is the 99.7% quantile of that binomial. Only all at once bounds the chance of either.
    assert max(broken["a"], broken["b"]) <= 18
    assert bounds == "marginal" or broken["either"] <= 18


def test_false_drops_are_told_against_the_oracles_keeps_and_against_the_judges() -> None:
    oracle, probe, judge = world(20_000, 18, judge=True)
    assert judge is not None
    result = calibrate(
        Labelled(["a"] * 20_000, oracle, probe), Unlabelled(["a"] * 20_000, probe, judge), CalibrationConfig()
    )
    group = result["groups"]["a"]
    kept = judge >= np.quantile(judge, 0.7)
    assert group["judge"]["n"] == kept.sum()
    assert group["judge"]["rate"] == (probe[kept] < group["tau_drop"]).mean() < group["judge"]["upper"] < 0.1
    assert group["oracle"]["rate"] == (probe[oracle >= np.quantile(oracle, 0.7)] < group["tau_drop"]).mean()
    alone = calibrate(
        Labelled(["a"] * 20_000, oracle, probe), Unlabelled(["a"] * 20_000, probe, None), CalibrationConfig()
    )
    assert alone["groups"]["a"]["judge"] is None


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
