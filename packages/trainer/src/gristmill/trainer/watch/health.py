"""How a step went, as numbers: the state of the routers, and how far the weights moved.

All numbers of a step leave the device in one transfer. L layers with experts, E experts, T tokens, N bins.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim.optimizer import Optimizer

LOGIT_BINS, LOGIT_REACH = 32, 8.0  # equal bins from -8 to 8; what lies beyond is counted in the outermost
LOSSES = ("balance", "sequence", "z", "dropped")  # a RouterReport's, in the order of losses_L4


class Accumulated(NamedTuple):
    """A batch's means, as tensors, detached."""

    nll: torch.Tensor
    loads: list[torch.Tensor]  # [E] of each layer that has experts
    entropy_L: torch.Tensor
    losses_L4: torch.Tensor
    logits_LN: torch.Tensor  # share of the routers' logits in each bin; no bins, if the step was not observed


class RouterHealth(NamedTuple):
    """Over the whole batch. Every list has an entry for each layer that has experts."""

    load: list[list[float]]  # share of assignments by expert; rows may be of unlike length
    entropy: list[float]  # 1 undecided, 0 certain
    busiest: list[float]  # the greatest load over the mean one; 1 is even
    dead: list[int]  # experts that nothing was assigned to
    bias_range: list[float]  # greatest less least, of each router that balances by a bias
    balance_loss: list[float]
    sequence_loss: list[float]
    z_loss: list[float]
    dropped: list[float]  # share of assignments beyond an expert's capacity
    logits: dict[str, Any] | None  # {"low", "high", "share": by layer, in equal bins}; None: the step was not observed


def fetch(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
    """The values of each tensor, all in one transfer."""
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).tolist()
    ends = itertools.accumulate(tensor.numel() for tensor in tensors)
    return [flat[end - tensor.numel() : end] for tensor, end in zip(tensors, ends)]


def router_tensors(model: Transformer, batch: Accumulated) -> list[torch.Tensor]:
    """What router_health() makes numbers of."""
    biases = [router.get_buffer("bias_E") for router in model.routers if hasattr(router, "bias_E")]
    ranges = [bias_E.max() - bias_E.min() for bias_E in biases]
    ranges_L = torch.stack(ranges) if ranges else batch.nll.new_zeros(0)
    return [batch.entropy_L, batch.losses_L4, batch.logits_LN, ranges_L, *batch.loads]


def router_health(numbers: Sequence[list[float]]) -> RouterHealth | None:
    """From router_tensors(), fetched. None: no layer has experts."""
    entropy, losses, logits, ranges, *loads = numbers
    if not loads:
        return None
    balance, sequence, z, dropped = ([round(value, 6) for value in losses[at :: len(LOSSES)]] for at in range(4))
    shares = {
        "low": -LOGIT_REACH,
        "high": LOGIT_REACH,
        "share": [
            [round(value, 5) for value in logits[start : start + LOGIT_BINS]]
            for start in range(0, len(logits), LOGIT_BINS)
        ],
    }
    return RouterHealth(
        load=[[round(share, 5) for share in load] for load in loads],
        entropy=[round(value, 5) for value in entropy],
        busiest=[round(max(load) * len(load), 5) for load in loads],
        dead=[load.count(0.0) for load in loads],
        bias_range=[round(value, 6) for value in ranges],
        balance_loss=balance,
        sequence_loss=sequence,
        z_loss=z,
        dropped=dropped,
        logits=shares if logits else None,
    )


@torch.no_grad()
def logit_shares(logits_TE: torch.Tensor) -> torch.Tensor:
    """[N]: the share of logits in each bin."""
    place_TE = (logits_TE.float().nan_to_num() + LOGIT_REACH) * (LOGIT_BINS / (2 * LOGIT_REACH))
    bin_A = place_TE.clamp(0, LOGIT_BINS - 1).long().flatten()
    count_N = torch.zeros(LOGIT_BINS, device=bin_A.device)
    return count_N.scatter_add(0, bin_A, torch.ones_like(bin_A, dtype=count_N.dtype)) / len(bin_A)


Weights = Mapping[str, list[torch.Tensor | None]]


@torch.no_grad()
def copies(optimizer: Optimizer) -> Weights:
    """The weights as they are, group by group: as much memory as the model, for as long as this is kept."""
    return {group: [parameter.detach().clone() for _, parameter in own] for group, own in optimizer.groups.items()}


@torch.no_grad()
def relative_updates(optimizer: Optimizer, before: Weights) -> dict[str, float]:
    """By group, the norm of what was added to the weights since they were `before` (which this overwrites), over the
    norm that they had."""
    sizes = optimizer.norms(before)
    for group, own in optimizer.groups.items():
        for old, (_, parameter) in zip(before[group], own, strict=True):
            assert old is not None
            old.sub_(parameter.detach())
    changes = optimizer.norms(before)
    tiny = torch.finfo(torch.float32).tiny
    ratios = [changes[group] / sizes[group].clamp(min=tiny) for group in before]
    return dict(zip(before, fetch([torch.stack(ratios)])[0]))
