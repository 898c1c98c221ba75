"""Text as bytes, and one training run over it, for bench precision."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gristmill.base.errors import DataError
from gristmill.trainer.data import Example
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.optim.schedule import factor
from gristmill.trainer.step import train_step

SEQUENCE, BATCH = 128, 8
HELD_OUT_WINDOWS = 128
MOST_BYTES = 16_000_000
STARVED = 0.1  # of an even share of the load: an expert below it counts as starved
RATE = 0.01  # the best of 0.003, 0.01 and 0.03 for bf16 after 120 steps, plain and (of the last two) with scales
# Balanced by a bias alone, as the recipe was found: a loss on the load would hide a router that learns nothing. The
# bias moves ten times as fast as DeepSeek-V3's, for runs of hundreds of steps.
SHAPE = {
    "vocab": 256, "width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "experts": 8, "top_k": 2,
    "expert_width": 128, "router": "sigmoid", "options": {"sigmoid.rate": 0.01}, "sequence_loss": 0.0, "z_loss": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    text: Path  # two .npy files of bytes: train, held_out
    experts: str  # number format of the experts; all else is bf16
    recipe: dict[str, float]  # fields of ModelConfig
    clip: float
    seed: int
    steps: int


class Outcome(NamedTuple):
    """After the last step."""

    loss: float  # held-out nats per byte; NaN where training diverged
    busiest: float  # greatest load over the mean one, in the worst layer, mean over the last tenth of the steps
    starved: float  # experts of all layers, in the last step
    grad_norm: float  # before clipping, mean over the last tenth


def write_text(corpus: Path | None, folder: Path) -> str:
    """train.npy and held_out.npy; answers where the text is from. A twentieth of the packages (documents) is held out.

    Raises:
        DataError: too little text.
    """
    parts: dict[str, list[bytes]] = {"train": [], "held_out": []}
    for group, text in _documents(corpus):
        digest = hashlib.sha256(group.encode()).digest()[0]
        parts["held_out" if digest < 13 else "train"].append(text + b"\0")
    for name, most in (("train", MOST_BYTES), ("held_out", MOST_BYTES // 16)):
        joined = b"".join(parts[name])[:most]
        if len(joined) < HELD_OUT_WINDOWS * (SEQUENCE + 1):
            raise DataError(f"{corpus or 'installed packages'}: {len(joined)} bytes of text for {name}, too few")
        np.save(folder / f"{name}.npy", np.frombuffer(joined, np.uint8))
    return str(corpus) if corpus else "documentation and source of the installed packages"


def train(job: Job) -> Outcome:
    """In a process of its own, on one thread. The same seed has the same text in the same order in every format."""
    torch.set_num_threads(1)
    text = np.load(job.text / "train.npy")
    model = Transformer(ModelConfig(**SHAPE | job.recipe), precision.build("bf16", job.experts))  # pyright: ignore
    model.initialise(job.seed)
    settings = OptimizerConfig(learning_rate=RATE, clip=job.clip)
    own = optimizer.build(model, settings)
    draws = np.random.default_rng(job.seed)
    results = []
    for step in range(1, job.steps + 1):
        example = _example(text, draws.integers(0, len(text) - SEQUENCE - 1, BATCH))
        results.append(train_step(model, own, example, BATCH, factor(settings, step, job.steps)))
    last = results[-max(job.steps // 10, 1) :]
    loads = [np.array(result.router.load) for result in last]  # pyright: ignore[reportOptionalMemberAccess]
    experts = SHAPE["experts"]
    return Outcome(
        loss=_held_out(model, np.load(job.text / "held_out.npy")) if math.isfinite(last[-1].nll) else math.nan,
        busiest=float(np.mean([load.max() * experts for load in loads])),
        starved=float((loads[-1] < STARVED / experts).sum()),
        grad_norm=float(np.mean([result.grad_norm for result in last])),
    )


def _held_out(model: Transformer, text: np.ndarray) -> float:
    model.eval()
    starts = np.linspace(0, len(text) - SEQUENCE - 1, HELD_OUT_WINDOWS).astype(np.int64)
    example = _example(text, starts)
    return model.token_nll(example.inputs_BS, example.targets_BS).mean().item()


def _example(text: np.ndarray, starts: np.ndarray) -> Example:
    tokens_BS = torch.from_numpy(np.stack([text[at : at + SEQUENCE + 1] for at in starts]).astype(np.int64))
    inputs_BS = tokens_BS[:, :-1]
    return Example(inputs_BS, tokens_BS[:, 1:], torch.zeros_like(inputs_BS, dtype=torch.bool))


def _documents(corpus: Path | None) -> Iterator[tuple[str, bytes]]:
    """What belongs together (a package, a document) and a text of it."""
    if corpus is not None:
        for path in sorted(corpus.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file):
                    yield f"{path.name}:{number}", json.loads(line)["text"].encode()
        return
    for distribution in sorted(importlib.metadata.distributions(), key=lambda found: found.metadata["Name"]):
        files = [file for file in distribution.files or () if file.name.endswith((".md", ".rst", ".py"))]
        for file in sorted(files)[:40]:  # a few large packages would else be nearly all
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                yield distribution.metadata["Name"], path.read_bytes()[:50_000]
