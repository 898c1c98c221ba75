"""One optimiser step: micro-batches accumulate to exactly the whole batch's gradient, and the numbers to log come back.

Each micro-batch's losses are means; weighted by its share of the learnt tokens (the routers' losses: of the rows), the
sums are the means over the batch.
B sequences, S positions, L layers, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gristmill.trainer.data import Example
from gristmill.trainer.model.attention.segments import from_starts
from gristmill.trainer.model.transformer import Transformer


class StepResult(NamedTuple):
    """Means over the whole batch, as plain numbers. nll in nats per token; balance and z are means over layers."""

    nll: float
    grad_norm: float  # before clipping
    load_LE: list[list[float]]
    entropy_L: list[float]
    balance: float
    z: float


def train_step(
    model: Transformer, optimizer: torch.optim.Optimizer, example: Example, micro: int, rate: float, clip: float
) -> StepResult:
    """Set the learning rate, accumulate gradients, clip, and step; a loss or norm that is not finite skips the step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    result = accumulate(model, example, micro)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    if torch.isfinite(norm) and torch.isfinite(result.nll):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        nll=result.nll.item(),
        grad_norm=norm.item(),
        load_LE=[[round(share, 5) for share in layer] for layer in result.load_LE.tolist()],
        entropy_L=[round(value, 5) for value in result.entropy_L.tolist()],
        balance=result.balance.item(),
        z=result.z.item(),
    )


class Accumulated(NamedTuple):
    nll: torch.Tensor
    load_LE: torch.Tensor
    entropy_L: torch.Tensor
    balance: torch.Tensor
    z: torch.Tensor


def accumulate(model: Transformer, example: Example, micro: int) -> Accumulated:
    """Add the batch's gradients into .grad, `micro` rows at a time; answers detached means over the batch."""
    rows = len(example.inputs_BS)
    learnt_tokens = example.targets_BS.numel() if example.learnt_BS is None else example.learnt_BS.sum().clamp(min=1)
    total: Accumulated | None = None
    for start in range(0, rows, micro):
        some = example.rows(start, start + micro)
        share = len(some.inputs_BS) / rows
        learnt = share if some.learnt_BS is None else some.learnt_BS.sum() / learnt_tokens
        loss = model.loss(some.inputs_BS, some.targets_BS, from_starts(some.starts_BS), some.learnt_BS)
        (loss.nll * learnt + loss.auxiliary * share).backward()
        part = Accumulated(
            nll=loss.nll.detach() * (learnt / share),
            load_LE=torch.stack([report.load_E for report in loss.routers]),
            entropy_L=torch.stack([report.entropy for report in loss.routers]),
            balance=torch.stack([report.balance.detach() for report in loss.routers]).mean(),
            z=torch.stack([report.z.detach() for report in loss.routers]).mean(),
        )
        weighted = Accumulated(*(value * share for value in part))
        total = weighted if total is None else Accumulated(*(old + new for old, new in zip(total, weighted)))
    assert total is not None, "an empty batch"
    return total
