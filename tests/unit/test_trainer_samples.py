"""Text that the model writes while it trains: the same whenever asked, and no trace of it in the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.support.training_shards import write_shards

from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, ModelSection
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.trackers.jsonl import read_events
from gristmill.trainer.watch.config import SamplesConfig
from gristmill.trainer.watch.samples import write_samples

SMALL = ModelSection(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def model(**changes) -> Transformer:
    shape = {key: value for key, value in dataclasses.asdict(SMALL).items() if value is not None and key != "preset"}
    built = Transformer(ModelConfig(vocab=400, **shape | changes), precision.build("fp32"))
    built.initialise(0)
    return built


def write(of: Transformer, shards: Path, seed: int = 0, **changes) -> list[dict[str, str]]:
    config = dataclasses.replace(SamplesConfig(prompts=("", "The file"), tokens=8), **changes)
    return write_samples(of, shards / "tokenizer.json", config, 0, 0, seed, 32)


@pytest.mark.parametrize("router", ["softmax", "expert_choice"])
def test_samples_go_on_from_their_prompts_and_leave_no_trace(shards, router):
    trained = model(router=router)
    before = torch.get_rng_state()
    samples = write(trained, shards)
    assert [one["prompt"] for one in samples] == ["", "The file"]
    assert all(one["text"] and not one["text"].startswith("The file") for one in samples)
    assert trained.training and torch.equal(before, torch.get_rng_state())
    assert write(trained, shards) == samples


def test_draws_follow_the_seed_alone(shards):
    trained = model()
    first = write(trained, shards, seed=1, temperature=1.0)
    torch.rand(3)
    assert write(trained, shards, seed=1, temperature=1.0) == first
    assert write(trained, shards, seed=2, temperature=1.0) != first


def test_a_compiled_model_writes_the_same_and_compiles_nothing_for_it(shards):
    """Each length would be compiled anew, and crowd out what training compiled."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    expected, compiled = write(model(), shards), model()
    compiled.compile_blocks()
    counters.clear()
    assert write(compiled, shards) == expected
    assert not counters["stats"]


def test_no_tokens_or_no_prompts_no_samples(shards):
    assert write(model(), shards, tokens=0) == [] == write(model(), shards, prompts=())


def test_a_run_that_writes_samples_has_the_same_weights(shards, tmp_path):
    """And tells of them every `every` steps and at the end."""
    weights = []
    loud = SamplesConfig(every=2, tokens=4, temperature=1.0)
    for name, samples in (("quiet", SamplesConfig(tokens=0)), ("loud", loud)):
        config = TrainConfig(
            mixture="both", data=str(shards), output=str(tmp_path / name), tokens=5 * 4 * 32, validate_tokens=0,
            model=SMALL, batch=BatchConfig(sequence=32, sequences=4, micro=2), samples=samples,
        )  # fmt: skip
        loop.train(config)
        newest = checkpoint.latest(config.folder)
        assert newest is not None
        weights.append((newest / "model.safetensors").read_bytes())
        told = [event for event in read_events(config.folder / "events.jsonl") if event["type"] == "samples"]
        assert [event["step"] for event in told] == ([2, 4, 5] if name == "loud" else [])
        assert all(len(event["samples"]) == 2 for event in told)
    assert weights[0] == weights[1]
