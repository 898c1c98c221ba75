"""`trainer run --launcher local`: the same weights as one process, and what is told when one of several is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.training_runs import same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import TrainConfig

SECONDS = 120.0  # at most, for what takes a few on a machine that is not busy
MODEL = {
    "width": 16, "layers": 2, "heads": 2, "kv-heads": 1, "head-dim": 8, "experts": 4, "top-k": 2, "expert-width": 16,
}  # fmt: skip
STEPS = 80


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def command(shards: Path, output: Path, *more: str) -> list[str]:
    values = {
        "mixture": "both", "data": shards, "output": output, "tokens": STEPS * 4 * 32, "batch.sequence": 32,
        "batch.sequences": 4, "batch.micro": 2, "checkpoint-every": 5, "validate-tokens": 0,
    }  # fmt: skip
    values |= {f"model.{name}": value for name, value in MODEL.items()}
    flags = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "gristmill.trainer", "run", *flags, *more]


TWO = ("--launcher", "local", "--nproc", "2")


def until(happens: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := happens()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def started(words: list[str], folder: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A run under way: a checkpoint is there. Answers it and its processes, in the order of their ranks."""
    running = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: checkpoint.latest(folder) or running.poll() is not None)
    assert running.poll() is None, running.communicate()
    children = psutil.Process(running.pid).children()
    return running, sorted(children, key=lambda child: int(child.environ()["RANK"]))


def test_one_of_two_is_lost_and_then_both_are_told_to_stop(shards: Path, tmp_path: Path) -> None:
    """The run goes on from there each time, at last in one process, and ends as one that was never disturbed."""
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    subprocess.run(command(shards, whole), check=True, capture_output=True)
    words = command(shards, disturbed)

    running, ranks = started([*words, *TWO], disturbed)
    assert len(ranks) == 2
    ranks[1].kill()
    said = running.communicate(timeout=SECONDS)[1]
    assert running.returncode == 1
    assert said.splitlines()[-1].startswith("trainer: process 1 of 2 was ended by SIGKILL; what is done is kept")
    assert "Traceback" not in said and not any(child.is_running() for child in ranks)

    at = checkpoint.latest(disturbed)
    running, ranks = started([sys.executable, "-m", "gristmill.trainer", "resume", str(disturbed)], disturbed)
    until(lambda: checkpoint.latest(disturbed) != at)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=SECONDS)[1]
    assert running.returncode == 143 and f"trainer resume {disturbed} goes on" in said
    assert json.loads((disturbed / "run.json").read_text())["status"] == "interrupted"
    assert checkpoint.read_state(checkpoint.newest(disturbed)).position.step < STEPS

    subprocess.run(words, check=True, capture_output=True)  # its launcher decides nothing
    assert json.loads((disturbed / "run.json").read_text())["status"] == "done"
    assert same_weights(whole, disturbed)


def test_no_process_outlives_the_command(shards: Path, tmp_path: Path) -> None:
    running, ranks = started([*command(shards, tmp_path / "run"), *TWO], tmp_path / "run")
    running.kill()
    running.communicate()
    until(lambda: not any(child.is_running() for child in ranks))


def test_what_cannot_be_is_told_in_one_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nproc 2: nothing starts them; give --launcher"):
        TrainConfig(nproc=2)
    words = [*command(shards, tmp_path / "run"), *TWO, "--parallel.ep", "3"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("trainer:")]
    assert line == "trainer: parallel.ep (3) does not divide the number of processes (2)"
