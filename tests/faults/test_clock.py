"""The wall clock decides nothing: it may jump in a run and between runs, and files may be of the future or of 1970."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.outputs import differences
from tests.support.scripts import ROOT, environment

from gristmill.base.files import read_json

DAY = 86_400
FUTURE = 4_102_444_800  # 2100
ELSEWHERE = [sys.executable, str(ROOT / "tests" / "support" / "elsewhere.py")]


def run(corpus: Path, folder: Path, clock: str) -> None:
    command = [*ELSEWHERE, *small_filter.command(corpus, folder)[1:]]
    done = subprocess.run(
        command, env=environment(ELSEWHERE_CLOCK=clock), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def status(folder: Path) -> set[str]:
    return {node["status"] for node in read_json(folder / "run.json")["nodes"]}


def test_jumps_in_a_run_and_between_runs(corpus: Path, filtered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(corpus, folder, f"0,{DAY},{-DAY},{400 * DAY}")
    assert differences(folder, filtered) == []
    for clock in (f"{-3650 * DAY}", f"{3650 * DAY}"):  # nothing is done again, whenever it was done
        run(corpus, folder, clock)
        assert status(folder) == {"cached"}
    next((folder / "annotations" / "heuristics").glob("part-*.parquet")).unlink()
    run(corpus, folder, f"{-3650 * DAY}")
    assert differences(folder, filtered) == []


@pytest.mark.parametrize("when", [0, FUTURE], ids=["1970", "2100"])
def test_times_of_files(corpus: Path, filtered: Path, tmp_path: Path, when: int) -> None:
    """Of the inputs, they say at most that a file should be read again; of the outputs, nothing."""
    own = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    folder = tmp_path / "run"
    small_filter.run_here(own, folder)
    for path in (*own.rglob("*"), *folder.rglob("*")):
        os.utime(path, (when, when))
    small_filter.run_here(own, folder)
    assert status(folder) == {"cached"}
    assert differences(folder, filtered) == []
    _alter(own / "web.jsonl")  # its time says now what the clock says
    small_filter.run_here(own, folder)
    assert "done" in status(folder)
    shutil.copy(corpus / "web.jsonl", own / "web.jsonl")
    os.utime(own / "web.jsonl", (when, when))
    small_filter.run_here(own, folder)
    assert differences(folder, filtered) == []


def test_the_known_limit_same_size_and_same_time(corpus: Path, tmp_path: Path) -> None:
    """Who rewrites an input and sets its time back, to the nanosecond, is not noticed; docs/reliability.md says so."""
    own = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    small_filter.run_here(own, tmp_path / "run")
    before = (own / "web.jsonl").stat()
    _alter(own / "web.jsonl")
    os.utime(own / "web.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    small_filter.run_here(own, tmp_path / "run")
    assert status(tmp_path / "run") == {"cached"}
    (own / "web.jsonl").touch()
    small_filter.run_here(own, tmp_path / "run")
    assert "done" in status(tmp_path / "run")


def _alter(path: Path) -> None:
    """The first document, a letter changed; as long as it was."""
    first, rest = path.read_text().split("\n", 1)
    values = json.loads(first)
    values["text"] = values["text"].replace("e", "a", 1)
    path.write_text(f"{json.dumps(values)}\n{rest}")
