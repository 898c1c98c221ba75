"""Router health of a training run, as the report page draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gristmill.report.training import summarise


def run_of(folder: Path, *routers: dict[str, Any] | None) -> Path:
    """A training run whose steps report this of their routers."""
    events = [
        {"type": "step", "step": step, "tokens": 100 * step, "loss": 3.0, "router": router}
        for step, router in enumerate(routers, 1)
    ]
    (folder / "run.json").write_text(json.dumps({"moe_layers": [1, 3]}))  # layers 0 and 2 are dense
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_layers_of_unlike_experts_are_each_held_against_their_own_even_share(tmp_path):
    early = {"load": [[0.5, 0.5], [0.25] * 4], "entropy": [0.9, 0.8], "dropped": 0.5, "bias_range": [0.4, 0.0]}
    load = [[0.6, 0.4], [0.7, 0.2, 0.09, 0.01]]
    late = {"load": load, "entropy": [0.7, 0.6], "dropped": 0.125, "bias_range": [0.1, 0.2]}
    router = summarise(run_of(tmp_path, early, late))["router"]
    assert router["step"] == 2 and [pytest.approx(row) for row in load] == router["load"]
    assert router["layers"] == [1, 3]
    assert router["most"] == pytest.approx(0.7 * 4)
    assert router["starved"] == 1  # 0.01 is under a tenth of a quarter; 0.09 is not
    assert (router["dropped"], router["bias_range"]) == (0.125, 0.2)
    assert router["entropy"]["mean"] == pytest.approx([0.85, 0.65]) and router["entropy"]["low"] == [0.8, 0.6]


def test_what_an_older_run_did_not_report_is_left_out(tmp_path):
    router = summarise(run_of(tmp_path, {"load": [[0.5, 0.5]], "entropy": [1.0]}))["router"]
    assert router["layers"] == [0]  # run.json tells of others
    assert router["dropped"] is None and router["bias_range"] is None and router["starved"] == 0


def test_a_model_without_experts_has_no_router(tmp_path):
    summary = summarise(run_of(tmp_path, None, None))
    assert summary["router"] is None and summary["steps"]["last_step"] == 2
