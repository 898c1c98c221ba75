"""Which experts a token goes to, and with what weight. One class per kind of router, all returning `Routing`.

Routers compute in fp32 whatever the model's precision: a rounded logit sends a token to another expert.
T tokens, D width, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model.config import ModelConfig


class Routing(NamedTuple):
    """logits, probs and weights in fp32; weights_TK sum to 1 per token; experts_TK int64."""

    logits_TE: torch.Tensor
    probs_TE: torch.Tensor
    weights_TK: torch.Tensor
    experts_TK: torch.Tensor


class SoftmaxTopK(nn.Module):
    """Softmax over all experts, the top k kept, their probabilities normalised (Qwen3-MoE's norm_topk_prob)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.experts, config.width))
        self.top_k = config.top_k

    def forward(self, x_TD: torch.Tensor) -> Routing:
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        probs_TE = logits_TE.softmax(dim=-1)
        top_TK, experts_TK = probs_TE.topk(self.top_k, dim=-1)
        return Routing(logits_TE, probs_TE, top_TK / top_TK.sum(dim=-1, keepdim=True), experts_TK)


KINDS: dict[str, Callable[[ModelConfig], nn.Module]] = {"softmax": SoftmaxTopK}


def build(config: ModelConfig) -> nn.Module:
    if config.router not in KINDS:
        raise UsageError(f"model.router: no {config.router!r}{nearest(config.router, KINDS)}")
    return KINDS[config.router](config)
