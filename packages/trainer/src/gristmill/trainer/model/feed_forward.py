"""The second half of a block: experts behind a router, or, in a dense layer, one network."""

from __future__ import annotations

import torch
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.layers import SwiGLU
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.precision import Precision


class Dense(nn.Module):
    """[B, S, D] -> the same, and no router's report."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.network = SwiGLU(config.width, config.hidden_width, precision)

    def forward(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.network(x_BSD), None


def build(config: ModelConfig, layer: int, precision: Precision) -> nn.Module:
    experts = config.experts_of(layer)
    return MixtureOfExperts(config, experts, precision) if experts else Dense(config, precision)
