"""The experts: SwiGLU networks as two stacked weights, every token computed by the experts that it was routed to.

T tokens, R rows in expert order, E experts, D width, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import dispatch
from gristmill.trainer.model.moe.router import Routing
from gristmill.trainer.model.precision import Precision


class Experts(nn.Module):
    def __init__(self, config: ModelConfig, experts: int, precision: Precision) -> None:
        super().__init__()
        E, D, width = experts, config.width, config.expert_width
        self.gate_up_EFD = nn.Parameter(torch.empty(E, 2 * width, D))  # the gate's rows first, then the up map's
        self.down_EDF = nn.Parameter(torch.empty(E, D, width))
        self.precision = precision
        self.capacity, self.capacity_eval = config.capacity, config.capacity_eval

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over a token's experts of weight * expert(x), [T, D], and the share that was dropped. An expert may have
        no token at all."""
        where = self.layout(len(x_TD), routing)
        x_RD = where.scatter(x_TD)
        gate_RF, up_RF = self.precision.grouped_linear(x_RD, self.gate_up_EFD, where.ends_E).chunk(2, dim=-1)
        y_RD = self.precision.grouped_linear(F.silu(gate_RF) * up_RF, self.down_EDF, where.ends_E)
        return where.combine(y_RD, routing.weights), where.dropped

    def layout(self, tokens: int, routing: Routing) -> dispatch.Layout:
        E, multiple = self.gate_up_EFD.shape[0], self.precision.row_multiple
        if routing.tokens_EC is not None:
            return dispatch.by_expert(routing.tokens_EC, tokens, multiple)
        assert routing.experts_TK is not None
        factor = self.capacity if self.training else self.capacity_eval
        most = dispatch.capacity(factor, tokens, routing.experts_TK.shape[1], E)
        return dispatch.by_token(routing.experts_TK, routing.weights, E, multiple, most)
