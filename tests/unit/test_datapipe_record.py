"""run.json: what a dashboard can tail while a run goes on, and what it says of one that is over or dead."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from gristmill.base.errors import DataError, GristmillError
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.workflow import display, record
from gristmill.datapipe.workflow.record import NodeRecord, RunRecord, read_record, table
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step


class Length(Stage):
    """Looks at run.json, as a dashboard would, when it has done most of its partitions."""

    name, folder, config = "length", "annotations/length", None
    run: ClassVar[Path]
    seen: ClassVar[list[dict[str, Any]]] = []

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        time.sleep(0.03)
        if "look" in table["text"].to_pylist():
            time.sleep(0.3)
            self.seen.append(json.loads((self.run / "run.json").read_text()))
        if "explode" in table["text"].to_pylist():
            raise GristmillError("cannot")
        return pa.table({"length": pc.utf8_length(table["text"])})


class Chosen(Step):
    name, folder, requires, config = "chosen", "chosen", ("length",), None

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        (out / "chosen.json").write_text("0")
        return {"kept": 7}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (display, "TICK_SECONDS"), (record, "CHANGED_SECONDS"), (record, "BEAT_SECONDS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr("gristmill.base.progress.GROUND_SECONDS", 0.1)


def run(folder: Path, texts: list[str], limit: float = 0.5) -> dict[str, Any]:
    path = folder.with_suffix(".jsonl")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts) + "bad\n"
    if not path.exists() or path.read_text() != rows:
        path.write_text(rows)
    Length.run = folder
    Length.seen.clear()
    ingest = Ingest((str(path),), IngestConfig(rows_per_partition=1), limit)
    Runner(folder, ingest, [Length(), Chosen()], name="lengths", workers=0).run()
    return json.loads((folder / "run.json").read_text())


def nodes(read: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in read["nodes"]}


@pytest.mark.usefixtures("fast")
def test_a_dashboard_sees_how_far_a_node_is_and_how_fast(tmp_path: Path) -> None:
    ended = run(tmp_path / "run", ["a"] * 8 + ["look", "b"])
    seen = nodes(Length.seen[0])["length"]
    assert seen["status"] == "running" and seen["started_at"] and seen["error"] is None
    assert seen["partitions"] == 10 and seen["partitions_done"] == seen["documents"] == 8
    assert 5 < seen["documents_per_second"] < 40
    assert seen["eta_seconds"] == pytest.approx(2 / seen["documents_per_second"], rel=0.5)
    ingested = nodes(Length.seen[0])["documents"]
    assert (ingested["documents"], ingested["quarantined"], ingested["phase"]) == (10, 1, "")
    assert Length.seen[0]["finished_at"] is None and Length.seen[0]["status"] == "running"
    over = nodes(ended)["length"]
    assert (over["eta_seconds"], over["documents_per_second"], over["documents"]) == (None, None, 10)
    again = nodes(run(tmp_path / "run", ["a"] * 8 + ["look", "b"]))["length"]
    assert (again["status"], again["documents"], again["started_at"], again["partitions_cached"]) == (
        "cached", 0, None, 10,
    )  # fmt: skip


@pytest.mark.usefixtures("fast")
def test_the_end_is_told_with_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", ["a", "b"])
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("done in ") and told[-1].endswith(": 2 documents, 7 kept, 1 quarantined; nodes: 3 done")
    run(tmp_path / "run", ["a", "b"])
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].endswith(": 2 documents, 7 kept, 1 quarantined; nodes: 3 cached")
    with pytest.raises(GristmillError):
        run(tmp_path / "run", ["a", "explode"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("; nodes: 1 done, 1 failed, 1 pending")


@pytest.mark.usefixtures("fast")
def test_what_failed_or_was_stopped_is_not_running_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GristmillError):
        run(tmp_path / "run", [])
    read = json.loads((tmp_path / "run" / "run.json").read_text())
    assert read["status"] == "failed" and read["finished_at"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Length, "annotate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path / "run", ["a"])
    read = json.loads((tmp_path / "run" / "run.json").read_text())
    assert read["status"] == "interrupted" and nodes(read)["length"]["status"] == "interrupted"


def test_a_runner_that_lives_says_so_well_within_ten_seconds() -> None:
    assert record.BEAT_SECONDS + display.TICK_SECONDS < 10


@pytest.mark.usefixtures("fast")
def test_the_beat_goes_on_while_nothing_changes(tmp_path: Path) -> None:
    made = RunRecord(tmp_path, "test")
    made.add(NodeRecord("length", "stage", []))
    with display.Display(made, workers=0):
        deadline, writes = time.monotonic() + 10, set[int]()
        while len(writes) < 4 and time.monotonic() < deadline:
            if (tmp_path / "run.json").exists():
                writes.add((tmp_path / "run.json").stat().st_ino)  # each is another file
                assert json.loads((tmp_path / "run.json").read_text())["updated_at"]
            time.sleep(0.005)
    assert len(writes) >= 4


def test_who_lost_the_run_folder_writes_no_more(tmp_path: Path) -> None:
    mine = True
    made = RunRecord(tmp_path, "test", may_write=lambda: mine)
    made.write()
    mine = False
    (tmp_path / "run.json").write_text("of another runner")
    made.finish("failed")
    assert (tmp_path / "run.json").read_text() == "of another runner"


def test_a_run_that_died_is_told_from_one_that_runs(tmp_path: Path) -> None:
    made = RunRecord(tmp_path, "test")
    made.add(NodeRecord("length", "stage", [], status="running", partitions=3, eta_seconds=600))
    made.write()
    read = read_record(tmp_path)
    assert table(read)[0] == f"test: running, started {read['started_at']}"
    assert table(read)[1].endswith("0/3       0.0 s  about 10 min left")
    before = (datetime.now(UTC) - timedelta(minutes=20)).isoformat(timespec="seconds")
    first = table({**read, "updated_at": before})[0]
    assert first.endswith("; its runner has written nothing for 20 min: it died, and the same command goes on")
    assert "died" not in table({**read, "updated_at": before, "status": "done"})[0]


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = {
        "format": "gristmill.run/1", "name": "demo", "status": "done", "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:00+00:00", "command": ["demo.py"], "versions": {}, "machine": {},
        "nodes": [
            {
                "name": "documents", "kind": "ingest", "requires": [], "identity": None, "status": "done",
                "partitions": 1, "partitions_done": 1, "partitions_cached": 0, "seconds": 1.5,
                "counts": {"documents": 3}, "error": None,
            }
        ],
        "quarantine": {"total": 0, "documents": 3, "by_reason": {}},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert table(read_record(tmp_path))[1].split() == ["documents", "done", "1/1", "1.5", "s", "documents", "3"]
    made = RunRecord(tmp_path, "demo")
    assert made.add(NodeRecord("documents", "ingest", [])).seconds == 1.5


@pytest.mark.parametrize("text", ["", '{"format": "gris', "[]", "3", '{"format": "gristmill.run/1"}'])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for read in (lambda: read_record(tmp_path), lambda: RunRecord(tmp_path, "test")):
        with pytest.raises(DataError, match=r"run\.json: .*delete it"):
            read()
