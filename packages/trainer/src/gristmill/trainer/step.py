"""One optimiser step: micro-batches accumulate to exactly the whole batch's gradient, and the numbers to log come back.

Each micro-batch's losses are means; weighted by its share of the learnt tokens (the routers' losses: of the rows), the
sums are the means over the batch. Processes take micro-batches in turn: the sums are those of one process, bit for bit.
B sequences, S positions, L layers with experts, E experts, N bins.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gristmill.base.errors import UsageError
from gristmill.trainer.data import Example
from gristmill.trainer.model.moe import RouterReport
from gristmill.trainer.model.segments import from_starts
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim.optimizer import Optimizer
from gristmill.trainer.parallel.shards import Shards
from gristmill.trainer.parallel.world import World
from gristmill.trainer.watch.health import (
    LOSSES,
    Accumulated,
    RouterHealth,
    copies,
    fetch,
    logit_shares,
    relative_updates,
    router_health,
    router_tensors,
)


class StepResult(NamedTuple):
    """Means over the whole batch, as plain numbers."""

    nll: float  # nats per learnt token
    grad_norm: float  # before clipping
    norms: dict[str, float]  # the same, by group of parameters
    updates: dict[str, float] | None  # by group, what was added to the weights over them (norms); None: not observed
    router: RouterHealth | None  # None: no layer has experts
    moved: bool  # False: not finite, or not accepted; the weights are as before


def always(_nll: float, _grad_norm: float) -> bool:
    return True


def nothing(_pass: int) -> None:
    pass


def train_step(
    model: Transformer,
    optimizer: Optimizer,
    example: Example,
    micro: int,
    factor: float,
    accept: Callable[[float, float], bool] = always,
    observe: bool = False,
    before_pass: Callable[[int], object] = nothing,
) -> StepResult:
    """Set the learning rates, accumulate gradients, clip, and step.

    Args:
        example: the whole batch, at every process.
        factor: of the peak learning rates.
        accept: asked with the loss and the gradient's norm before anything moves; False leaves all as it is. A loss or
            norm that is not finite never moves anything.
        observe: measure updates and the routers' logits too, for the time and memory of a copy of the weights.
        before_pass: called with the number of each micro-batch of this process, before it.
    """
    optimizer.begin(factor)
    batch = accumulate(model, example, micro, observe, optimizer.shards, before_pass)
    norms = optimizer.clip()
    (nll,), *rest = fetch([batch.nll, *norms.values(), *router_tensors(model, batch)])
    by_group = {group: value for group, (value,) in zip(norms, rest)}
    norm = by_group.pop("all")
    moved = math.isfinite(nll) and math.isfinite(norm) and accept(nll, norm)
    updates = None
    if moved:
        before = copies(optimizer) if observe else None
        optimizer.step()
        updates = relative_updates(optimizer, before) if before else None
        model.adapt(batch.loads, norm, biases=not optimizer.is_frozen("router"))
    optimizer.zero_grad()
    return StepResult(nll, norm, by_group, updates, router_health(rest[len(norms) :]), moved)


def accumulate(
    model: Transformer, example: Example, micro: int, observe: bool = False, shards: Shards | None = None,
    before_pass: Callable[[int], object] = nothing,
) -> Accumulated:  # fmt: skip
    """Add the batch's gradients into .grad, `micro` rows at a time; answers means over the batch.

    Raises:
        UsageError: the micro-batches cannot be shared out evenly.
    """
    shards = shards or Shards(model)
    rows, world = len(example.inputs_BS), shards.world
    if rows % (micro * world.size) and not world.is_alone:
        raise UsageError(
            f"{rows} windows in passes of {micro} (batch.micro) cannot be shared by {world.size} processes: make "
            "batch.sequences (and batch.ramp_from) a multiple of batch.micro x processes"
        )
    learnt_tokens = example.targets_BS.numel() if example.learnt_BS is None else example.learnt_BS.sum().clamp(min=1)
    parts: list[Accumulated] = []
    for start in range(world.rank * micro, rows, micro * world.size):
        before_pass(start // micro)
        some = example.rows(start, start + micro)
        share = len(some.inputs_BS) / rows
        learnt = share if some.learnt_BS is None else some.learnt_BS.sum() / learnt_tokens
        loss = model.loss(some.inputs_BS, some.targets_BS, from_starts(some.starts_BS), some.learnt_BS)
        shards.before_backward()
        (loss.nll * learnt + loss.auxiliary * share).backward()
        parts.append(_weighted(loss.nll.detach() * learnt, loss.routers, share, observe))
    shards.after_backward()
    return functools.reduce(_sum, _of_all(parts, world))


def _of_all(parts: list[Accumulated], world: World) -> list[Accumulated]:
    """What all processes found, in the order of the micro-batches."""
    if world.is_alone:
        return parts
    flat_MN = torch.stack([torch.cat([tensor.flatten() for tensor in _tensors(part)]) for part in parts])
    flat_AN = world.gather(flat_MN).transpose(0, 1).flatten(0, 1)  # pass m of process r is the batch's m * W + r
    sizes = [tensor.numel() for tensor in _tensors(parts[0])]
    return [_like(parts[0], one_N.split(sizes)) for one_N in flat_AN]


def _tensors(part: Accumulated) -> list[torch.Tensor]:
    return [part.nll, part.entropy_L, part.losses_L4, part.logits_LN, *part.loads]


def _like(part: Accumulated, flat: Sequence[torch.Tensor]) -> Accumulated:
    nll, entropy_L, losses_L4, logits_LN, *loads = (
        own.view(tensor.shape) for own, tensor in zip(flat, _tensors(part), strict=True)
    )
    return Accumulated(nll, loads, entropy_L, losses_L4, logits_LN)


@torch.no_grad()
def _weighted(nll: torch.Tensor, routers: Sequence[RouterReport], share: float, observe: bool) -> Accumulated:
    if not routers:
        return Accumulated(nll, [], nll.new_zeros(0), nll.new_zeros(0, len(LOSSES)), nll.new_zeros(0, 0))
    losses_L4 = torch.stack([torch.stack([getattr(one, name) for name in LOSSES]) for one in routers])
    shares = [logit_shares(one.logits_TE) for one in routers] if observe else [nll.new_zeros(0) for _ in routers]
    return Accumulated(
        nll=nll,
        loads=[one.load_E * share for one in routers],
        entropy_L=torch.stack([one.entropy for one in routers]) * share,
        losses_L4=losses_L4 * share,
        logits_LN=torch.stack(shares) * share,
    )


def _sum(a: Accumulated, b: Accumulated) -> Accumulated:
    loads = [old + new for old, new in zip(a.loads, b.loads, strict=True)]
    return Accumulated(
        a.nll + b.nll, loads, a.entropy_L + b.entropy_L, a.losses_L4 + b.losses_L4, a.logits_LN + b.logits_LN
    )
