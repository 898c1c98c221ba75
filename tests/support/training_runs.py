"""Training runs small enough for tests, steps that go wrong where told to, and what two runs are compared by."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import from_mapping
from gristmill.trainer import loop
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.step import StepResult

SMALL = ModelSection(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16)
CLOCK = ("time", "tokens_per_second", "mfu", "memory_gb", "cost")  # of an event, what depends on the machine


def config(shards: Path, output: Path, **changes: Any) -> TrainConfig:
    """Eight steps, a checkpoint after every third, a validation after every fourth."""
    base = TrainConfig(
        mixture="both", data=str(shards), output=str(output), tokens=8 * 4 * 32, checkpoint_every=3, validate_every=4,
        validate_tokens=300, model=SMALL, batch=BatchConfig(sequence=32, sequences=4, micro=2),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


INTERRUPTIONS = ("checkpoint", "resume")
"""Events whose number depends on how often a run was interrupted."""


def events_of(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Of some kinds; of all but INTERRUPTIONS, if none is named. Without what depends on the clock."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    timeless = [{key: value for key, value in event.items() if key not in CLOCK} for event in events]
    return [event for event in timeless if (event["type"] in kinds if kinds else event["type"] not in INTERRUPTIONS)]


def same_weights(a: Path, b: Path) -> bool:
    newest = [checkpoint.newest(folder) for folder in (a, b)]
    return all((newest[0] / name).read_bytes() == (newest[1] / name).read_bytes() for name in checkpoint.FILES)


def disturbed(added: Mapping[int, float], pause: float = 0.0) -> Callable[..., StepResult]:
    """To stand for loop._step: so much is added to the loss of some steps, and each one takes some seconds longer."""
    real = loop._step

    def step(run: Any, number: int, batch: Any) -> StepResult:
        time.sleep(pause)
        if number not in added:
            return real(run, number, batch)
        plain = run.model.loss

        def loss(*given: Any) -> Any:
            told = plain(*given)
            return told._replace(nll=told.nll + added[number])

        run.model.loss = loss
        try:
            return real(run, number, batch)
        finally:
            del run.model.loss

    return step


def train_slowly(values: dict[str, Any], added: dict[int, float], pause: float) -> None:
    """For a process of its own, to be killed: steps and the writing of checkpoints take time to be killed in."""
    torch.set_num_threads(1)
    loop._step = disturbed(added, pause)
    hashed = checkpoint.sha256_file

    def slow(path: Path) -> str:
        time.sleep(pause)
        return hashed(path)

    checkpoint.sha256_file = slow
    loop.train(from_mapping(TrainConfig, values, "test"))
