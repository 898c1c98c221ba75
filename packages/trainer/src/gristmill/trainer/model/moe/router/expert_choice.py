"""Experts choose tokens, each those of its highest scores: the load is even by construction (arXiv 2202.09368).

In training an expert takes, of each sequence, as many tokens as top_k per token come to, times model.capacity where
that is set; a token may be with no expert, or with all. The choice looks at the whole sequence: whether a token is
computed depends on tokens that come after it. A training loss is therefore a little too good, and text cannot be
written that way, one token at a time. Outside training each token chooses its k best experts by the same scores, which
looks at nothing but the token; validation losses are of that model. The paper chooses out of a whole batch; out of each
sequence, a batch may be cut into micro-batches and stay the same.

T tokens, B sequences of S, D width, E experts, K experts per token, C tokens of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import dispatch
from gristmill.trainer.model.moe.router import Routing, _scores


@dataclass(frozen=True)
class Options:
    """None of its own: model.top_k and model.capacity say how many tokens an expert takes."""


class Router(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, config.width))
        self.top_k, self.capacity = config.top_k, config.capacity or 1.0

    def forward(self, x_TD: torch.Tensor, sequences: int) -> Routing:
        logits_TE = _scores.logits(x_TD, self.weight)
        probs_TE = logits_TE.softmax(dim=-1)
        if not self.training:
            weights_TK, experts_TK = probs_TE.topk(self.top_k, dim=-1)
            return Routing(logits_TE, probs_TE, weights_TK, experts_TK)
        probs_BSE = probs_TE.unflatten(0, (sequences, -1))
        B, S, E = probs_BSE.shape
        C = min(dispatch.capacity(self.capacity, S, self.top_k, E, least=1), S)
        weights_BCE, position_BCE = probs_BSE.topk(C, dim=1)
        token_BCE = position_BCE + torch.arange(0, B * S, S, device=x_TD.device)[:, None, None]
        tokens_EC, weights_EC = (x_BCE.permute(2, 0, 1).flatten(1) for x_BCE in (token_BCE, weights_BCE))
        return Routing(logits_TE, probs_TE, weights_EC, None, tokens_EC)
