"""What keeps experts evenly used, and what shows that they are.

B sequences, S positions, T = B*S tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from gristmill.trainer.model.moe.router import Routing


class RouterReport(NamedTuple):
    """One layer's router over one batch; the three losses, before their coefficients, carry gradients."""

    load_E: torch.Tensor  # share of assignments that went to each expert, dropped ones among them; sums to 1
    entropy: torch.Tensor  # mean entropy of a token's expert probabilities / log E: 1 undecided, 0 certain
    balance: torch.Tensor  # load-balance loss over the batch; 1 when even
    sequence: torch.Tensor  # load-balance loss within sequences; 1 when even
    z: torch.Tensor  # z-loss
    dropped: torch.Tensor  # share of assignments beyond an expert's capacity; where experts choose, of tokens left out
    logits_TE: torch.Tensor  # the router's, detached


def report(routing: Routing, sequences: int, dropped: torch.Tensor) -> RouterReport:
    probs_TE, experts_TK = routing.probs_TE, routing.experts_TK
    if experts_TK is None:  # experts choose: the load is even whatever the router says, and needs no loss
        E = probs_TE.shape[1]
        even = probs_TE.new_ones(())
        load_E, balance, sequence = probs_TE.new_full((E,), 1 / E), even, even
    else:
        load_E = load(experts_TK, probs_TE.shape[1])
        balance = load_balance(probs_TE, experts_TK, 1)
        counted_TK = experts_TK if routing.preferred_TK is None else routing.preferred_TK
        sequence = load_balance(probs_TE, counted_TK, sequences)
    logits_TE = routing.logits_TE
    return RouterReport(load_E, entropy(probs_TE), balance, sequence, z(logits_TE), dropped, logits_TE.detach())


def load_balance(probs_TE: torch.Tensor, experts_TK: torch.Tensor, sequences: int) -> torch.Tensor:
    """E * sum over experts of (share of assignments) * (mean probability), per sequence, averaged; 1 when even.

    Switch Transformer (arXiv 2101.03961, eq. 4) over all tokens as one sequence; per sequence as in DeepSeek-V3 (arXiv
    2412.19437, eq. 17 to 20), where the share is that of the k highest scores, without biases. The gradient reaches the
    router through the probabilities; the share is a count. Per sequence it is linear in sequences, so gradients
    accumulated over micro-batches equal those of the whole batch; over all tokens it is not.
    """
    E = probs_TE.shape[1]
    prob_BE = probs_TE.view(sequences, -1, E).mean(dim=1)
    experts_BA = experts_TK.view(sequences, -1)
    share_BE = torch.zeros_like(prob_BE).scatter_add_(1, experts_BA, torch.ones_like(experts_BA, dtype=prob_BE.dtype))
    return E * (prob_BE * share_BE / experts_BA.shape[1]).sum(dim=1).mean()


def z(logits_TE: torch.Tensor) -> torch.Tensor:
    """Mean squared log-partition of the router's logits: keeps them small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits_TE.logsumexp(dim=-1).square().mean()


@torch.no_grad()
def load(experts_TK: torch.Tensor, experts: int) -> torch.Tensor:
    """Share of all assignments that each expert received: [E], sums to 1."""
    expert_A = experts_TK.flatten()
    count_E = torch.zeros(experts, device=expert_A.device)
    return count_E.scatter_add(0, expert_A, torch.ones_like(expert_A, dtype=count_E.dtype)) / len(expert_A)


@torch.no_grad()
def entropy(probs_TE: torch.Tensor) -> torch.Tensor:
    """Mean entropy of a token's expert probabilities, divided by log E; 1 for a single expert."""
    E = probs_TE.shape[1]
    return torch.special.entr(probs_TE).sum(dim=-1).mean() / math.log(E) if E > 1 else probs_TE.new_ones(())
