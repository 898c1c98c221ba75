"""The mixture of experts: a router chooses, dispatch sorts, experts compute, losses keep the load even.

The layer returns its router's health beside its output, as values: nothing is counted on the side, so re-computing
a layer in the backward pass counts nothing twice. B sequences, S positions, T = B*S tokens, D width, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe import losses, router
from gristmill.trainer.model.moe.experts import Experts
from gristmill.trainer.model.precision import Precision


class RouterReport(NamedTuple):
    """One layer's router over one batch; load and entropy carry no gradient, the two losses do."""

    load_E: torch.Tensor  # share of assignments that went to each expert; sums to 1
    entropy: torch.Tensor  # mean entropy of a token's expert probabilities / log E: 1 undecided, 0 certain
    balance: torch.Tensor  # load-balance loss before its coefficient; 1 when even
    z: torch.Tensor  # z-loss before its coefficient


class MixtureOfExperts(nn.Module):
    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.router = router.build(config)
        self.experts = Experts(config, precision)

    def forward(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, RouterReport]:
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD)
        y_TD = self.experts(x_TD, routing.experts_TK, routing.weights_TK)
        sequences = x_BSD.shape[0]
        report = RouterReport(
            load_E=losses.load(routing.experts_TK, routing.probs_TE.shape[1]),
            entropy=losses.entropy(routing.probs_TE),
            balance=losses.load_balance(routing.probs_TE, routing.experts_TK, sequences),
            z=losses.z(routing.logits_TE),
        )
        return y_TD.view_as(x_BSD), report
