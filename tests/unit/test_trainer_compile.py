"""Blocks through torch.compile: the same gradients but for rounding, and a run that resumes to the same bits."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from tests.support.crashing import crashing_at
from tests.support.training_shards import write_shards

from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, ModelSection
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer

SHAPE: dict = {
    "width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "experts": 4, "top_k": 2, "expert_width": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gradients(compiled: bool, recompute: bool = False) -> dict[str, torch.Tensor]:
    model = Transformer(ModelConfig(vocab=50, **SHAPE), precision.build("bf16"), recompute)
    model.initialise(0)
    if compiled:
        model.compile_blocks()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (2, 33), generator=generator)
    starts = torch.rand(2, 32, generator=generator) < 0.2
    loss = model.loss(ids[:, :-1], ids[:, 1:], from_starts(starts))
    (loss.nll + loss.auxiliary).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_gradients_are_those_of_the_same_weights_but_for_rounding(recompute):
    torch.compiler.reset()
    plain, compiled = gradients(False), gradients(True, recompute)
    assert plain.keys() == compiled.keys()
    for name, expected in plain.items():
        error = (compiled[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 0.05, name


def test_a_compiled_run_that_crashed_resumes_to_the_same_bits(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    whole = TrainConfig(
        mixture="both", data=str(write_shards(tmp_path / "shards")), output=str(tmp_path / "whole"), tokens=6 * 4 * 32,
        checkpoint_every=2, validate_every=2, validate_tokens=300, model=ModelSection(**SHAPE), precision="bf16",
        compile=True, batch=BatchConfig(sequence=32, sequences=4, micro=2),
    )  # fmt: skip
    loop.train(whole)
    again = dataclasses.replace(whole, output=str(tmp_path / "again"))
    monkeypatch.setattr(loop, "train_step", crashing_at(4))
    with pytest.raises(OSError):
        loop.train(again)
    torch.compiler.reset()  # as in another process
    loop.resume(again.folder)
    ends = [checkpoint.latest(run.folder) for run in (whole, again)]
    assert ends[0] is not None and ends[1] is not None
    one, other = (load_file(end / "model.safetensors") for end in ends if end)
    assert all(torch.equal(one[name], other[name]) for name in one)
