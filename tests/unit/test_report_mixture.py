"""What a training read of each source, held against the order of its shards in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.training_logs import step_event, write_log
from tests.support.training_runs import config
from tests.support.training_shards import write_shards

from gristmill.report.asked import Asked
from gristmill.report.columns import NotThere
from gristmill.report.training.mixture import mixtures, of_run
from gristmill.trainer import loop
from gristmill.trainer.data import open_training


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    shards = write_shards(tmp_path_factory.mktemp("shards"))
    run = tmp_path_factory.mktemp("runs") / "small"
    loop.train(config(shards, run))
    return shards, run


def test_what_was_read_is_what_the_order_says_at_every_step(trained):
    shards, run = trained
    plan = open_training(config(shards, run)).plan
    told = of_run(run)
    assert told and told["tokens"] == told["budget"] == plan.tokens == 8 * 4 * 32 and told["recorded"] == 8
    names = [source["name"] for source in told["sources"]]
    assert {one["name"]: one["read"] for one in told["sources"]} == plan.token_counts()
    for source, planned in zip(told["sources"], plan.sources):
        assert source["unique"] == planned.windows * 32 and source["planned"] == source["read"]
        assert source["epochs"] == pytest.approx(plan.epochs()[source["name"]])
        assert source["left"] == max(source["unique"] - source["read"], 0)
    curve = told["curve"]
    assert curve["x"] == [128 * step for step in range(1, 9)]
    for at, tokens in enumerate(curve["x"]):
        counts = plan.token_counts(int(tokens) // 32)
        assert [row[at] for row in curve["so_far"]] == pytest.approx([counts[name] / tokens for name in names])
        assert [row[at] for row in curve["target"]] == pytest.approx([2 / 3, 1 / 3])
    wanted = np.outer([2 / 3, 1 / 3], curve["x"])
    read = np.array([[plan.token_counts(int(t) // 32)[name] for t in curve["x"]] for name in names])
    assert told["furthest"] == pytest.approx(np.abs(read - wanted).max()) and told["furthest"] <= 32


PLAN = {
    "mixture": "two", "packing": "concat", "unit": 10, "tokens": 2000,
    "phases": [
        {"name": "early", "tokens_before": 0, "sequence_length": 10, "weights": {"a": 3, "b": 1}},
        {"name": "late", "tokens_before": 1000, "sequence_length": 10, "weights": {"b": 1}},
    ],
    "sources": [
        {"source": "a", "tokens": 750, "epochs": 3.75, "windows": 20},
        {"source": "b", "tokens": 1250, "epochs": 0.625, "windows": 200},
    ],
}  # fmt: skip


def test_targets_change_with_the_phase_and_shares_of_late_follow_at_once(tmp_path):
    def read(step: int) -> dict[str, int]:
        return {"a": 75, "b": 25} if step <= 10 else {"a": 0, "b": 100}

    events = [step_event(step, tokens_by_source=read(step)) | {"tokens": 100 * step} for step in range(1, 16)]
    told = of_run(write_log(tmp_path / "run", events, {"plan": PLAN}))
    assert told and told["curve"]["recent_steps"] == 1
    assert told["curve"]["target"][0][9] == 0.75 and told["curve"]["target"][0][14] == pytest.approx(0.5)
    assert told["curve"]["recent"][0] == [0.75] * 10 + [0.0] * 5 and told["furthest"] == 0
    a, b = told["sources"]
    assert (a["read"], a["epochs"], a["left"], a["planned_left"]) == (750, 3.75, 0, 0)
    assert (b["read"], b["left"], b["planned_left"]) == (750, 1250, 750) and b["wanted"] == 750


def test_a_run_that_does_not_tell_shows_its_plan_and_says_so(tmp_path):
    events = [step_event(step) for step in range(1, 4)] + [step_event(4, tokens_by_source={"a": 64, "b": 64})]
    told = of_run(write_log(tmp_path / "run", events, {"plan": PLAN}))
    assert told and told["curve"] is None and (told["recorded"], told["steps"]) == (1, 4)
    assert [source["read"] for source in told["sources"]] == [None, None]
    assert [source["planned"] for source in told["sources"]] == [750, 1250]
    with pytest.raises(NotThere):
        mixtures({"x": write_log(tmp_path / "old", events)}, Asked())
