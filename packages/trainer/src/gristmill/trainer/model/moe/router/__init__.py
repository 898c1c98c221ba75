"""Which experts a token goes to, and with what weight: one file per kind of router.

A kind's file has `Options` and `Router(config, options, experts)`, called as router(x_TD, sequences) -> Routing.
Routers compute in fp32 whatever the model's precision: a rounded logit sends a token to another expert.
T tokens, E experts, A assignments of a token to an expert; K experts per token where each token has as many.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig


class Routing(NamedTuple):
    """logits, probs and weights in fp32; experts and tokens int64.

    Where tokens choose, experts_TK and weights_TK say what each chose, and tokens_EC is None. Where experts choose,
    tokens_EC says which C tokens each took, weights_EC stands in `weights`, and `experts` is None.
    """

    logits_TE: torch.Tensor
    probs_TE: torch.Tensor  # rows sum to 1: what losses and entropy are made of
    weights: torch.Tensor
    experts_TK: torch.Tensor | None
    tokens_EC: torch.Tensor | None = None


def build(config: ModelConfig, experts: int) -> nn.Module:
    module = kinds.find(__name__, config.router, "model.router")
    return module.Router(config, kinds.options(config.router, module.Options, config), experts)
