"""A training run is killed at random moments, while it writes checkpoints too: its last weights are bit-identical to
those of a run that nothing disturbed, and it says the same of every step.

The run has all that could make a difference: a ramp, a loss that spikes and is rolled back, a batch that is skipped,
patience, several kinds of optimiser, routers with biases.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from tests.support.training_runs import SMALL, config, events_of, same_weights, train_slowly
from tests.support.training_shards import write_shards

from gristmill.base.config import to_mapping
from gristmill.base.files import read_json
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.watch.alarms import AlarmConfig
from gristmill.trainer.watch.config import SamplesConfig
from gristmill.trainer.watch.patience import PatienceConfig

WRONG = {26: 50.0, 33: math.nan, 41: 50.0}  # added to the loss of these steps
PAUSE = 0.01  # seconds that a step, and a file's hash, take longer
KILLS = 5  # of each run
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["gristmill.trainer.loop"])  # torch once, for all


def about(shards: Path, output: Path) -> TrainConfig:
    base = config(
        shards, output, tokens=40 * 4 * 32, checkpoint_every=4, validate_every=6, validate_tokens=300,
        model=dataclasses.replace(SMALL, router="sigmoid"),
        batch=BatchConfig(sequence=32, sequences=4, micro=2, ramp_from=1, ramp_share=0.2),
    )  # fmt: skip
    return dataclasses.replace(
        base, alarms=AlarmConfig(loss_spike="roll_back", not_finite="skip"), patience=PatienceConfig(50),
        samples=SamplesConfig(every=10, tokens=4), optimizer=OptimizerConfig(kind="muon", learning_rate=0.003),
    )  # fmt: skip


class Training:
    """A process that trains, and can be killed."""

    def __init__(self, config: TrainConfig) -> None:
        self.process = PROCESSES.Process(target=train_slowly, args=(to_mapping(config), WRONG, PAUSE))
        self.process.start()

    def killed(self, wait: float, folder: Path, writing: bool) -> bool:
        """After so many seconds, and then as soon as a checkpoint is being written, if that is asked for. False where
        it ended before."""
        until = time.monotonic() + wait
        while self.process.is_alive():
            due = time.monotonic() >= until
            if due and (not writing or list(folder.glob("checkpoints/.step-*.tmp"))):
                break
            time.sleep(0.0005)
        self.process.kill()
        self.process.join()
        return self.process.exitcode != 0

    def ended(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def test_final_weights_do_not_depend_on_when_a_run_was_killed(
    shards: Path, tmp_path: Path, request: pytest.FixtureRequest, faults_seed: int
) -> None:
    whole = about(shards, tmp_path / "whole")
    assert Training(whole).ended() == 0  # once for nothing: the first process has more to import
    started = time.monotonic()
    assert Training(about(shards, tmp_path / "timed")).ended() == 0
    seconds = time.monotonic() - started
    assert {event["type"] for event in events_of(whole.folder)} >= {"roll_back", "alarm", "validation", "samples"}

    random, in_writing = np.random.default_rng(faults_seed), 0
    rounds = 6 if request.config.getoption("faults") else 1
    for number in range(rounds):
        run = about(shards, tmp_path / f"killed-{number}")
        left = KILLS
        while left:
            # Moments uniform over the time that is left: the first of so many uniform numbers.
            share = (1 - random.random() ** (1 / left)) * (1 - _step(run.folder) / run.steps)
            if not Training(run).killed(share * seconds, run.folder, writing=bool(random.integers(2))):
                assert same_weights(run.folder, whole.folder), (faults_seed, number)
                shutil.rmtree(run.folder)  # it ended before its moment came: another one, to be killed on
                continue
            left -= 1
            in_writing += bool(list(run.folder.glob("checkpoints/.step-*.tmp")))
        assert Training(run).ended() == 0
        assert read_json(run.folder / "run.json")["status"] == "done"
        assert same_weights(run.folder, whole.folder), (faults_seed, number)
        assert events_of(run.folder) == events_of(whole.folder), (faults_seed, number)
        assert not list(run.folder.glob("checkpoints/.step-*"))
    assert in_writing or rounds == 1


def _step(folder: Path) -> int:
    newest = checkpoint.latest(folder)
    return checkpoint.step_of(newest) if newest else 0
