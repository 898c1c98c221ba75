"""How long a training step takes on this machine: a few real steps of the real model, on made-up text.

B sequences, S positions.
"""

from __future__ import annotations

import statistics
import time

import torch

from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import Example
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer as optim
from gristmill.trainer.step import train_step


def seconds_of_step(
    model: ModelConfig, config: TrainConfig, device: torch.device, steps: int, document_tokens: float
) -> float:
    """Median of `steps`, after a first one that is not counted, on text whose documents have so many tokens on average
    (masks cost time). Of a step of many micro-batches two are timed: the others take as long as the second."""
    torch.set_num_threads(config.threads)
    rounding = precision.StochasticRounding(config.seed, device) if config.stochastic_rounding else None
    network = Transformer(model, precision.build(config.precision, config.expert_precision, rounding), config.recompute)
    network.initialise(config.seed)
    network.to(device)
    if config.compile:
        network.compile_blocks()
    optimizer = optim.build(network, config.optimizer)
    micro = min(config.batch.micro, config.batch.sequences)

    def median(rows: int) -> float:
        example = made_up(rows, config.batch.sequence, model.vocab, document_tokens, device)
        times = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            train_step(network, optimizer, example, micro, factor=0.0)  # as much work as any other
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    one = median(micro)
    passes = config.batch.sequences / micro
    return one if passes == 1 else one + (passes - 1) * (median(2 * micro) - one)


def made_up(rows: int, sequence: int, vocab: int, document_tokens: float, device: torch.device) -> Example:
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, vocab, (rows, sequence + 1), generator=generator).to(device)
    starts_BS = torch.rand(rows, sequence, generator=generator) < 1 / document_tokens
    return Example(tokens_BS[:, :-1], tokens_BS[:, 1:], starts_BS.to(device))
