"""The workflow: states that the runner does not say, progress as it says it, and times of pieces against the ledger."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gristmill.base.errors import DataError
from gristmill.report import questions, workflow
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import NotThere
from gristmill.report.live_run import LiveRun
from gristmill.report.run_folder import collect

BEGAN = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)


def node(name: str, requires: str = "", status: str = "pending", **more: Any) -> dict[str, Any]:
    """As datapipe.workflow.record.NodeRecord has it."""
    empty = {
        "identity": None,
        "partitions": 0,
        "partitions_done": 0,
        "partitions_cached": 0,
        "seconds": 0.0,
        "counts": {},
    }
    live = {"error": None, "started_at": None, "phase": "", "documents": 0, "documents_per_second": None}
    last = {"eta_seconds": None, "quarantined": 0}
    return {
        "name": name,
        "kind": "stage",
        "requires": requires.split(),
        "status": status,
        **empty,
        **live,
        **last,
        **more,
    }


def write(
    run: Path, status: str, nodes: list[dict[str, Any]], silent: float = 0, finished: bool = False
) -> dict[str, Any]:
    """run.json, `silent` seconds ago, and what is read of it 300 seconds after the run began."""
    now = BEGAN + timedelta(seconds=300)
    heard = (now - timedelta(seconds=silent)).isoformat(timespec="seconds")
    card = {"format": "gristmill.run/1", "name": "r", "status": status, "started_at": BEGAN.isoformat()}
    card |= {"updated_at": heard, "finished_at": heard if finished else None, "nodes": nodes}
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(card))
    return workflow.read(run, now)


def states(panel: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in panel["nodes"]}


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    at_work = node(
        "scores", "documents", "running", partitions=40, partitions_done=12, partitions_cached=4, documents=900,
        started_at=(BEGAN + timedelta(seconds=60)).isoformat(), documents_per_second=12.5, eta_seconds=90.0, phase="",
    )  # fmt: skip
    made = node("documents", "", "done", partitions=2, partitions_done=2, seconds=6.5, counts={"documents": 1000})
    panel = write(
        tmp_path, "running", [made, node("old", "documents", identity={"x": 1}), at_work, node("last", "scores")]
    )
    assert panel["status"] == "running" and panel["seconds"] == 300
    assert states(panel) == {"documents": "done", "old": "waiting", "scores": "running", "last": "waiting"}
    scores = panel["nodes"][2]
    assert (scores["done"], scores["partitions"], scores["cached"], scores["documents"]) == (12, 40, 4, 900)
    assert (scores["rate"], scores["left"], scores["began"], scores["seconds"]) == (12.5, 90.0, 60.0, None)


def test_a_runner_that_died_is_not_at_work(tmp_path: Path) -> None:
    """SIGKILL leaves `running` behind; what a live runner says is believed for as long as it writes."""
    nodes = [node("a", "", "done"), node("b", "a", "running"), node("c", "b")]
    assert write(tmp_path, "running", nodes, silent=50)["status"] == "running"
    dead = write(tmp_path, "running", nodes, silent=61)
    assert dead["status"] == "died" and states(dead) == {"a": "done", "b": "interrupted", "c": "not run"}
    assert collect(tmp_path).overview["status"] == "died"


def test_output_of_earlier_runs_is_told_apart(tmp_path: Path) -> None:
    """A run of some stages alone, or one that failed: what it did not come to is of an earlier run, stale or not."""
    known = {"identity": {"version": 1}, "counts": {"documents": 5}, "seconds": 4.0}
    nodes = [
        node("documents", "", "cached", **known), node("language", "documents", "done", **known),
        node("pii", "documents", "failed", error="no space left"), node("code", "documents", **known),
        node("tokens", "pii", **known), node("outliers", "language", **known), node("select", "outliers", **known),
        node("heads", "documents"), node("scores", "code", **known),
    ]  # fmt: skip
    panel = write(tmp_path, "failed", nodes, finished=True)
    assert states(panel) == {
        "documents": "cached", "language": "done", "pii": "failed", "code": "earlier", "tokens": "stale",
        "outliers": "stale", "select": "stale", "heads": "not run", "scores": "earlier",
    }  # fmt: skip
    assert panel["nodes"][2]["error"] == "no space left" and panel["nodes"][3]["seconds"] == 4.0


def test_no_run_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(NotThere):
        workflow.read(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "gristmill.train/1", "status": "done"}')
    with pytest.raises(NotThere):
        workflow.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError):
        workflow.read(tmp_path)
    assert questions.at_first(LiveRun(tmp_path))  # a page that is a file is made all the same


def test_a_stage_by_itself(tmp_path: Path) -> None:
    identity = {
        "name": "near",
        "version": 3,
        "config": {"near": {"threshold": 0.7}},
        "files": ["ab"],
        "libraries": {"x": "1"},
    }
    write(tmp_path, "done", [node("documents", "", "done"), node("near", "documents", "done", identity=identity)])
    seconds = [0.5, 4.0, 1.0, 2.5, 0.25]
    for folder, times in (("near.scattered", seconds[:2]), ("near", seconds), ("nearby", [9.0])):
        (tmp_path / "ledger" / folder).mkdir(parents=True)
        for index, one in enumerate(times):
            entry = {
                "fingerprint": "f" * 64,
                "sha256": "e" * 64,
                "rows": 10 + index,
                "bytes": 100,
                "seconds": one,
                "counts": {},
            }
            (tmp_path / "ledger" / folder / f"part-{index}.json").write_text(json.dumps(entry))
    (tmp_path / "ledger" / "outputs.json").write_text(json.dumps({"documents": "documents", "near": "shuffles/near"}))
    told = questions.answer("stage", LiveRun(tmp_path), Asked({"name": "near"}))
    assert (told["folder"], told["version"], told["config"]) == ("shuffles/near", 3, {"near": {"threshold": 0.7}})
    assert [phase["phase"] for phase in told["phases"]] == ["scatter", "gather"]
    gather = told["phases"][1]
    assert gather["pieces"] == 5 and gather["rows"] == 60 and gather["seconds"] == sum(seconds)
    assert gather["median"] == statistics.median(seconds)
    assert [row["seconds"] for row in gather["slowest"]] == sorted(seconds, reverse=True)
    assert gather["slowest"][0]["piece"] == "part-1"


@pytest.mark.parametrize("name", ["", "nothing", "../near", "near.scattered", "ledger/near"])
def test_a_stage_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "done", [node("near", "", "done")])
    (tmp_path / "ledger" / "near.scattered").mkdir(parents=True)
    with pytest.raises(AskedWrong):
        questions.answer("stage", LiveRun(tmp_path), Asked({"name": name}))


def test_a_stage_with_a_hostile_name_is_looked_for_in_the_ledger_alone(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "part.json").write_text('{"seconds": 1}')
    write(tmp_path / "run", "done", [node("../../outside", "", "done")])
    (tmp_path / "run" / "ledger").mkdir()
    assert questions.answer("stage", LiveRun(tmp_path / "run"), Asked({"name": "../../outside"}))["phases"] == []


def test_stages_are_read_again_as_they_go_on(tmp_path: Path) -> None:
    nodes = [node("near", "", "running", partitions=2)]
    write(tmp_path, "running", nodes)
    run = LiveRun(tmp_path)
    assert questions.answer("stage", run, Asked({"name": "near"}))["phases"] == []
    folder = tmp_path / "ledger" / "near"
    folder.mkdir(parents=True)
    for index in range(2):
        (folder / f"part-{index}.json").write_text('{"seconds": 2, "rows": 3, "bytes": 1}')
        assert questions.answer("stage", run, Asked({"name": "near"}))["phases"][0]["pieces"] == index + 1
