"""gc: what no run needs goes; what a run, or anybody else, may want stays, and nothing outside is ever touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import sha256_folder
from gristmill.datapipe import cli
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.workflow.gc import Swept, gc
from gristmill.datapipe.workflow.lock import RunLock
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Bucket, Inputs, Node, Shuffle, Stage, Step
from gristmill.datapipe.workflow.verify import verify

CALLS: list[str] = []


class Length(Stage):
    config = None

    def __init__(self, name: str = "length") -> None:
        self.name, self.folder = name, f"annotations/{name}"

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        CALLS.append(self.name)
        return pa.table({"length": pc.utf8_length(table["text"])})


class Total(Step):
    """total_NAME: totals/NAME."""

    requires = ("length",)
    config = None
    resumes = True
    broken: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name, self.folder = f"total_{name}", f"totals/{name}"

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        CALLS.append(self.name)
        (out / "progress").write_text("half way")
        if self.broken:
            raise ValueError("broken")
        (out / "total.json").write_text(str(sum(inputs.table("length")["length"].to_pylist())))
        return {}


class Numbers(Shuffle):
    """numbers: rows with their lengths, on their way to doubled."""

    name, folder, config = "numbers", "shuffles/numbers", None
    columns, disposable = ("text",), True
    broken: ClassVar[bool] = False

    def scatter(self, table: pa.Table, previous: Mapping[str, pa.Table], start: int) -> pa.Table:
        CALLS.append("scatter")
        keys = pa.array(np.arange(start, start + len(table)), pa.uint64())
        return pa.table({"key": keys, "row": keys.cast(pa.int64()), "length": pc.utf8_length(table["text"])})

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        CALLS.append("numbers")
        if self.broken:
            raise ValueError("broken")
        return entries


class Doubled(Shuffle):
    name, folder, config = "doubled", "annotations/doubled", None
    over, by, onto, aligned = "numbers", "row", "documents", True

    def gather(self, entries: pa.Table, bucket: Bucket, previous: Mapping[str, pa.Table]) -> pa.Table:
        CALLS.append("doubled")
        return pa.table({"twice": pc.multiply(entries.sort_by("row")["length"], 2)})


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLS.clear()


ALL = (Length(), Length("extra"), Total("a"), Total("b"), Numbers(), Doubled())
FEWER = (Length(), Total("a"), Numbers(), Doubled())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    texts = [{"text": "x" * n} for n in range(1, 8)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts) + "bad\n")
    make(tmp_path / "run", ALL)
    return tmp_path / "run"


def make(folder: Path, nodes: tuple[Node, ...] = FEWER) -> dict[str, str]:
    """Runs the pipeline; answers how each node came out."""
    ingest = Ingest((str(folder.parent / "in.jsonl"),), IngestConfig(rows_per_partition=3), 0.5)
    Runner(folder, ingest, nodes, workers=0).run()
    return {node["name"]: node["status"] for node in json.loads((folder / "run.json").read_text())["nodes"]}


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def freed(swept: Swept) -> set[str]:
    return {item.path for item in swept.freed}


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_that_is_whole_has_nothing_to_free(run: Path) -> None:
    before = tree(run)
    assert gc(run) == Swept((), ()) and tree(run) == before


def test_outputs_and_entries_of_former_nodes_go_and_the_rest_is_still_cached(run: Path) -> None:
    make(run)
    before = tree(run)
    would = gc(run, dry_run=True)
    assert tree(run) == before
    assert gc(run) == would
    assert freed(would) == {"annotations/extra", "ledger/extra", "totals/b", "ledger/total_b"}
    gone = {path: data for path, data in before.items() if path.startswith(tuple(f"{name}/" for name in freed(would)))}
    assert sum(item.bytes for item in would.freed) == sum(len(data) for data in gone.values())
    assert tree(run) == {path: data for path, data in before.items() if path not in gone}
    assert set(make(run).values()) == {"cached"} and verify(run)
    assert gc(run) == Swept((), ())
    assert make(run, ALL)["extra"] == "done"  # and back again


def test_what_is_not_as_a_former_node_left_it_stays_and_is_told(run: Path) -> None:
    make(run)
    (run / "totals" / "b" / "notes.txt").write_text("mine")
    (run / "annotations" / "extra").rename(run / "annotations" / "extra_2025")  # somebody wants to keep it
    (run / "training" / "mine").mkdir(parents=True)
    (run / "training" / "mine" / "weights").write_text("dear")
    before = tree(run)
    swept = gc(run)
    assert freed(swept) == {"ledger/extra"} and [item.path for item in swept.kept] == ["totals/b"]
    assert tree(run) == {path: data for path, data in before.items() if not path.startswith("ledger/extra/")}


def test_a_former_stage_of_which_one_part_is_not_known_stays(run: Path) -> None:
    (run / "ledger" / "extra" / "part-00000-00001.parquet.json").unlink()  # it was being made anew
    make(run)
    swept = gc(run)
    assert "annotations/extra" not in freed(swept) and [item.path for item in swept.kept] == ["annotations/extra"]


@pytest.mark.parametrize(
    "place", ["annotations/extra/.notes", "annotations/extra/part-mine.parquet", "totals/b/.git/x"]
)
def test_what_somebody_put_into_a_former_output_keeps_it(run: Path, place: str) -> None:
    make(run)
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).write_text("mine")
    swept = gc(run)
    assert (run / place).read_text() == "mine"
    assert any(place.startswith(item.path) for item in swept.kept)


def test_folders_named_like_a_former_node_are_nobodys_business(run: Path) -> None:
    mine = run / "training" / "extra" / "part-of-my-data.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    make(run)
    gc(run)
    assert mine.read_text() == "mine"


def test_one_part_that_was_overwritten_keeps_all(run: Path) -> None:
    part = sorted((run / "annotations" / "extra").iterdir())[-1]
    part.write_bytes(b"x" * part.stat().st_size)
    make(run)
    assert "annotations/extra" not in freed(gc(run)) and part.exists()


def test_half_written_files_of_dead_processes_go(run: Path) -> None:
    before, process = tree(run), dead()
    temporary = f"part-00000-00000.parquet.tmp-{process}-140"
    for place in ("documents", "annotations/length", "ledger/length", "totals/a", "."):
        (run / place / f".{temporary}").write_text("half")
    old, only = run / "totals" / f".a.old-{process}", run / "totals" / f".gone.old-{process}"
    checkpoint = run / "totals" / "a" / f".step-1.tmp-{process}"
    for folder in (old, only, checkpoint):
        folder.mkdir()
        (folder / "file").write_text("12345")
    living, long_ago = (run / "documents" / f".{name}.parquet.tmp-{os.getpid()}-1" for name in ("new", "old"))
    living.write_text("being written")
    long_ago.write_text("by a process that had this number once")
    os.utime(long_ago, (1, time.time() - 7200))
    assert {item.path: item.bytes for item in gc(run, dry_run=True).freed} == {
        "documents": 4 + 38, "annotations/length": 4, "ledger/length": 4, "totals/a": 9, ".": 4, "totals": 5,
    }  # fmt: skip
    swept = gc(run)
    assert [(item.path, item.why.partition(";")[0]) for item in swept.kept] == [
        (f"totals/{only.name}", "the only copy of gone")
    ]
    assert only.exists() and living.exists()
    shutil.rmtree(only)
    living.unlink()
    assert tree(run) == before


def test_what_a_stopped_step_or_shuffle_goes_on_from_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "in.jsonl").write_text('{"text": "another"}\n')
    with monkeypatch.context() as patch:
        patch.setattr(Numbers, "broken", True)
        with pytest.raises(GristmillError, match="numbers"):
            make(run, (Numbers(), Length(), Total("a")))
        patch.setattr(Total, "broken", True)
        patch.setattr(Numbers, "broken", False)
        with pytest.raises(GristmillError, match="total_a"):
            make(run, (Length(), Total("a"), Numbers()))
    shutil.copytree(run, copy := run.with_name("copy"))
    swept = gc(run)
    kept = {item.path.partition("-")[0]: item.why for item in swept.kept}
    assert kept == {".work/total_a": "total_a goes on from it", ".work/scattered/numbers": "numbers goes on from it"}
    CALLS.clear()
    make(run, (Length(), Total("a"), Numbers()))
    assert CALLS == ["total_a", "numbers"]  # nothing is scattered again
    make(copy, (Length(),))  # but once neither is a node any more, what they left is of no use
    assert {path.partition("-")[0] for path in freed(gc(copy))} >= {
        ".work/total_a", ".work/scattered/numbers", "ledger/numbers.scattered",
    }  # fmt: skip
    assert not list((copy / ".work").glob("*-*")) and not list((copy / ".work" / "scattered").iterdir())


def test_work_of_a_step_that_is_done_goes(run: Path) -> None:
    left = run / ".work" / f"total_a-{'0' * 16}"
    left.mkdir(parents=True)
    (left / "progress").write_text("of another setting")
    other = (
        run / ".work" / "renamed" / "documents" / "part-00000-00000.parquet"
    )  # documents on their way to other names
    other.parent.mkdir(parents=True)
    other.write_text("not told by its name whether it is of use: the runner's")
    assert freed(gc(run)) == {f".work/{left.name}"} and not left.exists() and other.exists()


def test_shuffles_that_are_removed_are_made_again_only_where_something_needs_them(run: Path) -> None:
    before = sha256_folder(run / "shuffles"), sha256_folder(run / "annotations")
    assert freed(gc(run)) == set()
    assert freed(gc(run, shuffles=True)) == {"shuffles/numbers"} and not (run / "shuffles" / "numbers").exists()
    assert verify(run)  # what is not there on purpose is not missed
    CALLS.clear()
    assert set(make(run, ALL).values()) == {"cached"} and not CALLS
    next((run / "annotations" / "doubled").glob("*.parquet")).unlink()
    status = make(run, ALL)
    assert set(CALLS) == {"scatter", "numbers", "doubled"}
    assert {name for name, how in status.items() if how != "cached"} == {"numbers", "doubled"}
    assert (sha256_folder(run / "shuffles"), sha256_folder(run / "annotations")) == before


def test_what_is_no_run_or_at_work_is_refused(run: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for folder in (tmp_path, run / "annotations", run / "ledger", tmp_path / "nowhere"):
        with pytest.raises(GristmillError, match="not a run folder"):
            gc(folder, shuffles=True)
    (run / "run.json").write_text('{"format": "gristmill.training/1", "nodes": []}')
    with pytest.raises(GristmillError, match="not of a pipeline's run"):
        gc(run, shuffles=True)
    (run / "run.json").write_bytes(before["run/run.json"])
    with RunLock(run), pytest.raises(GristmillError, match="at work here"):
        gc(run, shuffles=True)
    assert tree(tmp_path) == before


def test_links_are_not_followed_and_nothing_outside_is_removed(run: Path, tmp_path: Path) -> None:
    make(run)
    outside = tmp_path / "outside"
    (outside / "scattered" / "nobody").mkdir(parents=True)
    (outside / f".x.tmp-{dead()}-1").write_text("not ours")
    for name in ("annotations/extra", "shuffles/numbers"):  # moved to another disk by hand
        shutil.move(run / name, outside / Path(name).name)
        (run / name).symlink_to(outside / Path(name).name)
    (run / ".work").rename(outside / "work")
    (run / ".work").symlink_to(outside)
    (run / "documents" / f".x.tmp-{dead()}-1").symlink_to(outside / "numbers")
    outputs = json.loads((run / "ledger" / "outputs.json").read_text())
    hostile = {"numbers": "../outside/numbers", "a": str(outside), "b": "", "c": "shuffles/../../outside/extra"}
    (run / "ledger" / "outputs.json").write_text(json.dumps({**outputs, **hostile}))
    before = tree(outside)
    gc(run, shuffles=True)
    assert tree(outside) == before
    run.with_name("link").symlink_to(run)
    gc(run.with_name("link"), shuffles=True)
    assert tree(outside) == before and (run / "annotations" / "extra").is_symlink()


def test_killed_while_it_removes_it_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(run)

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        gc(run)
    assert not (run / "annotations" / "extra").exists()  # no half of it could be taken for the whole
    os.utime(next((run / "annotations").glob(".extra.removed-*")), (1, 1))
    for path in (run / "annotations").glob(".extra.removed-*/*"):
        os.utime(path, (1, 1))
    assert {"annotations", "totals/b", "ledger/extra"} <= freed(gc(run))
    assert not list(run.rglob(".*removed*")) and set(make(run).values()) == {"cached"}


def test_only_what_was_last_changed_so_long_ago(run: Path) -> None:
    make(run)
    for path in [*(run / "totals" / "b").iterdir(), run / "totals" / "b"]:
        os.utime(path, (1, time.time() - 3 * 86400))
    assert freed(gc(run, older_than=4 * 86400)) == set()
    assert freed(gc(run, older_than=12 * 3600)) == {"totals/b"}
    with pytest.raises(UsageError, match="--older-than 7days: write a duration as 90s, 30m, 12h, 7d or 4w"):
        cli.gc(run, older_than="7days")


def test_what_cannot_be_removed_is_told_by_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(run)

    def refuse(path: Path, _to: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(GristmillError, match=r"annotations/extra: Permission denied; mend that and run gc again"):
        gc(run)


def test_the_command_tells_what_it_would_free_and_frees_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(run)
    size = sum(len(data) for data in tree(run / "annotations" / "extra").values())
    cli.gc(run, dry_run=True)
    out = capsys.readouterr().out
    assert f"{size:,} bytes  annotations/extra  (no node extra any more)" in out
    assert out.splitlines()[-1].startswith("would free ") and (run / "annotations" / "extra").exists()
    cli.gc(run, older_than="1h")
    assert capsys.readouterr().out == "freed 0 bytes\n"
    cli.gc(run)
    assert capsys.readouterr().out.splitlines()[-1].startswith("freed ")
    assert not (run / "annotations" / "extra").exists()
