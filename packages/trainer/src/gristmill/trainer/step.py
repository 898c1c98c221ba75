"""One optimiser step: micro-batches accumulate to exactly the whole batch's gradient, and the numbers to log come back.

Each micro-batch's losses are means; weighted by its share of the learnt tokens (the routers' losses: of the rows), the
sums are the means over the batch.
B sequences, S positions, L layers with experts, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gristmill.trainer.data import Example
from gristmill.trainer.model.moe import RouterReport
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer


class RouterHealth(NamedTuple):
    """Of the layers that have experts, over the whole batch; the losses and `dropped` are means over layers."""

    load: list[list[float]]  # share of each layer's assignments by expert; rows may be of unlike length
    entropy: list[float]  # of each layer; 1 undecided, 0 certain
    bias_range: list[float]  # greatest less least, of each router that balances by a bias
    balance_loss: float
    sequence_loss: float
    z_loss: float
    dropped: float


class StepResult(NamedTuple):
    """Means over the whole batch, as plain numbers."""

    nll: float  # nats per learnt token
    grad_norm: float  # before clipping
    router: RouterHealth | None  # None: no layer has experts


def train_step(
    model: Transformer, optimizer: torch.optim.Optimizer, example: Example, micro: int, rate: float, clip: float
) -> StepResult:
    """Set the learning rate, accumulate gradients, clip, and step; a loss or norm that is not finite skips the step.

    rate: of groups whose `scale` is 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    result = accumulate(model, example, micro)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    if torch.isfinite(norm) and torch.isfinite(result.nll):
        optimizer.step()
        model.adapt(result.loads, norm.item())
    optimizer.zero_grad(set_to_none=True)
    return StepResult(result.nll.item(), norm.item(), _health(model, result) if result.loads else None)


class Accumulated(NamedTuple):
    """Tensors, detached."""

    nll: torch.Tensor
    loads: list[torch.Tensor]  # [E] of each layer that has experts
    entropy_L: torch.Tensor
    means_4: torch.Tensor  # over layers, of balance, sequence, z and dropped; zeros if no layer has experts


def accumulate(model: Transformer, example: Example, micro: int) -> Accumulated:
    """Add the batch's gradients into .grad, `micro` rows at a time; answers means over the batch."""
    rows = len(example.inputs_BS)
    learnt_tokens = example.targets_BS.numel() if example.learnt_BS is None else example.learnt_BS.sum().clamp(min=1)
    total: Accumulated | None = None
    for start in range(0, rows, micro):
        some = example.rows(start, start + micro)
        share = len(some.inputs_BS) / rows
        learnt = share if some.learnt_BS is None else some.learnt_BS.sum() / learnt_tokens
        loss = model.loss(some.inputs_BS, some.targets_BS, from_starts(some.starts_BS), some.learnt_BS)
        (loss.nll * learnt + loss.auxiliary * share).backward()
        part = _weighted(loss.nll.detach() * learnt, loss.routers, share)
        total = part if total is None else _sum(total, part)
    assert total is not None, "an empty batch"
    return total


@torch.no_grad()
def _weighted(nll: torch.Tensor, routers: Sequence[RouterReport], share: float) -> Accumulated:
    if not routers:
        return Accumulated(nll, [], nll.new_zeros(0), nll.new_zeros(4))
    losses_L4 = torch.stack([torch.stack((one.balance, one.sequence, one.z, one.dropped)) for one in routers])
    return Accumulated(
        nll=nll,
        loads=[one.load_E * share for one in routers],
        entropy_L=torch.stack([one.entropy for one in routers]) * share,
        means_4=losses_L4.mean(dim=0) * share,
    )


def _sum(a: Accumulated, b: Accumulated) -> Accumulated:
    loads = [old + new for old, new in zip(a.loads, b.loads, strict=True)]
    return Accumulated(a.nll + b.nll, loads, a.entropy_L + b.entropy_L, a.means_4 + b.means_4)


def _health(model: Transformer, result: Accumulated) -> RouterHealth:
    biases = [router.get_buffer("bias_E") for router in model.routers if hasattr(router, "bias_E")]
    balance, sequence, z, dropped = result.means_4.tolist()
    return RouterHealth(
        load=[[round(share, 5) for share in load_E.tolist()] for load_E in result.loads],
        entropy=[round(value, 5) for value in result.entropy_L.tolist()],
        bias_range=[round(float(bias_E.max() - bias_E.min()), 6) for bias_E in biases],
        balance_loss=balance,
        sequence_loss=sequence,
        z_loss=z,
        dropped=dropped,
    )
