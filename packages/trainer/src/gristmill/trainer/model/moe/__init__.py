"""The mixture of experts: a router chooses, dispatch sorts, experts compute, losses keep the load even.

The layer returns its router's health beside its output, as values: nothing is counted on the side, so re-computing
a layer in the backward pass counts nothing twice. B sequences, S positions, T = B*S tokens, D width, E experts.
"""

from __future__ import annotations

import torch
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.layers import Linear, RMSNorm, SwiGLU
from gristmill.trainer.model.moe import losses, router
from gristmill.trainer.model.moe.experts import Experts
from gristmill.trainer.model.moe.losses import RouterReport
from gristmill.trainer.model.moe.spread import SpreadExperts
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.parallel.all_to_all import AllToAll

__all__ = ["MixtureOfExperts", "RouterReport"]


class MixtureOfExperts(nn.Module):
    """[B, S, D] -> [B, S, D] and the router's report: routed experts, shared ones and PR-MoE's residual network beside
    them where the configuration has them, then the bungee scalar and a norm, the same."""

    def __init__(self, config: ModelConfig, experts: int, precision: Precision) -> None:
        super().__init__()
        self.router = router.build(config, experts)
        self.experts: Experts | SpreadExperts = Experts(config, experts, precision)
        hidden = config.shared_experts * config.expert_width
        self.shared = SwiGLU(config.width, hidden, precision) if hidden else None
        self.residual = Residual(config, precision) if config.residual else None
        self.bungee = nn.Parameter(torch.full((1,), config.bungee)) if config.bungee else None
        self.output_norm = RMSNorm(config.width, config.norm_eps) if config.output_norm else None

    def forward(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, RouterReport]:
        x_TD = x_BSD.flatten(0, 1)
        sequences = x_BSD.shape[0]
        routing = self.router(x_TD, sequences)
        if isinstance(self.experts, SpreadExperts):
            y_TD, dropped = self.experts(x_TD, routing, self.shared)  # which computes while tokens travel
        else:
            y_TD, dropped = self.experts(x_TD, routing)
            if self.shared is not None:
                y_TD = y_TD + self.shared(x_TD)
        if self.residual is not None:
            y_TD = self.residual(x_TD, y_TD)
        if self.bungee is not None:
            y_TD = y_TD * self.bungee.to(y_TD.dtype)
        if self.output_norm is not None:
            y_TD = self.output_norm(y_TD)
        return y_TD.view_as(x_BSD), losses.report(routing, sequences, dropped)

    def spread(self, link: AllToAll) -> None:
        """Leave to each rank its part of the experts, which all ranks have alike. The report stays that of this rank's
        tokens. Before optimiser states are made: the parameters are others.

        Raises:
            UsageError: the ranks do not divide the experts.
        """
        assert isinstance(self.experts, Experts), "spread already"
        if link.ranks > 1:
            self.experts = SpreadExperts(self.experts, link)


class Residual(nn.Module):
    """A dense network beside the experts, and a learnt share of each per token (PR-MoE, arXiv 2201.05596, sec. 4.1; the
    shares are DeepSpeed's `coefficient`, a softmax of two logits)."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.network = SwiGLU(config.width, config.hidden_width, precision)
        self.share = Linear(config.width, 2, precision)

    def forward(self, x_TD: torch.Tensor, experts_TD: torch.Tensor) -> torch.Tensor:
        share_T2 = self.share(x_TD).softmax(dim=-1)
        return experts_TD * share_T2[:, :1] + self.network(x_TD) * share_T2[:, 1:]
