"""Sigmoid scores, and a bias that keeps the load even without a loss: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2).

The bias decides which experts are chosen and never what they weigh, so it has no gradient: after each step it moves by
a fixed rate, against the sign of its expert's error in load (arXiv 2408.15664). T tokens, D width, E experts, K experts
per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gristmill.base.config import check_range
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe.router import Routing, _scores

EVEN = 1e-5  # of the mean load: sums of shares over micro-batches round by less


@dataclass(frozen=True)
class Options(_scores.TopK):
    rate: float = 0.001
    """What a bias moves by in a step (DeepSeek-V3's gamma); 0: it stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rate", self.rate)


class Router(nn.Module):
    """bias_E: fp32, part of a checkpoint."""

    bias_E: torch.Tensor

    def __init__(self, config: ModelConfig, options: Options, experts: int) -> None:
        super().__init__()
        _scores.require_possible("sigmoid", options, config, experts)
        self.weight = nn.Parameter(torch.empty(experts, config.width))
        self.register_buffer("bias_E", torch.zeros(experts, dtype=torch.float32))
        self.top_k, self.options = config.top_k, options

    def forward(self, x_TD: torch.Tensor, sequences: int) -> Routing:
        logits_TE = _scores.logits(x_TD, self.weight)
        scores_TE = logits_TE.sigmoid()
        probs_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + _scores.TINY)
        experts_TK = _scores.choose(scores_TE + self.bias_E, self.top_k, self.options, best=2)
        return Routing(
            logits_TE,
            probs_TE,
            _scores.weights(scores_TE, experts_TK, self.options),
            experts_TK,
            preferred_TK=scores_TE.detach().topk(self.top_k, dim=-1).indices,
        )

    def balance(self, load_E: torch.Tensor) -> None:
        """load_E: each expert's share of the whole batch's assignments. Unevenness of rounding moves nothing."""
        short_E = 1 - load_E * len(load_E)
        self.bias_E += self.options.rate * torch.sign(short_E) * (short_E.abs() > EVEN)
