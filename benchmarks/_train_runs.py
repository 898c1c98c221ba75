"""What bench train runs: a model of about 50 M weights on made-up shards, bare and in the whole loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.writer import SourceSpec, write_manifest, write_source
from gristmill.trainer import loop
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import open_training, to_example
from gristmill.trainer.feed import batches
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import resolve
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.schedule import factor
from gristmill.trainer.step import train_step

VOCAB = 16_384
DOCUMENT = 800  # tokens of each, EOS left out
TOKENIZER = TokenizerInfo(name="synthetic", sha256="0" * 64, vocab_size=VOCAB, eos_id=0)


def write_shards(folder: Path, tokens: int) -> Path:
    """Two sources of random text, and a mixture of both."""
    for number, name in enumerate(("web", "code")):
        rng = np.random.default_rng(number)
        count = tokens // 2 // DOCUMENT + 2
        ids = pa.array(rng.integers(1, VOCAB, count * DOCUMENT).astype(np.uint16))
        ends = pa.array(np.arange(count + 1) * DOCUMENT, pa.int32())
        rows = {
            "id": [f"{name}-{i}" for i in range(count)], "tokens": pa.ListArray.from_arrays(ends, ids),
            "file": [name] * count, "row": range(count),
        }  # fmt: skip
        write_source(folder, SourceSpec(name, TOKENIZER), [pa.table(rows)])
    path = folder / "bench.toml"
    text = '[mixture]\nname = "bench"\n[mixture.weights]\nweb = 2\ncode = 1\n[mixture.max_epochs]\ndefault = 4\n'
    path.write_text(text)
    write_manifest(folder, [path])
    return folder


def bare(config: TrainConfig) -> float:
    """Seconds of the steps alone: the same model, optimiser and batches, in memory before the clock starts."""
    data = open_training(config)
    torch.set_num_threads(config.threads)
    model = Transformer(resolve(config.model, VOCAB), precision.build(config.precision))
    model.initialise(config.seed)
    own = optimizer.build(model, config.optimizer)
    device = torch.device("cpu")
    examples = [to_example(batch, device) for _, batch in batches(config, data, Position())]
    started = time.perf_counter()
    for step, example in enumerate(examples, 1):
        train_step(model, own, example, config.batch.micro, factor(config.optimizer, step, config.steps))
    return time.perf_counter() - started


class Whole(NamedTuple):
    seconds: float  # from before the first batch is read until the last step and what follows on it is done
    pauses: list[float]  # that training waited for each checkpoint before the last
    ending: float  # until the last checkpoint stood


def whole(config: TrainConfig) -> Whole:
    """The loop as `trainer run` has it."""
    with _watched("batches") as reads, _watched("_save") as saves:
        loop.train(config)
        ended = time.perf_counter()
    (begun, _), (_, last) = reads[0], saves[-1]
    return Whole(last - begun, [end - start for start, end in saves[:-1]], ended - last)


@contextmanager
def _watched(name: str) -> Iterator[list[tuple[float, float]]]:
    """When each call of a function of the loop's began, and when it returned."""
    calls: list[tuple[float, float]] = []
    real = getattr(loop, name)

    def call(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = real(*given, **named)
        calls.append((started, time.perf_counter()))
        return result

    setattr(loop, name, call)
    try:
        yield calls
    finally:
        setattr(loop, name, real)
