"""Coefficients of the routers' losses: fixed as configured, or, with model.adapt, raised while something is outside its
band and let down again inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gristmill.base.config import check_range
from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe.losses import RouterReport


@dataclass(frozen=True)
class Options:
    load: float = 2.0
    """Upper end of the band of the greatest load over the mean one, in the worst layer: beyond it the load-balance
    coefficients rise."""
    norm: float = 1.0
    """Upper end of the band of the gradient's norm: beyond it the z-loss coefficient rises."""
    step: float = 1.02
    """A coefficient rises by this factor a step, and falls by it."""
    most: float = 100.0
    """The most that a coefficient rises to, over the configured one."""

    def __post_init__(self) -> None:
        check_range("load", self.load, 1)
        check_range("norm", self.norm)
        check_range("step", self.step, 1)
        check_range("most", self.most, 1)


class Coefficients(nn.Module):
    """factors: what the configured coefficients of balance and of z are multiplied by; part of a checkpoint."""

    factors: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.options = config, kinds.options("adapt", Options, config)
        self.register_buffer("factors", torch.ones(2), persistent=config.adapt)

    def weigh(self, reports: Sequence[RouterReport], like: torch.Tensor) -> torch.Tensor:
        """The routers' losses times their coefficients, summed over layers: a layer's does not fade as depth grows."""
        config, (balance, z) = self.config, self.factors.unbind()
        total = torch.zeros_like(like)
        for one in reports:
            even = config.balance_loss * one.balance + config.sequence_loss * one.sequence
            total = total + balance * even + z * config.z_loss * one.z
        return total

    def adapt(self, loads: Sequence[torch.Tensor], norm: float) -> None:
        """loads: each router's load [E] over the whole batch; norm: of the gradient, before clipping."""
        if not self.config.adapt or not loads:
            return
        worst = float(torch.stack([load_E.max() * len(load_E) for load_E in loads]).max())
        options = self.options
        for at, outside in enumerate((worst > options.load, norm > options.norm)):
            factor = options.step if outside else 1 / options.step
            self.factors[at] = (self.factors[at] * factor).clamp(1.0, options.most)
