"""A training run in a few lines: where it stands, its routers, its alarms, and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_report_page import make_run

from gristmill.report.run_folder import collect
from gristmill.report.training.summary import TEXT_LIMIT, TIMES_SHOWN, summarise
from gristmill.report.training.thinning import smooth


def run_of(folder: Path, *routers: dict[str, Any] | None) -> Path:
    """A training run whose steps report this of their routers."""
    events = [
        {"type": "step", "step": step, "tokens": 100 * step, "loss": 3.0, "router": router}
        for step, router in enumerate(routers, 1)
    ]
    (folder / "run.json").write_text(json.dumps({"moe_layers": [1, 3]}))  # layers 0 and 2 are dense
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_unfinished_line_is_left_out(tmp_path):
    filtered, raw = collect(make_run(tmp_path / "run", documents=300)).training["runs"]
    assert filtered["steps"]["last_step"] == 240 and filtered["steps"]["last_tokens"] == 240 * 8192
    assert filtered["validation"]["step"] == 240 and filtered["validation"]["count"] == 6
    assert np.allclose(np.sum(filtered["router"]["load"], axis=1), 1)
    assert filtered["router"]["starved"] == 0 and raw["router"]["starved"] == 1
    assert filtered["cost"]["cost"] == 2.4 and raw["cost"]["cost"] is None


def test_layers_of_unlike_experts_are_each_held_against_their_own_even_share(tmp_path):
    early = {"load": [[0.5, 0.5], [0.25] * 4], "entropy": [0.9, 0.8], "dropped": 0.5, "bias_range": [0.4, 0.0]}
    load = [[0.6, 0.4], [0.7, 0.2, 0.09, 0.01]]
    late = {"load": load, "entropy": [0.7, 0.6], "dropped": 0.125, "bias_range": [0.1, 0.2]}
    router = summarise(run_of(tmp_path, early, late))["router"]
    assert router["step"] == 2 and [pytest.approx(row) for row in load] == router["load"]
    assert router["layers"] == [1, 3] and router["experts"] == [2, 4]
    assert router["most"] == pytest.approx(0.7 * 4)
    assert router["starved"] == 1  # 0.01 is under a tenth of a quarter; 0.09 is not
    assert (router["dropped"], router["bias_range"]) == (0.125, 0.2)
    assert router["by_layer"] == {"entropy": [0.7, 0.6]}  # the rest is not told by layer


def test_what_an_older_run_did_not_report_is_left_out(tmp_path):
    router = summarise(run_of(tmp_path, {"load": [[0.5, 0.5]], "entropy": [1.0]}))["router"]
    assert router["layers"] == [0]  # run.json tells of others
    assert router["dropped"] is None and router["bias_range"] is None and router["starved"] == 0


def test_what_was_dropped_is_told_over_all_layers(tmp_path):
    now = {"load": [[0.5, 0.5]] * 2, "entropy": [1.0, 1.0], "dropped": [0.0, 0.5], "bias_range": []}
    router = summarise(run_of(tmp_path, now))["router"]
    assert router["dropped"] == 0.25 and router["bias_range"] is None and router["logits"] is None


def test_alarms_of_one_step_are_all_shown_and_of_a_step_twice_the_later(tmp_path):
    alarm = {"type": "alarm", "policy": "warn"}
    events = [
        alarm | {"step": 2, "alarm": "loss_spike", "told": "first"},
        alarm | {"step": 1, "alarm": "dead_experts", "told": "a"},
        alarm | {"step": 2, "alarm": "router_collapse", "told": "b"},
        alarm | {"step": 2, "alarm": "loss_spike", "told": "again"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    alarms = summarise(tmp_path)["alarms"]
    assert alarms["count"] == 3
    assert {(one["step"], one["told"]) for one in alarms["shown"]} == {(1, "a"), (2, "b"), (2, "again")}
    assert alarms["shown"][-1]["step"] == 1  # the newest first


def test_samples_are_gathered_by_prompt_from_the_first_to_the_last_and_cut(tmp_path):
    events = []
    for step in range(1, 31):
        written = [{"prompt": "The ", "text": f"{step}" * 5000}, {"prompt": "", "text": "x"}]
        events.append({"type": "samples", "step": step, "samples": written})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    the, empty = summarise(tmp_path)["samples"]
    assert (the["prompt"], empty["prompt"]) == ("The ", "")
    steps = [time["step"] for time in the["times"]]
    assert steps[0] == 1 and steps[-1] == 30 and len(steps) == TIMES_SHOWN == len(empty["times"])
    assert all(len(time["text"]) == TEXT_LIMIT and time["cut"] for time in the["times"])
    assert not any(time["cut"] for time in empty["times"])


def test_what_is_no_event_of_a_step_is_passed_over(tmp_path):
    run_of(tmp_path, None, None)
    with (tmp_path / "events.jsonl").open("a") as file:
        for event in ({"step": "3"}, {"step": None}, {"step": [3]}, {"step": True}, {}, {"step": 3, "type": []}):
            file.write(json.dumps({"type": "step", "loss": 9.0} | event) + "\n")
        file.write('[1]\n"step"\n' + '{"type": "step", "step": 1' + "0" * 5000 + "}\n" + "[" * 100_000 + "\n")
    assert summarise(tmp_path)["steps"]["last_step"] == 2


def test_a_model_without_experts_has_no_router(tmp_path):
    summary = summarise(run_of(tmp_path, None, None))
    assert summary["router"] is None and summary["steps"]["last_step"] == 2


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth(np.array([5.0, 1.0, 1.0]), 4)[0] == 5.0
    assert np.allclose(smooth(np.full(50, 3.0), 10), 3.0)
