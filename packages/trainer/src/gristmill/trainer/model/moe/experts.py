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
        y_RD = compute(where.scatter(x_TD), self.gate_up_EFD, self.down_EDF, where.ends_E, self.precision)
        return where.combine(y_RD, routing.weights), where.dropped

    def layout(self, tokens: int, routing: Routing) -> dispatch.Layout:
        factor = self.capacity if self.training else self.capacity_eval
        return layout(tokens, routing, self.gate_up_EFD.shape[0], self.precision.row_multiple, factor)


def compute(
    x_RD: torch.Tensor, gate_up_EFD: torch.Tensor, down_EDF: torch.Tensor, ends_E: torch.Tensor, precision: Precision
) -> torch.Tensor:
    """Each expert's rows through its network: [R, D]."""
    gate_RF, up_RF = precision.grouped_linear(x_RD, gate_up_EFD, ends_E).chunk(2, dim=-1)
    return precision.grouped_linear(F.silu(gate_RF) * up_RF, down_EDF, ends_E)


def layout(
    tokens: int, routing: Routing, experts: int, row_multiple: int, capacity: float, even: bool = False
) -> dispatch.Layout:
    """Where a routing's tokens sit. even: where there is a capacity, each expert has all its places, taken or not."""
    if routing.tokens_EC is not None:
        return dispatch.by_expert(routing.tokens_EC, tokens, row_multiple)
    assert routing.experts_TK is not None
    most = dispatch.capacity(capacity, tokens, routing.experts_TK.shape[1], experts)
    given = routing.experts_TK, routing.weights, experts, row_multiple, most
    return dispatch.by_token(*given, even=True) if even else dispatch.by_token(*given)
