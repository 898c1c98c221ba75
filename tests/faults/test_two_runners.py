"""Two runners on one run folder: on one machine the second is refused and harms nothing; on two, one that stood still
for long loses the folder, and hears of it before it can do harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import small_filter
from tests.support.outputs import differences
from tests.support.scripts import ROOT, environment

ELSEWHERE = [sys.executable, str(ROOT / "tests" / "support" / "elsewhere.py")]


@pytest.fixture
def first(corpus: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A runner that stands still in the middle of its run, in tmp_path / "run"; SIGCONT wakes it."""
    process = subprocess.Popen(
        small_filter.command(corpus, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "annotations").glob("*/part-*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def test_the_second_is_refused_and_the_first_is_unharmed(
    first: subprocess.Popen[str], corpus: Path, filtered: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path / "run")
    code, error = small_filter.run(corpus, tmp_path / "run")
    assert code == 1 and len(error.strip().splitlines()) == 1
    assert f"another run (process {first.pid} on {os.uname().nodename}) is at work here" in error
    assert contents(tmp_path / "run") == before
    code, error = ended(first)
    assert code == 0, error
    assert differences(tmp_path / "run", filtered) == []


def test_on_another_machine_one_takes_over_who_stood_still_and_that_one_gives_way(
    first: subprocess.Popen[str], corpus: Path, filtered: Path, tmp_path: Path
) -> None:
    variables = environment(ELSEWHERE_HOST="elsewhere", ELSEWHERE_STALE="2")
    second = subprocess.Popen(
        [*ELSEWHERE, *small_filter.command(corpus, tmp_path / "run")[1:]], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=variables,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while json.loads((tmp_path / "run" / ".lease").read_text())["host"] != "elsewhere":
        assert second.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    code, error = ended(first)  # while the second is at work
    assert code == 1 and "another runner has taken this run over" in error.strip().splitlines()[-1], error
    assert "Traceback" not in error
    _, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    assert differences(tmp_path / "run", filtered) == []


def contents(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
