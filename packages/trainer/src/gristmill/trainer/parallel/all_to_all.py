"""Rows of a tensor from every rank of a group to every other, and their gradients back.

Rows set out, and are waited for later: in between, the caller computes. The backward pass is the same journey the other
way round: gradients set out where rows were waited for, and are waited for where rows set out. autograd takes up last
what was computed first, so gradients of what was computed in between are computed in between, too.
All ranks of a group must start the same journeys in the same order. R rows sent, Q rows received, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist

Splits = list[int] | None
"""Rows to, or from, each rank, in the ranks' order; None: as many for each."""


class Pending(Protocol):
    """Bytes on their way."""

    def wait(self) -> object:
        """From here on the receiver's buffer may be read: on a GPU by what is launched after this, on a CPU by all."""
        ...


Move = Callable[[torch.Tensor, torch.Tensor, Splits, Splits, dist.ProcessGroup], Pending]
"""A backend: move(out_QD, x_RD, receive, send, group) begins to fill `out_QD`, and answers what to wait for.

Another one is given to AllToAll, and no other code knows of it: torch's symmetric memory (all_to_all_vdev) would copy
rows into a buffer of its own, and out of one. DeepEP takes tokens and choices instead of rows in expert order: it would
stand in the place of model.moe.spread's forward."""


def by_torch(
    out_QD: torch.Tensor, x_RD: torch.Tensor, receive: Splits, send: Splits, group: dist.ProcessGroup
) -> Pending:
    """torch.distributed: gloo for tensors on a CPU, NCCL for those on GPUs."""
    work = dist.all_to_all_single(out_QD, x_RD, receive, send, group=group, async_op=True)
    assert work is not None, "this process is not of the group"
    return work


class AllToAll:
    """One group's. `bytes_sent`: by this rank to others, of rows and of their gradients; grows with every journey."""

    def __init__(self, group: dist.ProcessGroup, move: Move = by_torch) -> None:
        self.group, self.move = group, move
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.bytes_sent = 0

    def start(self, x_RD: torch.Tensor, send: Splits = None, receive: Splits = None) -> Journey:
        """Rows, in the order of the ranks that they go to, set out: send[r] of them to rank r; receive[r] come from it.
        Differentiable."""
        return Journey(self, x_RD, send, receive)

    @torch.no_grad()
    def exchange(self, x_N: torch.Tensor) -> torch.Tensor:
        """An equal part of x to each rank, and one from each: [N], here when this returns. For counts; not counted."""
        out_N = torch.empty_like(x_N)
        self.move(out_N, x_N, None, None, self.group).wait()
        return out_N

    def set_out(self, x_RD: torch.Tensor, send: Splits, receive: Splits) -> tuple[torch.Tensor, Pending]:
        """What a journey is made of: the buffer that rows arrive in, and what to wait for."""
        out_QD = x_RD.new_empty(len(x_RD) if receive is None else sum(receive), *x_RD.shape[1:])
        staying = len(x_RD) // self.ranks if send is None else send[self.rank]
        self.bytes_sent += (len(x_RD) - staying) * x_RD[:1].nbytes
        return out_QD, self.move(out_QD, x_RD.contiguous(), receive, send, self.group)


class Journey:
    """Rows that set out. To be waited for once."""

    def __init__(self, link: AllToAll, x_RD: torch.Tensor, send: Splits, receive: Splits) -> None:
        self.link, self.send, self.receive = link, send, receive
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
        out_QD, journey.pending = journey.link.set_out(x_RD, journey.send, journey.receive)
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
        journey.gradient = journey.link.set_out(grads[0], journey.receive, journey.send)
        return grads[0], None  # of the right shape, for autograd's sake
