"""Rows of a tensor from every rank of a group to every other, and their gradients back.

Rows set out, and are waited for later: in between, the caller computes. The backward pass is the same journey the other
way round: gradients set out where rows were waited for, and are waited for where rows set out. autograd takes up last
what was computed first, so gradients of what was computed in between are computed in between, too.
All ranks of a group must start the same journeys in the same order. R rows sent, Q rows received, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Splits:
    """Rows to, and from, each rank, in the ranks' order."""

    send: list[int]
    receive: list[int]
    most: int
    """Rows that any rank of the group sends, or receives, in all: the same number on every rank."""

    @property
    def back(self) -> Splits:
        return Splits(self.receive, self.send, self.most)


class Pending(Protocol):
    """Bytes on their way."""

    def wait(self) -> object:
        """From here on the receiver's buffer may be read: on a GPU by what is launched after this, on a CPU by all."""
        ...


Move = Callable[[torch.Tensor, torch.Tensor, Splits | None, dist.ProcessGroup], Pending]
"""A backend: move(out_QD, x_RD, splits, group) begins to fill `out_QD`, and answers what to wait for. Without splits
every rank sends every other as many rows. One with memory of its own may rely on all ranks giving the same `most`.

DeepEP takes tokens and choices instead of rows in expert order: it would stand in the place of model.moe.spread's
forward, not of this."""


def by_torch(out_QD: torch.Tensor, x_RD: torch.Tensor, splits: Splits | None, group: dist.ProcessGroup) -> Pending:
    """torch.distributed: gloo for tensors on a CPU, NCCL for those on GPUs."""
    receive, send = (None, None) if splits is None else (splits.receive, splits.send)
    work = dist.all_to_all_single(out_QD, x_RD, receive, send, group=group, async_op=True)
    assert work is not None, "this process is not of the group"
    return work


class AllToAll:
    """One group's. `bytes_sent`: by this rank to others, of rows and of their gradients; grows with every journey."""

    def __init__(self, group: dist.ProcessGroup, move: Move = by_torch) -> None:
        self.group, self.move = group, move
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.bytes_sent = 0

    def start(self, x_RD: torch.Tensor, splits: Splits | None = None) -> Journey:
        """Rows, in the order of the ranks that they go to, set out; an equal part to each without splits.
        Differentiable."""
        return Journey(self, x_RD, splits)

    @torch.no_grad()
    def gather(self, x_N: torch.Tensor) -> torch.Tensor:
        """[n, N]: every rank's x, here when this returns. For counts; not part of bytes_sent."""
        # All to all of the same for each: gloo's all_gather takes longer.
        out = x_N.new_empty(self.ranks * len(x_N))
        dist.all_to_all_single(out, x_N.repeat(self.ranks), group=self.group)
        return out.view(self.ranks, -1)

    def set_out(self, x_RD: torch.Tensor, splits: Splits | None) -> tuple[torch.Tensor, Pending]:
        """What a journey is made of: the buffer that rows arrive in, and what to wait for."""
        out_QD = x_RD.new_empty(len(x_RD) if splits is None else sum(splits.receive), *x_RD.shape[1:])
        staying = len(x_RD) // self.ranks if splits is None else splits.send[self.rank]
        self.bytes_sent += (len(x_RD) - staying) * x_RD[:1].nbytes
        return out_QD, self.move(out_QD, x_RD.contiguous(), splits, self.group)


class Journey:
    """Rows that set out. To be waited for once."""

    def __init__(self, link: AllToAll, x_RD: torch.Tensor, splits: Splits | None) -> None:
        self.link, self.splits = link, splits
        self.pending: Pending | None = None
        self.gradient: tuple[torch.Tensor, Pending] | None = None  # in the backward pass, while it is on its way
        self._rows: Any = _SetOut.apply(x_RD, self)

    def wait(self) -> torch.Tensor:
        """[Q, D], in the order of the ranks that they come from."""
        # The rows' graph holds this journey: were it to hold them, too, both would wait for Python's collector.
        rows, self._rows = self._rows, None
        return _Arrive.apply(rows, self)  # pyright: ignore[reportReturnType]


class _SetOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: torch.Tensor, journey: Journey) -> torch.Tensor:
        ctx.journey = journey
        out_QD, journey.pending = journey.link.set_out(x_RD, journey.splits)
        return out_QD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """`grads` says nothing: what _Arrive's backward sent comes in here."""
        assert ctx.journey.gradient is not None
        (grad_RD, pending), ctx.journey.gradient = ctx.journey.gradient, None
        pending.wait()
        return grad_RD, None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out_QD: torch.Tensor, journey: Journey) -> torch.Tensor:
        ctx.journey = journey
        assert journey.pending is not None
        journey.pending.wait()
        journey.pending = None
        return out_QD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        journey = ctx.journey
        journey.gradient = journey.link.set_out(grads[0], journey.splits and journey.splits.back)
        return grads[0], None  # of the right shape, for autograd's sake
