"""How much memory a training step takes, by kind, for a model of any size on a machine of any size.

Nothing is reckoned by formulas: a real step of the real model runs on tensors that have shapes and no contents (torch's
FakeTensorMode), and what it holds is counted. B sequences, S positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.segments import Segments
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer

ASSUMES = "activations are what the backward pass needs; buffers within single operations come on top"


class Memory(NamedTuple):
    """Bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def checkpoint(self) -> int:
        return self.weights + self.optimizer


def estimate(model: ModelConfig, config: TrainConfig) -> Memory:
    """Of a step in micro-batches of config.batch.micro rows."""
    rows = min(config.batch.micro, config.batch.sequences)
    with FakeTensorMode():
        network = Transformer(model, precision.build(config.precision, config.expert_precision))
        slots = optimizer.build(network, config.optimizer).state()
        weights = _size(network.state_dict().values())
        activations = _kept(network, rows, config.batch.sequence)
        if config.recompute:  # inputs of all blocks are kept, and all else of one block
            inputs = rows * config.batch.sequence * model.width * network.precision.dtype.itemsize * model.layers
            activations = inputs + activations // model.layers
        return Memory(weights, _size(network.parameters()), _size(slots.values()), activations)


def _kept(network: Transformer, rows: int, sequence: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out: copies of them in another format count."""
    own = {_storage(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := _storage(tensor)) not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    tokens_BS = torch.zeros(rows, sequence, dtype=torch.int64)
    segments = Segments(torch.zeros_like(tokens_BS), torch.zeros_like(tokens_BS))  # as with several documents to a row
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = network.loss(tokens_BS, tokens_BS, segments)  # holds the graph until all is counted
    del loss
    return sum(kept.values())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # a tensor without contents has no address


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
