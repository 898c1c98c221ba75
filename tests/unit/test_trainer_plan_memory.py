"""Memory as planned is memory as taken: what torch's allocator gave during a real step, and what the kernel counted."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys

import pytest
import torch
from tests.support.ranks import in_ranks

from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, ModelSection, presets, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer as optim
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.parallel.shards import Shards, spread
from gristmill.trainer.parallel.world import ALONE, World, joined
from gristmill.trainer.planning import measure, memory, timing
from gristmill.trainer.planning.mesh import Mesh
from gristmill.trainer.step import train_step

WITHIN = 0.1  # of what is measured

TINY = ModelSection(preset="tiny", vocab=4096)
CASES: dict[str, tuple[ModelSection, TrainConfig]] = {
    "one micro-batch": (TINY, TrainConfig(batch=BatchConfig(256, 4, 4))),
    "several": (TINY, TrainConfig(batch=BatchConfig(256, 4, 2))),
    "recomputed": (TINY, TrainConfig(batch=BatchConfig(256, 4, 4), recompute=True)),
    "recomputed, bf16": (TINY, TrainConfig(batch=BatchConfig(256, 4, 2), recompute=True, precision="bf16")),
    "experts in fp8": (TINY, TrainConfig(batch=BatchConfig(256, 2, 1), precision="bf16", expert_precision="fp8")),
    "mostly weights": (
        ModelSection(preset="tiny", vocab=4096, experts=32, expert_width=256),
        TrainConfig(batch=BatchConfig(128, 2, 1)),
    ),
    "muon": (
        ModelSection(preset="tiny", vocab=4096, experts=16),
        TrainConfig(batch=BatchConfig(128, 2, 1), optimizer=OptimizerConfig(kind="muon")),
    ),
    "mostly logits": (
        ModelSection(preset="tiny", vocab=32_768, layers=2, width=64, tie_embeddings=False),
        TrainConfig(batch=BatchConfig(256, 2, 2)),
    ),
    "dense layers, then experts; windows and masks": (
        ModelSection(preset="tiny", vocab=4096, layers=6, dense_layers=2, attention=("swa", "gqa")),
        TrainConfig(batch=BatchConfig(256, 4, 4)),
    ),
    "latent attention": (
        ModelSection(preset="debug-deepseek-v3", vocab=4096, layers=6),
        TrainConfig(batch=BatchConfig(256, 4, 4)),
    ),
}  # fmt: skip


def allocated(model: ModelConfig, config: TrainConfig, world: World = ALONE) -> int:
    """Bytes at the fullest moment of a real step, from the allocator's own record."""
    torch.set_num_threads(config.threads)
    network = Transformer(model, precision.build(config.precision, config.expert_precision), config.recompute)
    network.initialise(0)
    spread(network, world, config.parallel)
    shards = Shards(network, world)
    optimizer = optim.build(network, config.optimizer, shards)
    example = timing.made_up(config.batch.sequences, config.batch.sequence, model.vocab, 64, torch.device("cpu"))
    if not world.is_alone:  # in the first step it is not known yet which weights to gather ahead
        train_step(network, optimizer, example, config.batch.micro, factor=0.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        train_step(network, optimizer, example, config.batch.micro, factor=0.0)
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in events:
        now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, now)
    assert len(events) > 100
    return most + sum(one.tensor.nbytes for one in [*shards.pieces().values(), *optimizer.state().values()])


@pytest.mark.parametrize("case", CASES)
def test_planned_memory_is_what_a_step_takes_from_the_allocator(case):
    section, config = CASES[case]
    model = resolve(section)
    assert memory.estimate(model, config).total == pytest.approx(allocated(model, config), rel=WITHIN)


