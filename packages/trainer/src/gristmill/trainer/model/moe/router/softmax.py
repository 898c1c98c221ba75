"""Softmax over all experts, the top k kept: Switch (top 1, arXiv 2101.03961), Mixtral (top 2, arXiv 2401.04088), Qwen3.

T tokens, D width, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe.router import Routing


@dataclass(frozen=True)
class Options:
    normalise: bool = True
    """A token's weights sum to 1, as in Mixtral and Qwen3; Switch and DeepSeek-V2 keep the probabilities."""
    scale: float = 1.0
    """Weights times this (DeepSeek's routed_scaling_factor)."""


class Router(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, config.width))
        self.top_k, self.options = config.top_k, options

    def forward(self, x_TD: torch.Tensor, sequences: int) -> Routing:
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        probs_TE = logits_TE.softmax(dim=-1)
        top_TK, experts_TK = probs_TE.topk(self.top_k, dim=-1)
        if self.options.normalise:
            top_TK = top_TK / top_TK.sum(dim=-1, keepdim=True)
        return Routing(logits_TE, probs_TE, top_TK * self.options.scale, experts_TK)
