"""The page over all runs: a line for each, their trainings, and where settings differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.training_logs import step_event, write_log
from tests.unit.test_report_page import write_json

from gristmill.base.errors import DataError
from gristmill.report import comparison, listing
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import NotThere
from gristmill.report.live_run import LiveFolder, signature
from gristmill.report.training import trainings


def training(folder: Path, seed: int = 0, steps: int = 5, **more: Any) -> Path:
    events = [step_event(step, 4.0 - step / 10, cost=step / 4) for step in range(1, steps + 1)]
    events.append({"type": "validation", "step": steps, "loss": 3.0, "bits_per_byte": 1.25})
    settings = {"seed": seed, "output": str(folder), "batch": {"sequence": 32, "sequences": 4}, "unique_tokens": {}}
    return write_log(folder, events, {"status": "running", "steps": 9, "config": settings | more})


@pytest.fixture
def folder(tmp_path) -> Path:
    training(tmp_path / "cmp/filtered-seed0")
    training(tmp_path / "cmp/filtered-seed1", seed=1, batch={"sequence": 64, "sequences": 4}, unique_tokens={"a": 9})
    write_json(
        tmp_path / "demo/run.json", {"name": "demo", "status": "done", "started_at": "2026-11-21T20:00:00+00:00"}
    )
    rows = [
        {"rule": rule, "source": source, "documents": documents, "tokens": 10 * documents}
        for rule, documents in (("(all)", 100), ("length", 80), ("quality", 30))
        for source in ("web", "code")
    ]
    write_json(tmp_path / "demo/selection/funnel.json", {"rules": ["length", "quality"], "rows": rows})
    training(tmp_path / "demo/training/raw")
    training(tmp_path / "demo/.work/train_filtered-0123456789abcdef")
    return tmp_path


def test_every_run_has_a_line_of_what_it_kept_or_trained(folder):
    told = listing.runs(LiveFolder(folder), Asked())
    lines = {line["key"]: line for line in told["runs"]}
    assert list(lines) == ["cmp/filtered-seed0", "cmp/filtered-seed1", "demo"]
    demo = lines["demo"]
    assert (demo["documents"], demo["documents_kept"], demo["tokens"], demo["tokens_kept"]) == (200, 60, 2000, 600)
    one = lines["cmp/filtered-seed0"]
    assert (one["step"], one["steps"], one["trained"], one["cost"], one["status"]) == (5, 9, 640, 1.25, "running")
    assert (one["loss"], one["bits_per_byte"], one["measured"]) == (3.5, 1.25, "own validation")
    assert one["started_at"] == "2023-11-14T22:13:21+00:00" and one["tokens"] is None
    assert told["trainings"] == ["cmp/filtered-seed0", "cmp/filtered-seed1", "demo/raw", "demo/filtered"]


def test_a_line_follows_its_run_and_a_broken_one_costs_itself_alone(folder):
    with (folder / "cmp/filtered-seed0/events.jsonl").open("a") as file:
        file.write(json.dumps(step_event(6, 1.0)) + "\n" + '{"type": "step", "step": 7')
    (folder / "cmp/filtered-seed1/run.json").write_text("{")
    write_json(folder / "demo/training/raw/evaluation.json", {"bits_per_byte": 0.5})
    one, broken, demo = listing.runs(LiveFolder(folder), Asked())["runs"]
    assert (one["step"], one["trained"], one["loss"], one["bits_per_byte"]) == (6, 768, 1.0, 1.25)
    assert "run.json" in broken["error"] and demo["error"] is None


def test_settings_that_differ_are_told_and_others_counted(folder):
    told = listing.settings(LiveFolder(folder), Asked({"runs": "cmp/filtered-seed0\ncmp/filtered-seed1"}))
    assert {row["setting"]: row["values"] for row in told["rows"]} == {
        "seed": ["0", "1"], "batch.sequence": ["32", "64"], "unique_tokens.a": [None, "9"],
    }  # fmt: skip
    assert told["same"] == 1 and told["more"] == 0  # batch.sequences; the output folder does not count
    with pytest.raises(NotThere):
        listing.settings(LiveFolder(folder), Asked({"runs": "demo/raw"}))
    with pytest.raises(AskedWrong, match="none of"):
        listing.settings(LiveFolder(folder), Asked({"runs": "demo"}))


def test_a_training_under_way_in_a_pipeline_is_told_from_the_one_before(folder):
    assert set(trainings.of_run(folder / "demo")) == {"raw", "filtered"}
    training(folder / "demo/training/filtered")
    assert set(trainings.of_run(folder / "demo")) == {"raw", "filtered", "filtered, under way"}


def test_a_log_that_grows_leaves_what_was_read_of_the_rest_as_it_is(folder):
    before = signature(folder / "demo")
    with (folder / "demo/training/raw/events.jsonl").open("a") as file:
        file.write(json.dumps(step_event(6)) + "\n")
    assert signature(folder / "demo") == before
    write_json(folder / "demo/training/raw/run.json", {"status": "done"})
    assert signature(folder / "demo") != before


def pair(verdict: str = "better") -> dict[str, Any]:
    row = {"name": "all", "documents": 50, "a_bits_per_byte": 1.0, "b_bits_per_byte": 1.1, "difference": -0.1}
    return {"a": "filtered", "b": "raw", "sets": [row | {"ci95": [-0.2, -0.05], "verdict": verdict}]}


def test_arms_of_several_seeds_are_compared_with_each_of_the_others(tmp_path):
    written = {
        "format": comparison.PROXIES, "tokens": 1000, "seeds": [0, 1, 2], "note": "n",
        "comparisons": [pair(), pair("no difference") | {"b": "random-drop"}],
    }  # fmt: skip
    write_json(tmp_path / "comparison.json", written)
    training(tmp_path / "filtered-seed0")
    told = listing.compared(LiveFolder(tmp_path), Asked())
    assert (told["seeds"], told["budget_tokens"], told["b"], told["sets"][0]["winner"]) == (3, 1000, "raw", "filtered")
    (other,) = told["others"]
    assert other["b"] == "random-drop" and other["sets"][0]["winner"] is None and other["sets"][0]["clear"]
    write_json(tmp_path / "comparison.json", written | {"comparisons": [pair("won")]})
    with pytest.raises(DataError, match=r"comparisons\[0\]: sets\[0\]: verdict 'won'"):
        listing.compared(LiveFolder(tmp_path), Asked())
