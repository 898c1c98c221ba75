"""Exits that the judge sees all the same tell what exits cost; decisions are made from stored scores alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.support.tiny_heads import calibration, texts, write_heads

from gristmill.base.errors import DataError
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.scoring.decide import decide, live_false_drops
from gristmill.scorer.scoring.scorer import Scorer

HEADS = "0123456789abcdef"
TAU = {"(all)": {"tau_drop": 0.5, "tau_keep": 0.5, "ties": 1.0}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def heads(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(
        tmp_path_factory.mktemp("heads") / "heads", backbone, thresholds={**TAU, "another": TAU["(all)"]}
    )


def test_audited_exits_have_both_scores_and_keep_the_probes_quality(heads: Path, backbone: Path) -> None:
    some = texts(80)
    plain = Scorer.load(heads, backbone, ScoringConfig(shadow=0)).score(some)
    scorer = Scorer.load(heads, backbone, ScoringConfig(shadow=1))
    rows = scorer.score(some).to_pylist()
    assert sum(row["exit"] for row in rows) > 10
    for row, before in zip(rows, plain.to_pylist(), strict=True):
        assert row["shadow"] == row["exit"] == before["exit"]
        assert row["judge"] is not None and row["quality"] == pytest.approx(before["quality"], abs=1e-6)
        assert row["vowels"] == pytest.approx(before["vowels"], abs=1e-5)
    assert abs(scorer.counters.saved) < 0.02 and scorer.counters.shadow == scorer.counters.exits


def test_which_exits_are_audited_depends_on_the_text_alone(heads: Path, backbone: Path) -> None:
    some = texts(400, words=(2, 6))
    scorer = Scorer.load(heads, backbone, ScoringConfig(shadow=0.3))
    table = scorer.score(some)
    audited = {text for text, shadow in zip(some, table["shadow"].to_pylist()) if shadow}
    exits = table["exit"].to_pylist().count(True)
    assert 0.15 * exits < len(audited) < 0.45 * exits
    again = scorer.score(some[::-1])["shadow"].to_pylist()[::-1]
    assert again == table["shadow"].to_pylist()


def scores(**columns: list) -> pa.Table:
    n = len(columns["probe"])
    given = {"id": [f"d{i}" for i in range(n)], "source": ["web"] * n, "heads": [HEADS] * n, "exit": [False] * n}
    given |= columns
    return pa.table(given)


def test_live_false_drops_are_the_share_of_what_the_judge_would_keep() -> None:
    found = live_false_drops(
        scores(
            probe=[0.1] * 100 + [0.9] * 60, exit=[True] * 100 + [False] * 60, shadow=[True] * 20 + [False] * 140,
            judge=[0.9] * 2 + [0.1] * 18 + [None] * 80 + [0.9] * 40 + [0.1] * 20,
        ),
        {HEADS: calibration(TAU)},
    )  # fmt: skip
    assert found is not None and (found["exits"], found["audited"], found["wrong"]) == (100, 20, 2)
    assert found["false_drop"] == pytest.approx(10 / 50)  # a tenth of 100 exits, beside 40 that were kept
    assert found["false_drop"] < found["upper"] < 0.5
    unaudited = scores(probe=[0.1], exit=[True], shadow=[False], judge=pa.array([None], pa.float32()))
    assert live_false_drops(unaudited, {HEADS: calibration(TAU)}) is None


def test_decisions_follow_the_thresholds_of_the_source_and_need_no_model() -> None:
    table = scores(
        probe=[0.1, 0.6, 0.6, None, 0.1],
        quality=pa.array([0.1, 0.7, 0.55, None, 0.1], pa.float32()),
    ).set_column(1, "source", pa.array(["web", "web", "web", "web", "code"]))
    thresholds = calibration(
        {
            "web": {"tau_drop": 0.2, "tau_keep": 0.6, "ties": 1.0},
            "code": {"tau_drop": None, "tau_keep": 0.05, "ties": 1.0},
        }
    )
    assert decide(table, {HEADS: thresholds}).to_pylist() == ["drop", "keep", "band", None, "keep"]
    mixed = table.set_column(2, "heads", pa.array([HEADS] * 4 + ["other"]))
    with pytest.raises(DataError, match="made with heads other"):
        decide(mixed, {HEADS: thresholds})
    for name in ("id", "source", "quality", "probe", "exit", "heads"):
        with pytest.raises(DataError, match=f"no column '{name}'"):
            decide(table.drop_columns([name]), {HEADS: thresholds})


def test_exits_that_new_thresholds_send_to_the_judge_are_no_decisions() -> None:
    table = scores(probe=[0.1, 0.4, 0.9], quality=[0.1, 0.4, 0.9], exit=[True, True, False])
    lower, higher = ({"web": {"tau_drop": tau, "tau_keep": 0.5, "ties": 1.0}} for tau in (0.3, 0.45))
    assert decide(table, {HEADS: calibration(higher)}).to_pylist() == ["drop", "drop", "keep"]
    with pytest.raises(DataError, match=r"1 documents exited early .* score again"):
        decide(table, {HEADS: calibration(lower)})


def test_a_source_that_was_not_there_at_calibration_has_no_exits(heads: Path, backbone: Path) -> None:
    some = texts(60)
    scorer = Scorer.load(heads, backbone)
    exits = scorer.score(some, ["another"] * 60)["exit"].to_pylist()
    assert any(exits) and not any(scorer.score(some, ["unseen"] * 60)["exit"].to_pylist())
    table = scores(probe=[0.1, 0.1], quality=[0.1, 0.1]).set_column(1, "source", pa.array(["another", None]))
    thresholds = calibration({**TAU, "another": {"tau_drop": 0.5, "tau_keep": 0.6}})
    assert decide(table, {HEADS: thresholds}).to_pylist() == ["drop", "band"]


def test_equal_scores_at_the_threshold_are_told_apart_by_id() -> None:
    n = 2000
    table = scores(probe=[0.9] * n, quality=pa.array([0.5] * n, pa.float32()))
    thresholds = calibration({"(all)": {"tau_drop": None, "tau_keep": 0.5, "ties": 0.3}})
    kept = np.mean([decision == "keep" for decision in decide(table, {HEADS: thresholds}).to_pylist()])
    assert 0.25 < kept < 0.35


def test_decide_imports_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = "import sys\nfrom gristmill.scorer.scoring import decide\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
