"""The runner: does what is missing, nothing else, in any order and number of workers, and says why when it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.base.errors import DataError, GristmillError, PartialError, UsageError
from gristmill.base.files import sha256_folder
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.workflow.executor import InProcess
from gristmill.datapipe.workflow.ledger import Entry, Ledger
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Inputs, Resources, Stage, Step
from gristmill.datapipe.workflow.verify import verify
from gristmill.datapipe.workflow.watch import Limit
from gristmill.datapipe.workflow.worker import Job, Outcome


class Length(Stage):
    name, folder, version = "length", "annotations/length", 1
    calls: ClassVar[list[int]] = []

    def __init__(self, unit: int = 1) -> None:
        self.config = {"unit": unit}

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        self.calls.append(len(table))
        if "explode" in table["text"].to_pylist():
            raise ValueError("this stage has a bug")
        return pa.table({"length": pc.divide(pc.utf8_length(table["text"]), self.config["unit"])})


class Total(Step):
    name, folder, version = "total", "total", 1
    requires = ("length",)
    config = None
    calls: ClassVar[list[int]] = []

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        total = sum(inputs.table("length")["length"].to_pylist())
        self.calls.append(total)
        (out / "total.json").write_text(json.dumps(total))
        return {"total": total}


class Share(Stage):
    """Reads a row-aligned annotation and a whole output."""

    name, folder, version = "share", "annotations/share", 1
    requires, needs = ("length",), ("total",)
    config = None

    def setup(self, folders: Mapping[str, Path]) -> None:
        self._total = json.loads((folders["total"] / "total.json").read_text())

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"share": pc.divide(previous["length"]["length"].cast(pa.float64()), float(self._total))})


@pytest.fixture(autouse=True)
def _forget() -> None:
    Length.calls.clear()
    Total.calls.clear()


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def runner(run: Path, *inputs: Path, unit: int = 1, workers: int = 0, limit: float = 0.01) -> Runner:
    ingest = Ingest(tuple(str(path) for path in inputs), IngestConfig(rows_per_partition=3), limit)
    return Runner(run, ingest, [Length(unit), Total(), Share()], workers=workers)


def status(run: Path) -> dict[str, str]:
    return {node["name"]: node["status"] for node in json.loads((run / "run.json").read_text())["nodes"]}


def test_a_second_run_does_nothing_and_a_change_does_its_part(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", ["x" * n for n in range(1, 8)]), write(tmp_path / "b.jsonl", ["yy", "zzz"])
    run = tmp_path / "run"
    runner(run, a, b).run()
    assert Length.calls == [3, 3, 1, 2] and Total.calls == [33]
    runner(run, a, b).run()
    assert len(Length.calls) == 4 and set(status(run).values()) == {"cached"}
    write(b, ["yy", "zzzz"])  # one input changes: its partition, and what depends on all of them
    runner(run, a, b).run()
    assert Length.calls[4:] == [2] and Total.calls == [33, 34]
    runner(run, a, b, unit=2).run()  # a setting changes: all partitions of that stage
    assert len(Length.calls) == 9
    runner(run, a).run()  # an input goes: its partitions go too
    assert len(list((run / "annotations" / "share").glob("*.parquet"))) == 3


def test_an_output_that_comes_out_the_same_stops_the_change(tmp_path: Path) -> None:
    path, run = write(tmp_path / "a.jsonl", ["ab", "c"]), tmp_path / "run"
    runner(run, path).run()
    write(path, ["xy", "z"])  # other text, same lengths
    runner(run, path).run()
    assert len(Length.calls) == 2 and len(Total.calls) == 1
    assert status(run)["total"] == "cached"


def test_bytes_do_not_depend_on_workers_or_a_deleted_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where Ray's workers find this module's stages
    path = write(tmp_path / "a.jsonl", ["x" * n for n in range(1, 30)])
    for workers in (0, 2):
        runner(tmp_path / f"run{workers}", path, workers=workers).run()
    victim = sorted((tmp_path / "run2" / "annotations" / "length").glob("*.parquet"))[4]
    victim.unlink()
    runner(tmp_path / "run2", path, workers=0).run()
    for name in ("documents", "annotations", "total"):
        assert sha256_folder(tmp_path / "run0" / name) == sha256_folder(tmp_path / "run2" / name)


def test_a_failed_partition_fails_the_run_after_the_others(tmp_path: Path) -> None:
    path, run = write(tmp_path / "a.jsonl", ["a", "b", "c", "explode", "e", "explode", "g"]), tmp_path / "run"
    with pytest.raises(GristmillError, match=r"length, part-00000-00001\.parquet: .*ValueError: this stage has a bug"):
        runner(run, path).run()
    assert len(list((run / "annotations" / "length").glob("*.parquet"))) == 2
    assert status(run) == {"documents": "done", "length": "failed", "total": "pending", "share": "pending"}
    write(path, ["a", "b", "c", "mended", "e", "f", "g"])
    Length.calls.clear()
    runner(run, path).run()
    assert Length.calls == [3]  # only the partition that had failed


def test_too_much_quarantine_ends_the_run_with_exit_4_and_keeps_what_is_done(tmp_path: Path) -> None:
    path, run = tmp_path / "a.jsonl", tmp_path / "run"
    path.write_text('{"text": "good"}\n{"text": "fine"}\nbad\n')
    with pytest.raises(PartialError, match=r"1 of 3 input rows \(33.33%\)") as caught:
        runner(run, path).run()
    assert caught.value.exit_code == 4
    runner(run, path, limit=0.5).run()
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and record["quarantine"]["by_reason"] == {"not JSON": 1}
    assert pq.ParquetFile(run / "annotations" / "share" / "part-00000-00000.parquet").metadata.num_rows == 2


def test_a_run_folder_in_use_is_refused(tmp_path: Path) -> None:
    import fcntl

    path, run = write(tmp_path / "a.jsonl", ["a"]), tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GristmillError, match="another run"):
            runner(run, path).run()
    runner(run, path).run()


def test_verify_names_what_was_altered(tmp_path: Path) -> None:
    path, run = write(tmp_path / "a.jsonl", ["a", "b", "c", "d"]), tmp_path / "run"
    runner(run, path).run()
    assert verify(run) == 7  # two partitions of documents, length and share, and total
    victim = run / "annotations" / "length" / "part-00000-00001.parquet"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="part-00000-00001"):
        verify(run)


class Note(Step):
    """Writes a partition that never changes, and a file beside it that does."""

    name, folder = "note", "note"
    requires = ("length",)

    def __init__(self, text: str) -> None:
        self.config = {"text": text}

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        pq.write_table(pa.table({"x": [1]}), out / "part-0.parquet")
        (out / "beside.txt").write_text(self.config["text"])
        return {}


class Echo(Step):
    name, folder = "echo", "echo"
    requires = ("note",)
    config = None

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        (out / "heard.txt").write_text((inputs.folders["note"] / "beside.txt").read_text())
        return {}


def noted(run: Path, path: Path, text: str) -> str:
    Runner(run, Ingest((str(path),)), [Length(), Note(text), Echo()], workers=0).run()
    return (run / "echo" / "heard.txt").read_text()


def test_a_step_sees_every_file_that_another_wrote(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a"])
    assert noted(tmp_path / "run", path, "one") == "one"
    assert noted(tmp_path / "run", path, "two") == "two"


def test_killed_between_output_and_entry_an_old_entry_does_not_vouch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = write(tmp_path / "a.jsonl", ["a"]), tmp_path / "run"
    noted(run, path, "one")

    def killed(_ledger: Ledger, node: str, _piece: str, _entry: Entry) -> None:
        assert node == "note"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "write", killed)
        noted(run, path, "two")
    assert (run / "note" / "beside.txt").read_text() == "two"  # the output is there, its entry is not
    assert noted(run, path, "one") == "one"


def test_an_input_may_go_even_one_that_gave_no_document(tmp_path: Path) -> None:
    bad, good, run = tmp_path / "a.jsonl", write(tmp_path / "b.jsonl", ["x"] * 5), tmp_path / "run"
    bad.write_text("nothing good\n")
    runner(run, bad, good, limit=0.9).run()
    runner(run, good).run()
    assert {path.name for path in (run / "annotations" / "share").glob("*.parquet")} == {
        "part-00000-00000.parquet",
        "part-00000-00001.parquet",
    }
    assert verify(run) == 7


def test_infeasible_resources_are_refused_not_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a"])
    wanting = runner(tmp_path / "run", path, workers=1)
    wanting.nodes["length"].resources = Resources(cpus=1, gpus=4)
    with pytest.raises(GristmillError, match=r"GPU 4 \(largest node has 0\)"):
        wanting.run()


def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(GristmillError, match=f"{path}: cannot be read"):
            ledger.file_sha256(path)


def test_pieces_have_a_time_limit_and_steps_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, Limit | None] = {}

    class Noting(InProcess):
        def map(
            self, job: Job, items: Sequence[Any], resources: Resources, limit: Limit | None = None
        ) -> Iterator[Outcome]:
            limits[job.name] = limit
            return super().map(job, items, resources, limit)

    monkeypatch.setattr("gristmill.datapipe.workflow.runner.start", lambda _workers, _say: Noting())
    path, run = write(tmp_path / "a.jsonl", ["a", "b"]), tmp_path / "run"
    Runner(run, Ingest((str(path),)), [Length(), Total(), Share()], options=RunOptions(timeout="5m")).run()
    limit = Limit(300, run / ".work" / "hung")
    assert limits == {"documents: look": limit, "documents": limit, "length": limit, "total": None, "share": limit}
    with pytest.raises(UsageError, match="--timeout soon: write a duration"):
        Runner(run, Ingest((str(path),)), [], options=RunOptions(timeout="soon"))
