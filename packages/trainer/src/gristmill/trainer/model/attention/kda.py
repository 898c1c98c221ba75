"""Kimi delta attention (Kimi Linear, arXiv 2510.26692): no scores, but a state of fixed size that each position erases
and writes (_delta_rule.py), with a decay for each channel. It has no rotary positions: decay tells near from far.

Its Hugging Face form is kimi_linear's, whose equal it is. The state is computed in fp32, whatever the precision.

B sequences, S new positions, T positions looked at, D width, H heads, d width of a head, F = 3 * H * d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.base.config import check_range
from gristmill.trainer.model.attention._delta_rule import CHUNK, delta_rule
from gristmill.trainer.model.attention._scores import remember
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.filling import Fill, whole
from gristmill.trainer.model.layers import Linear, RMSNorm
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.model.segments import Context


@dataclass(frozen=True)
class Options:
    taps: int = 4
    """Nearest positions that a short convolution mixes into queries, keys and values, itself among them; 1: none."""

    def __post_init__(self) -> None:
        check_range("taps", self.taps, 1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, precision: Precision) -> None:
        super().__init__()
        self.head_dim, self.taps = config.head_dim, options.taps
        inner = config.heads * config.head_dim
        self.query = Linear(config.width, inner, precision)
        self.key = Linear(config.width, inner, precision)
        self.value = Linear(config.width, inner, precision)
        self.convolution_FK = nn.Parameter(torch.empty(3 * inner, options.taps))  # K taps, the newest position's last
        self.decay_down = Linear(config.width, config.head_dim, precision)
        self.decay_up = Linear(config.head_dim, inner, precision)
        self.decay_bias = nn.Parameter(torch.empty(inner))
        self.log_rate_H = nn.Parameter(torch.empty(config.heads))
        self.beta = Linear(config.width, config.heads, precision)
        self.gate_down = Linear(config.width, config.head_dim, precision)
        self.gate_up = Linear(config.head_dim, inner, precision)
        self.output_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.output = Linear(inner, config.width, precision)

    def initialise(self, generator: torch.Generator, fill: Fill = whole) -> None:
        """Steps of 0.001 to 0.1 and rates of 1 to 16: from Mamba (arXiv 2312.00752, section 3.6), as in Kimi Linear."""

        def bias(shape: torch.Size) -> torch.Tensor:
            step = torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp()
            return step + torch.log(-torch.expm1(-step))  # softplus of it is the step

        fill(self.decay_bias, bias)
        fill(self.log_rate_H, lambda shape: torch.empty(shape).uniform_(1.0, 16.0, generator=generator).log())

    def forward(
        self, x_BSD: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        high = torch.promote_types(x_BSD.dtype, torch.float32)
        qkv_BSF = torch.cat((self.query(x_BSD), self.key(x_BSD), self.value(x_BSD)), dim=-1)
        qkv_BSF = F.silu(self._convolve(qkv_BSF, context, memory)).to(high)
        q_BHSd, k_BHSd, v_BHSd = (self._heads(part) for part in qkv_BSF.chunk(3, dim=-1))
        step_BHSd = F.softplus(self._heads(self.decay_up(self.decay_down(x_BSD)).to(high) + self.decay_bias))
        decay_BHSd = -self.log_rate_H.exp()[:, None, None] * step_BHSd
        beta_BHS = self.beta(x_BSD).to(high).sigmoid().transpose(1, 2)
        y_BHSd, state_BHdd = delta_rule(
            _unit(q_BHSd) * self.head_dim**-0.5, _unit(k_BHSd), v_BHSd, decay_BHSd, beta_BHS, context.positions_BS,
            memory.get("state") if memory else None,
        )  # fmt: skip
        if memory is not None:
            memory["state"] = state_BHdd
        gate_BHSd = self._heads(self.gate_up(self.gate_down(x_BSD)).to(high)).sigmoid()
        y_BHSd = (self.output_norm(y_BHSd) * gate_BHSd).to(x_BSD.dtype)
        return self.output(y_BHSd.transpose(1, 2).flatten(2))

    def flops(self, sequence: int) -> float:
        """Forward FLOPs of the delta rule beside its maps: per token, in chunks. They do not grow with the sequence."""
        d, C = self.head_dim, min(CHUNK, sequence)
        return self.log_rate_H.shape[0] * (6 * d * d + 8 * C * d)

    def _heads(self, x_BSF: torch.Tensor) -> torch.Tensor:
        return x_BSF.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _convolve(self, x_BSF: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None) -> torch.Tensor:
        """Each channel by itself, over the nearest positions of the same document."""
        S, older = x_BSF.shape[1], self.taps - 1
        (x_BTF,) = remember(memory, max(older, 1), dim=1, unmixed=x_BSF)
        x_BTF = F.pad(x_BTF, (0, 0, max(S + older - x_BTF.shape[1], 0), 0))
        weight_FK, T = self.convolution_FK.to(x_BSF.dtype), x_BTF.shape[1]
        y_BSF = x_BSF * weight_FK[:, -1]
        for back in range(1, self.taps):
            there_BS1 = (context.positions_BS >= back)[..., None]
            y_BSF = y_BSF + x_BTF.narrow(1, T - S - back, S) * weight_FK[:, -1 - back] * there_BS1
        return y_BSF


def _unit(x: torch.Tensor) -> torch.Tensor:
    """x at length 1."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
