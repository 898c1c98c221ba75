"""The mixture of experts in plain loops, and a precision that runs the model's own code in fp64.

T tokens, D width, E experts, K experts per token.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.precision import Precision

# Odd on purpose: five experts, and widths that are unlike.
CONFIG = ModelConfig(
    vocab=50, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=5, top_k=2, expert_width=8
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exact:
    """Products in fp64, one group after the other."""

    row_multiple: int = 1
    dtype: torch.dtype = torch.float64

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight.double())

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        ends = ends_E.tolist()
        groups = zip([0, *ends], ends, weight_EFD.double())
        return torch.cat([x_RD[start:end] @ weight_FD.t() for start, end, weight_FD in groups])


def randomise(module: nn.Module, seed: int = 0, std: float = 0.4) -> None:
    """Every parameter from a normal; those of one dimension around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(drawn if parameter.ndim > 1 else 1 + drawn)


def layer(config: ModelConfig, precision: Precision | None = None, experts: int = 0) -> MixtureOfExperts:
    built = MixtureOfExperts(config, experts or config.experts, precision or Exact())
    randomise(built)
    return built.double() if precision is None or precision.dtype == torch.float64 else built


def swiglu(x_D: torch.Tensor, gate_up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    gate_F, up_F = (gate_up_FD @ x_D).chunk(2)
    return down_DF @ (F.silu(gate_F) * up_F)


def softmax_choice(weight_ED: torch.Tensor, x_D: torch.Tensor, top_k: int) -> list[tuple[int, torch.Tensor]]:
    """(expert, weight) of each choice: the k greatest probabilities, divided by their sum."""
    probs_E = (weight_ED @ x_D).softmax(0)
    best = sorted(range(len(probs_E)), key=lambda expert: -probs_E[expert].item())[:top_k]
    total = sum(probs_E[expert] for expert in best)
    return [(expert, probs_E[expert] / total) for expert in best]


def kept(choices: list[list[tuple[int, torch.Tensor]]], most: int) -> set[tuple[int, int]]:
    """(token, expert) of what is computed where an expert takes the `most` of greatest weight; 0: all."""
    result = set()
    for expert in {expert for own in choices for expert, _ in own}:
        wanted = [(-w.item(), token) for token, own in enumerate(choices) for e, w in own if e == expert]
        result |= {(token, expert) for _, token in sorted(wanted)[: most or None]}
    return result


def mixture(moe: MixtureOfExperts, x_BSD: torch.Tensor, top_k: int, most: int = 0) -> tuple[torch.Tensor, float]:
    """A layer under the softmax router, token by token; and the share of assignments that were dropped."""
    x_TD = x_BSD.flatten(0, 1)
    choices = [softmax_choice(moe.router.weight, x_D, top_k) for x_D in x_TD]  # pyright: ignore
    computed = kept(choices, most)
    rows = []
    for token, x_D in enumerate(x_TD):
        y_D = torch.zeros_like(x_D)
        for expert, weight in choices[token]:
            if (token, expert) in computed:
                y_D = y_D + weight * swiglu(x_D, moe.experts.gate_up_EFD[expert], moe.experts.down_EDF[expert])
        if moe.shared is not None:
            y_D = y_D + swiglu(x_D, moe.shared.gate_up.weight, moe.shared.down.weight)
        if moe.residual is not None:
            network = moe.residual.network
            share_2 = (moe.residual.share.weight @ x_D).softmax(0)
            y_D = share_2[0] * y_D + share_2[1] * swiglu(x_D, network.gate_up.weight, network.down.weight)
        if moe.bungee is not None:
            y_D = moe.bungee * y_D
        if moe.output_norm is not None:
            y_D = moe.output_norm.weight * y_D / torch.sqrt(y_D.square().mean() + moe.output_norm.eps)
        rows.append(y_D)
    return torch.stack(rows).view_as(x_BSD), 1 - len(computed) / (len(x_TD) * top_k)


def even_share(tokens: int, top_k: int, experts: int, factor: float) -> int:
    """An expert's capacity, as DeepSpeed counts it."""
    return max(math.ceil(tokens * top_k / experts * factor), 4)