def of_a_rank(rank: int, n: int) -> list[list[int]]:
    """Taken and planned: rows shared out by all, experts of two apart, and copies."""
    found = []
    for parallel in (ParallelConfig(), ParallelConfig(ep=2), ParallelConfig(data="replicate")):
        config = TrainConfig(batch=BatchConfig(256, 4, 2), parallel=parallel)
        mesh = Mesh(parallel.ep, n // parallel.ep, parallel.data)
        with joined(parallel, torch.device("cpu")) as world:
            found.append([allocated(resolve(TINY), config, world), memory.estimate(resolve(TINY), config, mesh).total])
    return found


def test_planned_memory_is_what_each_of_two_processes_takes():
    for rank in in_ranks(of_a_rank, 2):
        for taken, planned in rank:
            assert planned == pytest.approx(taken, rel=WITHIN)


def of_heavy_experts(rank: int, n: int) -> list[int]:
    section = ModelSection(preset="tiny", vocab=512, width=128, layers=4, experts=16, expert_width=256)
    config = TrainConfig(batch=BatchConfig(64, 8, 2), parallel=ParallelConfig(ep=2))
    with joined(config.parallel, torch.device("cpu")) as world:
        taken = allocated(resolve(section), config, world)
    return [taken, memory.estimate(resolve(section), config, Mesh(2, n // 2, "shard")).total]


def test_planned_memory_is_what_processes_take_that_share_out_experts_and_their_rows():
    """A process now and then still holds a layer's experts when the next one's come: the middle of four is meant."""
    taken, planned = zip(*in_ranks(of_heavy_experts, 4), strict=True)
    assert planned[0] == pytest.approx(statistics.median(taken), rel=WITHIN)


SEEN_BY_THE_KERNEL = """
import re
from pathlib import Path
from tests.unit.test_trainer_plan_memory import *

torch.set_num_threads(1)
small = TrainConfig(batch=BatchConfig(128, 1, 1))
def seen(name):  # getrusage would answer for the parent, too
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def step(section, config):
    model = resolve(section)
    example = timing.made_up(config.batch.sequences, config.batch.sequence, model.vocab, 64, torch.device("cpu"))
    network = Transformer(model, precision.build("fp32"), config.recompute)
    network.initialise(0)
    optimizer = optim.build(network, config.optimizer)
    train_step(network, optimizer, example, config.batch.micro, factor=0.0)
    return model
step(TINY, small)  # libraries' own buffers
before = seen("VmRSS")
section = ModelSection(preset="tiny", vocab=8192, width=512, layers=2, experts=16, expert_width=512)
config = TrainConfig(batch=BatchConfig(256, 4, 2), recompute=True)
model = step(section, config)
print(seen("VmHWM") - before, memory.estimate(model, config).total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_planned_memory_is_what_a_fresh_process_grows_by():
    # Every tensor is the kernel's own mapping, so that what is freed is gone; no buffers of MKL's stay.
    variables = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MKL_DISABLE_FAST_MM": "1"}
    command = [sys.executable, "-c", SEEN_BY_THE_KERNEL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    grown, planned = (int(word) for word in done.stdout.split())
    assert planned == pytest.approx(grown, rel=WITHIN)


def test_what_is_put_together_of_parts_is_what_the_whole_holds(monkeypatch):
    """Of every layer measured by itself, instead of two of each kind."""
    section = ModelSection(preset="debug-deepseek-v3", vocab=512, layers=7)
    config = TrainConfig(batch=BatchConfig(128, 4, 2))
    few = memory.estimate(resolve(section), config)
    monkeypatch.setattr(measure, "_two_of_each", lambda kinds: list(range(len(kinds))))
    monkeypatch.setattr(measure, "_kind", lambda block: id(block))
    assert few.total == pytest.approx(memory.estimate(resolve(section), config).total, rel=0.01)


@pytest.mark.parametrize("precision_", ["fp32", "bf16"])
def test_memory_counted_without_contents_is_that_with_them(precision_, monkeypatch):
    model, config = resolve(TINY), TrainConfig(batch=BatchConfig(64, 4, 2), precision=precision_)
    without = memory.estimate(model, config)
    parts = measure.parts
    monkeypatch.setattr(measure, "parts", lambda *given: parts(*given, fake=contextlib.nullcontext))
    assert memory.estimate(model, config).total == pytest.approx(without.total, rel=0.01)


def test_activations_grow_with_the_micro_batch_and_shrink_with_recomputation():
    shape = resolve(ModelSection(), 4096)
    base = TrainConfig(batch=BatchConfig(sequence=256, sequences=8, micro=2))

    def of(micro: int, **changes) -> memory.Memory:
        batch = dataclasses.replace(base.batch, micro=micro)
        return memory.estimate(shape, dataclasses.replace(base, batch=batch, **changes))

    one, two, four = (of(micro) for micro in (1, 2, 4))
    growth = two.activations - one.activations
    assert growth > 0 and four.activations - two.activations == pytest.approx(2 * growth, rel=0.01)
    assert of(2, recompute=True).activations < two.activations
    assert one[:3] == four[:3]


@pytest.mark.parametrize("name", [name for name in presets() if "debug" in name] + ["stable", "moonlight-16b-a3b"])
def test_memory_of_a_preset_is_known_without_having_it(name):
    shape = resolve(ModelSection(preset=name, vocab=4096))
    found = memory.estimate(shape, TrainConfig(batch=BatchConfig(sequence=256, sequences=2, micro=1), precision="bf16"))
    whole = 4 * count(shape).total
    assert found.weights >= whole and found.gradients == pytest.approx(whole, rel=0.001)  # routers' biases have none
    assert found.optimizer == pytest.approx(2 * whole, rel=0.001) and found.activations > 0


def test_state_of_other_optimisers_is_their_own():
    shape = resolve(TINY)
    adamw, muon = (
        memory.estimate(shape, TrainConfig(batch=BatchConfig(64, 2, 1), optimizer=OptimizerConfig(kind=kind)))
        for kind in ("adamw", "muon")
    )
    assert muon.optimizer < adamw.optimizer and muon.weights == adamw.weights
