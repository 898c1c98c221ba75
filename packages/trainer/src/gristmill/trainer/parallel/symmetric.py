"""An all-to-all that GPUs do among themselves, through memory that all of them can reach: torch's symmetric memory, on
NVSHMEM. No processor takes part, within a machine or between machines (InfiniBand).

Rows are copied into a buffer that lies at the same place on every GPU, and out of another one. Buffers grow when a
journey needs more than there was, on all ranks at once: `most` tells each the same.
On a GPU this is untested (docs/gpu.md); tests play it on CPUs with the operator played by gloo.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist

from gristmill.base.errors import UsageError
from gristmill.trainer.parallel.all_to_all import Pending, Splits

ROOM = 1.25
"""Of what a journey needs, so much is made: loads differ from step to step."""


def allocate(length: int, dtype: torch.dtype, device: torch.device, group: dist.ProcessGroup) -> torch.Tensor:
    """Memory at the same place on every rank of the group; all of them must ask for as much."""
    import torch.distributed._symmetric_memory as memory

    if memory.get_backend(device) != "NVSHMEM":
        memory.set_backend("NVSHMEM")  # the only one whose memory the operator takes
    own = memory.empty(length, dtype=dtype, device=device)
    memory.rendezvous(own, group.group_name)
    return own


def exchange(
    x_RD: torch.Tensor, out_QD: torch.Tensor, send_n: torch.Tensor, receive_2n: torch.Tensor, group: dist.ProcessGroup
) -> None:
    """torch's operator, all in memory of allocate(): `receive_2n` will say how many rows came from each, and where."""
    torch.ops.symm_mem.all_to_all_vdev(x_RD, out_QD, send_n, receive_2n, group.group_name)


class BySymmetricMemory:
    """A Move (all_to_all.py), of one group. One journey at a time is under way, as in a model of layers."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group, self.device = group, device
        self.ranks = dist.get_world_size(group)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._counts = allocate(3 * self.ranks, torch.int64, device, group)
        self._x = self._out = torch.empty(0, dtype=torch.uint8, device=device)
        self._token = torch.zeros(1, device=device)
        self._busy = False

    def __call__(
        self, out_QD: torch.Tensor, x_RD: torch.Tensor, splits: Splits | None, group: dist.ProcessGroup
    ) -> Pending:
        assert group is self.group and not self._busy, "one journey at a time, of the group that this was made for"
        self._busy = True
        self._grow((len(x_RD) if splits is None else splits.most) * math.prod(x_RD.shape[1:]) * x_RD.element_size())
        send = [len(x_RD) // self.ranks] * self.ranks if splits is None else splits.send
        from_n = torch.tensor(send, dtype=torch.int64)
        if self.stream is not None:
            from_n = from_n.pin_memory()
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            x_RD.record_stream(self.stream)
        with self._beside():
            send_n, receive_2n = self._counts[: self.ranks], self._counts[self.ranks :].view(2, -1)
            # Nobody writes into what another still reads: all are through with the journey before.
            dist.all_reduce(self._token, group=self.group)
            send_n.copy_(from_n, non_blocking=True)
            sent, come = (_rows(buffer, one) for buffer, one in ((self._x, x_RD), (self._out, out_QD)))
            sent.copy_(x_RD)
            exchange(sent, come, send_n, receive_2n, self.group)
        return _Arriving(self, come, out_QD)

    def _beside(self) -> Any:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _grow(self, most: int) -> None:
        if most > len(self._x):
            if self.stream is not None:
                torch.cuda.synchronize(self.device)  # what was launched before may still read the old ones
            self._x = self._out = self._x.new_empty(0)  # gone before there are new ones
            size = int(most * ROOM) // 16 * 16 + 16
            self._x, self._out = (allocate(size, torch.uint8, self.device, self.group) for _ in range(2))


class _Arriving:
    def __init__(self, owner: BySymmetricMemory, come_QD: torch.Tensor, out_QD: torch.Tensor) -> None:
        self.owner, self.come_QD, self.out_QD = owner, come_QD, out_QD

    def wait(self) -> None:
        if self.owner.stream is not None:
            torch.cuda.current_stream(self.owner.device).wait_stream(self.owner.stream)
        self.out_QD.copy_(self.come_QD)
        self.owner._busy = False


def _rows(buffer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The buffer's beginning in another tensor's shape."""
    return buffer[: like.nbytes].view(like.dtype).view(like.shape)


def require(device: torch.device) -> None:
    """Raises UsageError where there is no such memory."""
    import torch.distributed._symmetric_memory as memory

    if device.type != "cuda" or not memory.is_nvshmem_available():
        told = "needs GPUs" if device.type != "cuda" else "needs NVSHMEM, and this torch has none that works here"
        raise UsageError(f"parallel.all_to_all symmetric {told}; take parallel.all_to_all torch")
