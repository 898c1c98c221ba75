"""What a bound is over: text as it is scored, by the mix that it has, and the sources that share it."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig
from gristmill.scorer.heads.calibration import ALL, Labelled, Unlabelled, calibrate
from gristmill.scorer.sampling import split_of, stratified_sample


def graded(n: int, noise: float | np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's quality, uniform, and the probe's."""
    generator = np.random.default_rng(seed)
    oracle = generator.random(n)
    return oracle, np.clip(oracle + noise * generator.standard_normal(n), 0, 1)


def test_a_probe_that_is_bad_at_what_the_label_sample_has_less_of_keeps_its_bound() -> None:
    broken = 0
    for seed in range(40):
        generator, n = np.random.default_rng(seed), 12_000
        languages = np.where(generator.random(n) < 0.86, "main", generator.choice(list("abcdefg"), n))
        oracle, probe = graded(n, np.where(languages == "main", 0.3, 0.02), seed)
        ids = [f"{seed}-{i}" for i in range(n)]
        drawn = stratified_sample(["web"] * n, [100] * n, 2400, seed, ids=ids, languages=list(languages))
        certify = np.array([split_of(ids[i]) == "certify" for i in drawn.indices])
        rows = drawn.indices[certify]
        labelled = Labelled(
            ["web"] * len(rows), oracle[rows], probe[rows], drawn.weights[certify], [ids[i] for i in rows]
        )
        loose = generator.choice(n, 2000, replace=False)
        found = calibrate(labelled, Unlabelled(["web"] * 2000, probe[loose], None), CalibrationConfig())
        good = oracle >= np.quantile(oracle, 0.7)
        broken += (probe[good] < found["groups"]["web"]["tau_drop"]).mean() > 0.05
    assert broken <= 6  # 5% of 40 is 2; 6 is the 99.7% quantile of that binomial


def test_equal_weights_lose_no_label_and_uneven_ones_are_drawn_by_id_alone() -> None:
    oracle, probe = graded(1000, 0.1, 1)
    ids, names = [f"d{i}" for i in range(1000)], ["a"] * 1000
    assert len(Labelled(names, oracle, probe, np.full(1000, 7.5), ids).evenly({"a"})) == 1000
    weights = np.repeat([1.0, 4.0], 500)
    kept = Labelled(names, oracle, probe, weights, ids).evenly({"a"})
    assert kept.ids is not None
    light = sum(int(one[1:]) < 500 for one in kept.ids)
    assert len(kept) - light == 500 and 90 < light < 160
    order = np.random.default_rng(0).permutation(1000)
    again = Labelled(names, oracle[order], probe[order], weights[order], [ids[i] for i in order]).evenly({"a"})
    assert again.ids is not None and set(again.ids) == set(kept.ids)
    assert not len(kept.evenly({"b"}))


def test_labels_needed_are_counted_after_the_even_draw() -> None:
    oracle, probe = graded(400, 0.1, 2)
    weights = np.append(np.ones(399), 10.0)
    sample = Unlabelled(["a"] * 400, probe, None)
    assert calibrate(Labelled(["a"] * 400, oracle, probe), sample, CalibrationConfig())["n_good"] == 120
    with pytest.raises(DataError, match=r"1\d good documents.*drawn evenly by weight.*59 are needed"):
        calibrate(Labelled(["a"] * 400, oracle, probe, weights), sample, CalibrationConfig())


def test_sources_that_share_a_bound_are_certified_on_their_own_labels() -> None:
    spec = {"large": (2000, 0.03)} | {f"small{i}": (150, 0.9) for i in range(6)}
    names = [name for name, (n, _) in spec.items() for _ in range(n)]
    noise = np.array([noise for n, noise in spec.values() for _ in range(n)])
    small = np.array(names) != "large"
    broken = 0
    for seed in range(40):
        oracle, probe = graded(len(names), noise, seed)
        truth, fresh = graded(len(names), noise, 100 + seed)
        found = calibrate(Labelled(names, oracle, probe), Unlabelled(names, fresh, None), CalibrationConfig())
        assert found["pool"]["sources"] == [f"small{i}" for i in range(6)]
        assert found["groups"]["large"]["drop_parent"] is None and found["groups"]["large"]["exit_rate"] > 0.5
        taus = np.array([found["groups"][name]["tau_drop"] or -1.0 for name in names])
        broken += (fresh < taus)[small & (truth >= 0.7)].mean() > 0.08  # 270 good documents: 5% and sampling error
    assert broken <= 4


def test_the_poorest_source_joins_those_that_have_too_few_labels_together() -> None:
    counts = {"a": 1000, "b": 400, "c": 30}
    names = [name for name, n in counts.items() for _ in range(n)]
    oracle, probe = graded(len(names), 0.1, 3)
    found = calibrate(Labelled(names, oracle, probe), Unlabelled(names, probe, None), CalibrationConfig())
    assert found["pool"]["sources"] == ["b", "c"] and found["certificates"] == 2
    assert {name: found["groups"][name]["drop_parent"] for name in "abc"} == {"a": None, "b": ALL, "c": ALL}


def test_a_source_without_a_label_has_no_exits() -> None:
    oracle, probe = graded(1000, 0.1, 4)
    sample = Unlabelled(["seen"] * 500 + ["new"] * 500, probe, None)
    found = calibrate(Labelled(["seen"] * 1000, oracle, probe), sample, CalibrationConfig())
    groups = found["groups"]
    assert groups["seen"]["tau_drop"] and groups["seen"]["exit_rate"] > 0.3
    assert groups["new"]["tau_drop"] is None and groups["new"]["exit_rate"] == 0 == groups["new"]["graded"]
    assert groups[ALL]["tau_drop"] is None and found["pool"] is None
    assert found["exit_rate"] == pytest.approx(groups["seen"]["exit_rate"] / 2)
    with pytest.raises(DataError, match="the labels are of seen, and what is to be scored is of web"):
        calibrate(Labelled(["seen"] * 1000, oracle, probe), Unlabelled(["web"] * 500, probe[:500], None),
                  CalibrationConfig())  # fmt: skip


def test_labels_that_the_probe_has_not_read_whole_certify_nothing() -> None:
    oracle, probe = graded(1000, 0.1, 5)
    labelled = Labelled(["a"] * 1000, oracle, probe, whole=False)
    found = calibrate(labelled, Unlabelled(["a"] * 1000, probe, None), CalibrationConfig(allow_uncertified=True))
    assert found["mode"] == "expected" and found["fd_upper"] is None and found["groups"]["a"]["drop_parent"] == ALL
