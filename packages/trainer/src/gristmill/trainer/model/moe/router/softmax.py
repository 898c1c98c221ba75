"""Softmax over all experts, the top k kept: Switch (top 1, arXiv 2101.03961), Mixtral (top 2, arXiv 2401.04088), Qwen3.

DeepSeek-V2 (arXiv 2405.04434) adds groups, and keeps the probabilities as weights, scaled. T tokens, D width,
E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe.router import Routing, _scores


@dataclass(frozen=True)
class Options(_scores.TopK):
    """What all top-k routers have, and nothing else."""


class Router(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, experts: int) -> None:
        super().__init__()
        _scores.require_possible("softmax", options, config, experts)
        self.weight = nn.Parameter(torch.empty(experts, config.width))
        self.top_k, self.options = config.top_k, options

    def forward(self, x_TD: torch.Tensor, sequences: int) -> Routing:
        logits_TE = _scores.logits(x_TD, self.weight)
        probs_TE = logits_TE.softmax(dim=-1)
        experts_TK = _scores.choose(probs_TE, self.top_k, self.options, best=1)
        return Routing(logits_TE, probs_TE, _scores.weights(probs_TE, experts_TK, self.options), experts_TK)
