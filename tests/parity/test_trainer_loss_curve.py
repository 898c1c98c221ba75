"""Our loop against a plain one: transformers' Qwen3-MoE and torch's AdamW on the same batches, from the same weights.

Two hundred losses are equal within 1e-4, in fp32: batches in parts, segments, schedule, clipping, decay and logging
change nothing about what is learnt.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tests.support.training_runs import config, events_of
from tests.support.training_shards import write_shards

from gristmill.trainer import exchange, loop, start
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.data import open_training, to_example
from gristmill.trainer.feed import batches
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.parallel.world import ALONE

STEPS, WITHIN = 200, 1e-4
PEAK, WARMUP, FINAL, DECAY, CLIP = 1e-3, 10, 0.1, 0.1, 1.0


def about(shards: Path, output: Path) -> TrainConfig:
    shape = ModelSection(
        width=32, layers=3, heads=4, kv_heads=2, head_dim=8, experts=8, top_k=2, expert_width=24, tie_embeddings=False,
        sequence_loss=0.0, z_loss=0.0,
    )  # fmt: skip
    optimizer = OptimizerConfig(
        learning_rate=PEAK, warmup=WARMUP / STEPS, final=FINAL, weight_decay=DECAY, clip=CLIP, beta1=0.9, beta2=0.95
    )
    base = config(shards, output, tokens=STEPS * 4 * 64, checkpoint_every=0, validate_tokens=0, model=shape)
    return dataclasses.replace(base, batch=BatchConfig(sequence=64, sequences=4, micro=2), optimizer=optimizer)


def plain_losses(config: TrainConfig, exported: Path) -> list[float]:
    """As one would write it: no loop of ours, no model of ours, no optimiser of ours; whole batches at once."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    model.train()
    matrices = [
        p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name and "lm_head" not in name
    ]
    decayed = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step, batch in batches(config, open_training(config), Position()):
        done = (step - WARMUP) / (STEPS - WARMUP)
        rate = step / WARMUP if step <= WARMUP else FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate
        example = to_example(batch, torch.device("cpu"))
        positions_BS = from_starts(example.starts_BS).positions_BS
        logits_BSV = model(example.inputs_BS, position_ids=positions_BS, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), example.targets_BS.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_two_hundred_losses_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "shards").mkdir()
    shards = write_shards(tmp_path / "shards")
    first = about(shards, tmp_path / "initial")
    with CheckpointWriter(first.folder, keep=1) as writer:  # the weights that the run will begin with
        run = start.begin(first, open_training(first), None, ALONE)
        writer.save(run.state(), run.pieces, lambda: None, lambda: None)
    exchange.export_run(first.folder, tmp_path / "exported")

    config = about(shards, tmp_path / "run")
    loop.train(config)
    ours = [event["loss"] for event in events_of(config.folder, "step")]
    theirs = plain_losses(config, tmp_path / "exported")
    assert len(ours) == STEPS and ours[-1] < ours[0] - 1
    assert ours == pytest.approx(theirs, abs=WITHIN)
