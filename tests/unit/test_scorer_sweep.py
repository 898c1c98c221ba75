"""Taps are chosen by what documents out of fold say of them, the same every time; ridge is what it is in the books."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from gristmill.base.errors import DataError
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.heads.ridge import PENALTIES, ridge
from gristmill.scorer.heads.sweep import candidates, folds, out_of_fold, sweep
from gristmill.scorer.rubric import Rubric, rubric_from_mapping

CONFIG = TrainConfig(sweep_false_drop=0.05)
TAPS = [2, 4, 6, 8]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def rubric(*names: str) -> Rubric:
    anchors = {"0": "no", "4": "yes"}
    dimensions = [{"name": name, "question": "?", "anchors": anchors} for name in names]
    return rubric_from_mapping({"name": "r", "dimensions": dimensions}, "test")


def world(n: int = 400, seed: int = 0, **columns: Any) -> tuple[Labels, np.ndarray]:
    """Labels on one dimension, and the truth behind them."""
    truth = np.random.default_rng(seed).normal(size=n)
    table: dict[str, Any] = {
        "id": [f"d{i}" for i in range(n)], "source": ["web", "code"] * (n // 2), "text": ["x"] * n,
        "split": ["fit", "fit", "select", "audit"] * (n // 4), "clear": np.clip(2 + truth, 0, 4),
    }  # fmt: skip
    return Labels.of(pa.table({**table, **columns}), rubric("clear")), truth


def pools(truth_N: np.ndarray, noise: list[float], width: int = 24, seed: int = 1) -> torch.Tensor:
    """Pools [N, K, W] of which one feature is the truth with so much noise, by tap."""
    generator = np.random.default_rng(seed)
    pools_NKW = generator.normal(size=(len(truth_N), len(noise), width))
    for k, amount in enumerate(noise):
        pools_NKW[:, k, 3] = truth_N + amount * generator.normal(size=len(truth_N))
    return torch.from_numpy(pools_NKW)


def test_candidates_are_spread_over_the_lower_part() -> None:
    assert candidates(30) == [3, 6, 8, 11, 14, 17, 20, 22]
    assert candidates(24) == [2, 4, 7, 9, 11, 14, 16, 18]
    assert candidates(4) == [1, 2, 3]
    assert candidates(1) == [1]


def test_the_judge_reads_at_the_shallowest_of_the_best_and_the_probe_where_it_saves_most() -> None:
    labels, truth_N = world(1200)
    found = sweep(pools(truth_N, [2.0, 0.7, 0.3, 0.299]), TAPS, 12, labels, rubric("clear"), CONFIG)
    report = found.report
    rows = {row["tap"]: row for row in report["taps"]}
    assert report["documents"] == 900, "audit is not looked at"
    rhos = [rows[tap]["spearman"] for tap in TAPS]
    assert rhos[0] < rhos[1] < rhos[2] and abs(rhos[2] - rhos[3]) < 0.01
    assert found.taps[1] == report["judge"] == 6
    spared = {tap: row["saved"] for tap, row in rows.items() if tap <= 6}
    assert found.taps[0] == report["probe"] == max(spared, key=lambda tap: spared[tap]) == 4
    for tap in (2, 4, 6):
        assert rows[tap]["saved"] == pytest.approx(rows[tap]["exit_rate"] * (1 - tap / 6), abs=1e-5)
        run = tap + (1 - rows[tap]["exit_rate"]) * (6 - tap)
        assert rows[tap]["saved_full"] == pytest.approx(1 - run / 12, abs=1e-5)
    assert "saved" not in rows[8] and rows[6]["auc"] > 0.9


def test_without_a_judge_both_read_at_the_best_tap() -> None:
    labels, truth_N = world()
    found = sweep(pools(truth_N, [1.0, 0.3, 1.0, 1.0]), TAPS, 12, labels, rubric("clear"), replace(CONFIG, judge=False))
    assert found.taps == (4, 4)


def test_a_probe_that_saves_nothing_stands_where_the_judge_does() -> None:
    labels, truth_N = world(80)
    config = replace(CONFIG, sweep_false_drop=0.0)
    assert sweep(pools(truth_N, [1.0, 1.0, 0.1, 0.5]), TAPS, 12, labels, rubric("clear"), config).taps == (6, 6)


def test_the_same_labels_give_the_same_report_to_the_last_digit() -> None:
    labels, truth_N = world()
    given = pools(truth_N, [2.0, 0.7, 0.3, 0.3])
    first = sweep(given, TAPS, 12, labels, rubric("clear"), CONFIG)
    assert sweep(given.clone(), TAPS, 12, labels, rubric("clear"), CONFIG) == first


def test_pools_that_are_not_finite_are_left_out_and_too_few_documents_refused() -> None:
    labels, truth_N = world()
    given = pools(truth_N, [0.5] * 4)
    given[0, 2, 5] = torch.inf
    given[1] = torch.nan
    assert sweep(given, TAPS, 12, labels, rubric("clear"), CONFIG).report["documents"] == 298
    with pytest.raises(
        DataError, match=r"12 documents of fit and select have a grade on each dimension, 20 are needed"
    ):
        sweep(given[8:24], TAPS, 12, labels.take(np.arange(8, 24)), rubric("clear"), CONFIG)


def test_folds_keep_groups_together_and_are_of_like_size() -> None:
    generator = np.random.default_rng(0)
    groups = [f"host{i}" for i in generator.zipf(1.8, 500) % 60]
    groups = [group if groups.count(group) <= 100 else f"own{i}" for i, group in enumerate(groups)]
    found = folds(groups)
    for group in set(groups):
        assert len({int(fold) for fold, own in zip(found, groups) if own == group}) == 1
    assert np.bincount(found).tolist() == [100] * 5
    assert np.array_equal(folds(["one.org"] * 10), [0, 1, 2, 3, 4] * 2), "a single host is spread"


def test_features_that_tell_only_the_group_predict_nothing_out_of_fold() -> None:
    generator = np.random.default_rng(3)
    group_N = generator.integers(0, 40, 400)
    taste = generator.normal(size=40)
    score_N = np.clip(2 + taste[group_N] + 0.2 * generator.normal(size=400), 0, 4)
    labels, _ = world(clear=score_N, url=[f"https://host{g}.org/{i}" for i, g in enumerate(group_N)])
    x_NW = torch.from_numpy(np.eye(40)[group_N] + 0.01 * generator.normal(size=(400, 40)))
    quality_N = rubric("clear").quality(labels.scores_ND)
    grouped = spearman(quality_N, out_of_fold(x_NW, labels, folds(labels.groups), rubric("clear")))
    leaking = spearman(quality_N, out_of_fold(x_NW, labels, np.arange(400) % 5, rubric("clear")))
    assert leaking is not None and leaking > 0.9
    assert grouped is None or grouped < 0.2


@pytest.mark.parametrize("rows", [15, 200])
def test_ridge_solves_its_normal_equations(rows: int) -> None:
    """Whether there are more rows than features or fewer."""
    generator = torch.Generator().manual_seed(0)
    x_MW = torch.randn(rows, 30, generator=generator, dtype=torch.float64) * 3 + 1
    y_MN = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    weights_M = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    weight_PNW, bias_PN = ridge(x_MW, y_MN, weights_M)
    share_M1 = (weights_M / weights_M.sum())[:, None]
    variance_W = (share_M1 * (x_MW - (share_M1 * x_MW).sum(0)).square()).sum(0)
    for penalty, weight_NW, bias_N in zip(PENALTIES, weight_PNW, bias_PN):
        error_MN = x_MW @ weight_NW.T + bias_N - y_MN
        gradient_WN = (share_M1 * x_MW).T @ error_MN + penalty * variance_W[:, None] * weight_NW.T
        assert gradient_WN.abs().max() < 1e-9
        assert (share_M1 * error_MN).sum(0).abs().max() < 1e-9


def test_ridge_fits_each_target_on_its_own_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    x_MW, y_MN = torch.randn(60, 5, generator=generator), torch.randn(60, 4, generator=generator)
    y_MN[::3, 1] = torch.nan
    y_MN[:, 2] = torch.nan
    weight_PNW, bias_PN = ridge(x_MW, y_MN, torch.ones(60))
    known = torch.arange(60) % 3 != 0
    alone_PNW, alone_PN = ridge(x_MW[known], y_MN[known][:, 1:2], torch.ones(int(known.sum())))
    torch.testing.assert_close(weight_PNW[:, 1], alone_PNW[:, 0])
    torch.testing.assert_close(bias_PN[:, 1], alone_PN[:, 0])
    assert not weight_PNW[:, 2].any() and not bias_PN[:, 2].any()
