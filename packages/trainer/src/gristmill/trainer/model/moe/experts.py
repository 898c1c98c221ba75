"""The experts: SwiGLU networks as two stacked weights, every token computed by every expert it chose (dropless).

T tokens, K experts per token, R rows in expert order, E experts, D width, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import dispatch
from gristmill.trainer.model.precision import Precision


class Experts(nn.Module):
    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        E, D, width = config.experts, config.width, config.expert_width
        self.gate_up_EFD = nn.Parameter(torch.empty(E, 2 * width, D))  # the gate's rows first, then the up map's
        self.down_EDF = nn.Parameter(torch.empty(E, D, width))
        self.precision = precision

    def forward(self, x_TD: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Sum over a token's experts of weight * expert(x): [T, D]. An expert may have no token at all."""
        where = dispatch.layout(experts_TK, self.gate_up_EFD.shape[0], self.precision.row_multiple)
        x_RD = dispatch.scatter(x_TD, where)
        gate_RF, up_RF = self.precision.grouped_linear(x_RD, self.gate_up_EFD, where.ends_E).chunk(2, dim=-1)
        y_RD = self.precision.grouped_linear(F.silu(gate_RF) * up_RF, self.down_EDF, where.ends_E)
        y_TKD = dispatch.collect(y_RD, where)
        return (y_TKD * weights_TK[..., None].to(y_TKD.dtype)).sum(dim=1)
