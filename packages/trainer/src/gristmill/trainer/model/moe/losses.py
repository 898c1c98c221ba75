"""What keeps experts evenly used, and what shows that they are.

Load balance is taken per sequence and averaged, so it is linear in sequences: gradients accumulated over micro-batches
equal those of the whole batch exactly, which a loss over the micro-batch's own load does not give.
B sequences, S positions, T = B*S tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math

import torch


def load_balance(probs_TE: torch.Tensor, experts_TK: torch.Tensor, sequences: int) -> torch.Tensor:
    """E * sum over experts of (share of assignments) * (mean probability), per sequence, averaged; 1 when even.

    Switch Transformer (arXiv 2101.03961, eq. 4), per sequence as in DeepSeek-V3 (arXiv 2412.19437, eq. 17). The
    gradient reaches the router through the probabilities; the share is a count.
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
    return torch.bincount(experts_TK.flatten(), minlength=experts).float() / experts_TK.numel()


@torch.no_grad()
def entropy(probs_TE: torch.Tensor) -> torch.Tensor:
    """Mean entropy of a token's expert probabilities, divided by log E; 1 for a single expert."""
    E = probs_TE.shape[1]
    return torch.special.entr(probs_TE).sum(dim=-1).mean() / math.log(E) if E > 1 else probs_TE.new_ones(())
