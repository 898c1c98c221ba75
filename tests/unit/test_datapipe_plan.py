"""What a run would do, and doing a part of it: the plan says what the runner then does, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from gristmill.base.errors import UsageError
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.plan import Planned, differences, plan, table
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Bucket, Inputs, Shuffle, Stage, Step


class Length(Stage):
    name, folder = "length", "annotations/length"
    calls: ClassVar[list[int]] = []

    def __init__(self, unit: int) -> None:
        self.config = {"unit": unit}

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        self.calls.append(len(table))
        return pa.table({"length": pc.divide(pc.utf8_length(table["text"]), self.config["unit"])})


class Total(Step):
    name, folder, requires, config = "total", "total", ("length",), None
    calls: ClassVar[list[int]] = []

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        total = sum(inputs.table("length")["length"].to_pylist())
        self.calls.append(total)
        (out / "total.json").write_text(json.dumps(total))
        return {"total": total}


class Other(Total):
    name, folder, requires = "other", "other", ("documents",)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        (out / "other.json").write_text("0")
        return {}


@pytest.fixture(autouse=True)
def _forget() -> None:
    Length.calls.clear()
    Total.calls.clear()


def runner(folder: Path, texts: list[str], unit: int = 1, **options: object) -> Runner:
    path = folder.with_suffix(".jsonl")
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ingest = Ingest((str(path),), IngestConfig(rows_per_partition=2))
    chosen = RunOptions(**options)  # pyright: ignore[reportArgumentType]
    return Runner(folder, ingest, [Length(unit), Total(), Other()], workers=0, options=chosen)


def states(planner: Runner) -> dict[str, str]:
    return {each.name: each.state for each in planner.plan()}


def test_a_plan_says_what_runs_and_touches_nothing(tmp_path: Path) -> None:
    folder, texts = tmp_path / "run", ["a", "bb", "ccc"]
    assert states(runner(folder, texts)) == dict.fromkeys(("length", "total", "other"), "follows") | {
        "documents": "runs"
    }
    assert not folder.exists()
    runner(folder, texts).run()
    planned = runner(folder, texts).plan()
    assert {each.state for each in planned} == {"cached"} and table(planned, 2)[-1] == "nothing to do"


def test_a_plan_says_why(tmp_path: Path) -> None:
    folder, texts = tmp_path / "run", ["a", "bb", "ccc"]
    runner(folder, texts).run()
    planned = {each.name: each for each in runner(folder, texts, unit=2).plan()}
    assert planned["length"].why == ("config.unit 1 -> 2",) and planned["length"].left == 2
    assert planned["length"].documents == 3 and planned["length"].seconds is not None
    assert planned["total"].state == "follows" and planned["total"].why == ("after length",)
    assert planned["other"].state == "cached"
    next((folder / "annotations" / "length").iterdir()).unlink()
    planned = {each.name: each for each in runner(folder, texts).plan()}
    assert planned["length"].why == ("1 pieces whose output is gone or altered",)
    lines = table(list(planned.values()), 2)
    assert any("length" in line and "runs" in line and "1/2" in line for line in lines)
    assert lines[-1].startswith("2 of 4 nodes to run: about ")


def test_a_plan_says_why_a_shuffle_is_scattered_again(tmp_path: Path) -> None:
    class Same(Shuffle):
        name, folder, by = "same", "shuffles/same", "key"

        def __init__(self, seed: int) -> None:
            self.config = {"seed": seed}

        def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
            return pa.table({"key": pa.array(range(start, start + len(table)), pa.uint64())})

        def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
            return entries

    def planned(seed: int, again: frozenset[str] = frozenset()) -> Planned:
        return plan(tmp_path / "run", ingest, [Same(seed)], again)[1]

    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    ingest = Ingest((str(tmp_path / "in.jsonl"),), IngestConfig(rows_per_partition=1))
    Runner(tmp_path / "run", ingest, [Same(1)], workers=0).run()
    assert planned(1).state == "cached"
    changed = planned(2)
    assert changed.why == ("config.seed 1 -> 2",) and changed.left == 2 and changed.seconds is not None
    assert planned(1, frozenset(["same"])).why == ("asked for",)


def test_force_does_one_node_again_and_from_all_that_follow(tmp_path: Path) -> None:
    folder, texts = tmp_path / "run", ["a", "bb", "ccc"]
    runner(folder, texts).run()
    assert (len(Length.calls), len(Total.calls)) == (2, 1)
    runner(folder, texts, force=("length",)).run()
    assert (len(Length.calls), len(Total.calls)) == (4, 1)  # it came out as it was
    assert states(runner(folder, texts, start="length")) == {
        "documents": "cached", "length": "runs", "total": "follows", "other": "cached",
    }  # fmt: skip
    runner(folder, texts, start="length").run()
    assert (len(Length.calls), len(Total.calls)) == (6, 2)


def test_only_does_what_a_node_needs_and_no_more(tmp_path: Path) -> None:
    folder, texts = tmp_path / "run", ["a", "bb", "ccc"]
    runner(folder, texts, only=("total",)).run()
    assert Total.calls == [6] and not (folder / "other").exists()
    listed = json.loads((folder / "run.json").read_text())["nodes"]
    assert {node["name"]: node["status"] for node in listed} == {
        "documents": "done", "length": "done", "total": "done", "other": "pending",
    }  # fmt: skip
    with pytest.raises(UsageError, match="--only totl: no such node; did you mean 'total'"):
        runner(folder, texts, only=("totl",))


def test_differences_name_the_place() -> None:
    before = {"config": {"near": {"threshold": 0.7, "bands": 0}}, "files": ["a"], "version": 1}
    now = {"config": {"near": {"threshold": 0.8, "bands": 0}, "more": [1]}, "files": ["b"], "version": 1}
    assert differences(before, now) == [
        "config.near.threshold 0.7 -> 0.8", "config.more None -> list of 1", "model files changed",
    ]  # fmt: skip
