"""A run with several kinds of optimiser in it, under a loop that is interrupted."""

import dataclasses

import pytest
import torch
from tests.support.crashing import crashing_at
from tests.support.training_runs import SMALL, config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.trainer import loop
from gristmill.trainer.optim.config import GroupConfig, OptimizerConfig

MIXED = OptimizerConfig(
    kind="muon", schedule="wsd", clip_by="group", qk_clip=0.5, router=GroupConfig("adafactor", learning_rate=0.05)
)


def test_a_run_of_several_kinds_goes_on_to_the_bit(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    (tmp_path / "shards").mkdir()
    shards = write_shards(tmp_path / "shards")
    model = dataclasses.replace(SMALL, options={"gqa.qk_norm": False})
    whole, broken = (config(shards, tmp_path / name, optimizer=MIXED, model=model) for name in ("whole", "broken"))
    loop.train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", crashing_at(5))  # two steps after a checkpoint
        with pytest.raises(OSError, match="the machine is gone"):
            loop.train(broken)
    loop.train(broken)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    assert events_of(tmp_path / "whole", "step") == events_of(tmp_path / "broken", "step")
