"""The batches of a run, step by step, from wherever it stands: which they are is a function of the step alone."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import numpy as np

from gristmill.shards.loader import Batch, Batches
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import TrainingData


def batches(config: TrainConfig, data: TrainingData, position: Position) -> Generator[tuple[int, Batch], None, None]:
    """(step, its batch) of each step after `position` to the run's last; read ahead within a stage of the ramp."""
    step, following = position.step, position.next_sequence
    disk = int(config.disk_gb * 1e9)
    for stage in config.stages_after(step):
        tokens = stage.windows * config.batch.sequence
        source = iter(Batches(data.plan, data.dataset, tokens, following, disk_bytes=disk))
        with contextlib.closing(source):
            for _ in range(stage.steps):
                batch = next(source)
                step, following = step + 1, batch.next_sequence
                yield step, batch


def tokens_by_source(data: TrainingData, batch: Batch) -> dict[str, int]:
    """What a batch holds of each source of the plan, as it was read."""
    sources, length = data.plan.sources, batch.tokens_BS.shape[1] - 1
    windows = np.bincount(batch.source_B, minlength=len(sources)).tolist()
    return {source.name: count * length for source, count in zip(sources, windows)}
