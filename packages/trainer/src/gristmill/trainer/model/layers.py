"""The small layers that everything else is made of: a linear map that casts its own weight, RMSNorm, and SwiGLU.

D width in, F width out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.precision import Precision


class Linear(nn.Module):
    """x [..., D] -> [..., F], without bias, in the precision given."""

    def __init__(self, width_in: int, width_out: int, precision: Precision) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.precision = precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.precision.linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202): a dense network; gate and up are one product, the gate's rows
    first."""

    def __init__(self, width: int, hidden: int, precision: Precision) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, precision)
        self.down = Linear(hidden, width, precision)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
