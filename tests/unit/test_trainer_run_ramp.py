"""A ramp of the batch: steps and tokens follow from one another, and a run goes on exactly from anywhere in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import UsageError
from gristmill.trainer import loop, ramp
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.data import open_training
from gristmill.trainer.feed import batches
from gristmill.trainer.ramp import Stage

RAMP = BatchConfig(sequence=32, sequences=4, micro=2, ramp_from=1, ramp_share=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def ramped(shards: Path, output: Path) -> TrainConfig:
    """Eight full batches: two of them in 8 steps of one window, two in 4 of two, and four in 4 of four."""
    return config(shards, output, batch=RAMP, checkpoint_every=3)


def test_windows_double_and_every_stage_reads_as_much() -> None:
    assert ramp.stages(4, 0, 0.5, 8) == [Stage(8, 4)]
    assert ramp.stages(4, 1, 0.5, 8) == [Stage(8, 1), Stage(4, 2), Stage(4, 4)]
    assert ramp.stages(6, 3, 0.25, 9) == [Stage(4, 3), Stage(7, 6)]
    for batches_, share in ((64, 0.3), (1000, 0.11), (77, 1.0)):
        stages = ramp.stages(16, 2, share, batches_)
        assert sum(stage.steps * stage.windows for stage in stages) == 16 * batches_
        assert len({stage.steps * stage.windows for stage in stages[:-1]}) == 1


@pytest.mark.parametrize(("first", "share", "told"), [
    (3, 0.5, "ramp_from"), (4, 0.5, ""), (5, 0.5, "ramp_from"), (-1, 0.5, "ramp_from"), (1, 0.1, "ramp_share"),
    (1, 1.5, "ramp_share"),
])  # fmt: skip
def test_a_ramp_that_cannot_be_is_refused(first: int, share: float, told: str) -> None:
    if not told:
        assert ramp.stages(4, first, share, 8) == [Stage(8, 4)]
        return
    with pytest.raises(UsageError, match=told):
        ramp.stages(4, first, share, 8)


def test_steps_and_tokens_follow_from_one_another(shards: Path, tmp_path: Path) -> None:
    about = ramped(shards, tmp_path)
    assert about.steps == 16 and about.trained_tokens == 8 * 4 * 32
    assert [about.tokens_after(step) // 32 for step in (0, 1, 8, 9, 12, 13, 16)] == [0, 1, 8, 10, 16, 20, 32]


def test_the_batches_from_any_step_are_those_of_the_whole_run(shards: Path, tmp_path: Path) -> None:
    about = ramped(shards, tmp_path)
    data = open_training(about)
    whole = list(batches(about, data, checkpoint.Position()))
    assert [len(batch.tokens_BS) for _, batch in whole] == [1] * 8 + [2] * 4 + [4] * 4
    for at in (1, 7, 8, 10, 12, 15):
        position = checkpoint.Position(step=at, next_sequence=whole[at - 1][1].next_sequence)
        rest = list(batches(about, data, position))
        assert [step for step, _ in rest] == list(range(at + 1, 17))
        assert all((a.tokens_BS == b.tokens_BS).all() for (_, a), (_, b) in zip(rest, whole[at:], strict=True))


@pytest.mark.parametrize("crash", [5, 9, 14])
def test_a_crash_in_a_ramp_resumes_to_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    whole, again = ramped(shards, tmp_path / "whole"), ramped(shards, tmp_path / "again")
    loop.train(whole)
    assert [event["tokens"] for event in events_of(whole.folder, "step")][-1] == whole.trained_tokens
    monkeypatch.setattr(loop, "train_step", crashing_at(crash))
    with pytest.raises(OSError):
        loop.train(again)
    loop.resume(again.folder)
    assert same_weights(whole.folder, again.folder)
    assert events_of(whole.folder) == events_of(again.folder)


def test_a_run_may_begin_anywhere_in_the_order(shards: Path, tmp_path: Path) -> None:
    """The second half of a run's windows, in a run of their own."""
    about = config(shards, tmp_path, tokens=8 * 4 * 32)
    data = open_training(about)
    whole = [batch for _, batch in batches(about, data, checkpoint.Position())]
    later = dataclasses.replace(about, first_sequence=16, tokens=4 * 4 * 32)
    rest = [batch for _, batch in batches(later, open_training(later), checkpoint.Position(next_sequence=16))]
    assert len(rest) == 4
    assert all((a.tokens_BS == b.tokens_BS).all() for a, b in zip(rest, whole[4:], strict=True))
