"""What is checked before the expensive part, on a cheap machine: `trainer check`, and `trainer run --require-check`.

One idea: all that a run can fail of in its first minutes, other than the GPU, fails here for cents. A marker in the
run's folder says that it did not (`checked`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.base.config import check_range
from gristmill.base.errors import GristmillError, UsageError
from gristmill.trainer import checked
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.config import ModelConfig, ModelSection, resolve
from gristmill.trainer.watch.config import HealthConfig

if TYPE_CHECKING:
    from gristmill.trainer.data import TrainingData

log = logging.getLogger("gristmill.trainer")

WIDTH, EXPERT_WIDTH, KV_HEADS = 64, 32, 2  # at most, of the model that smoke steps train


@dataclass(frozen=True)
class CheckConfig(TrainConfig):
    """A run to check: all that `trainer run` takes."""

    smoke_steps: int = 20
    """Steps to train, on the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("smoke_steps", self.smoke_steps, 1, 1000)

    @property
    def run(self) -> TrainConfig:
        """The run alone."""
        fields = dataclasses.fields(TrainConfig)
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields})


def check(config: CheckConfig) -> dict[str, Any]:
    """Go through what the run would begin with, and write the marker; answers it.

    The mixture's order for the whole budget, the sha256 of every shard that it reads, and the tokenizer; the trackers;
    a step of the real model on tensors without contents, so that shapes and options fit; then smoke steps on the CPU.

    Raises:
        UsageError, DataError: what trainer run would refuse.
        GristmillError: a smoke step's loss or gradient is not finite.
    """
    from gristmill.trainer.checkpoints import initial
    from gristmill.trainer.data import open_training
    from gristmill.trainer.parallel import fits
    from gristmill.trainer.trackers.open import find_adapters

    began = time.perf_counter()
    config.require_paths()
    find_adapters(config.trackers)
    run = config.run
    data = open_training(run)
    vocab = data.dataset.tokenizer.vocab_size
    if run.init_from:
        weights = initial.find(run.init_from)
        initial.require_tokenizer(weights, data.dataset, run.data)
        shape = initial.shape(weights, run.model, vocab)
    else:
        shape = resolve(run.model, vocab)
    if shape.vocab < vocab:
        raise UsageError(f"model.vocab ({shape.vocab}) is less than the data's ({vocab})")
    fits.require(run, (phase.length for phase in data.plan.phases), run.nproc)
    log.info("data and mixture are there: %s of %s tokens", data.plan.mixture, f"{run.trained_tokens:,}")
    _build(shape, run)
    log.info("the model's parts fit together; training %d smoke steps of a narrow one", config.smoke_steps)
    losses = _smoke(run, shape, data, config.smoke_steps)
    return checked.write(run, data, losses, seconds=time.perf_counter() - began)


def _build(shape: ModelConfig, config: TrainConfig) -> None:
    """The real model and its optimiser, forward and backward over one window, on tensors that have shapes and no
    contents."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gristmill.trainer.model import precision
    from gristmill.trainer.model.transformer import Transformer
    from gristmill.trainer.optim import optimizer

    with FakeTensorMode():
        model = Transformer(shape, precision.build(config.precision, config.expert_precision), config.recompute)
        optimizer.build(model, config.optimizer)
        tokens_BS = torch.zeros(1, config.batch.sequence, dtype=torch.int64)
        loss = model.loss(tokens_BS, tokens_BS)
        (loss.nll + loss.auxiliary).backward()


def _smoke(config: TrainConfig, shape: ModelConfig, data: TrainingData, steps: int) -> list[float]:
    """The losses of a short run on the CPU, in a folder of its own: every part of the model, narrow; a step of two
    micro-batches; the last step with a validation, samples and a checkpoint."""
    from gristmill.trainer import loop

    unit = math.lcm(config.batch.sequence, *(phase.length for phase in data.plan.phases)) // config.batch.sequence
    batch = BatchConfig(sequence=config.batch.sequence, sequences=2 * unit, micro=unit)
    with tempfile.TemporaryDirectory(prefix="gristmill-check-") as folder:
        loop.train(
            TrainConfig(
                mixture=config.mixture, data=config.data, output=folder, tokenizer=config.tokenizer,
                tokens=steps * batch.tokens, packing=config.packing, precision=config.precision,
                expert_precision=config.expert_precision, stochastic_rounding=config.stochastic_rounding,
                device="cpu", threads=config.threads, seed=config.seed, data_seed=config.data_seed,
                recompute=config.recompute, checkpoint_every=0, validate_every=0,
                validate_tokens=min(config.validate_tokens, 2000), check_shards=False, disk_gb=config.disk_gb,
                model=narrow(shape), batch=batch, optimizer=config.optimizer, health=HealthConfig(every=steps),
                samples=dataclasses.replace(config.samples, every=0, tokens=min(config.samples.tokens, 4)),
            )
        )  # fmt: skip
        events = map(json.loads, (Path(folder) / "events.jsonl").read_text(encoding="utf-8").splitlines())
        losses = [event["loss"] for event in events if event["type"] == "step"]
    if not all(map(math.isfinite, losses)):
        raise GristmillError(f"smoke steps: a loss is not finite ({losses}); lower --optimizer.learning-rate")
    return losses


def narrow(model: ModelConfig) -> ModelSection:
    """A model with all parts of this one, small enough for a CPU: fewer layers and heads, and less width; as many
    experts, with the same router, attention kinds and options."""
    period = model.dense_layers + math.lcm(len(model.attention), model.moe_every)
    kv_heads = min(model.kv_heads, KV_HEADS)
    width = min(model.width, WIDTH)
    small = dataclasses.replace(
        model,
        width=width,
        layers=model.layers if model.pyramid else min(model.layers, period),
        dense_layers=model.dense_layers,
        heads=model.heads // model.kv_heads * kv_heads,
        kv_heads=kv_heads,
        expert_width=min(model.expert_width, EXPERT_WIDTH),
        dense_width=min(model.dense_width, WIDTH),
        base_width=math.ceil(model.base_width * width / model.width),
    )
    return ModelSection(**{field.name: getattr(small, field.name) for field in dataclasses.fields(small)})
