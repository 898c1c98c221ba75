"""Which experts a token goes to, and with what weight: one file per kind of router.

A kind's file has `Options` and `Router(config, options, experts)`, called as router(x_TD, sequences) -> Routing; a
router that has `balance(load_E)` is told the whole batch's load after each optimiser step.
Routers compute in fp32 whatever the model's precision: a rounded logit sends a token to another expert.
T tokens, E experts, K experts per token where tokens choose, C tokens per expert where experts do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig


class Routing(NamedTuple):
    """logits, probs and weights in fp32; experts and tokens int64.

    Where tokens choose, experts_TK says what each chose, weights are [T, K], and tokens_EC is None. Where experts
    choose, tokens_EC says which tokens each took, weights are [E, C], and experts_TK is None.
    """

    logits_TE: torch.Tensor
    probs_TE: torch.Tensor  # rows sum to 1: what losses and entropy are made of
    weights: torch.Tensor
    experts_TK: torch.Tensor | None
    tokens_EC: torch.Tensor | None = None
    preferred_TK: torch.Tensor | None = None  # the highest scores, where the choice heeds more than scores


def build(config: ModelConfig, experts: int) -> nn.Module:
    """A layer's router over its `experts`.

    Raises:
        UsageError: no such kind, or options that do not fit the model.
    """
    module = kinds.find(__name__, config.router, "model.router")
    return module.Router(config, kinds.options(config.router, module.Options, config), experts)
