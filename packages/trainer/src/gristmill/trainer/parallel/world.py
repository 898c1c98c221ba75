"""The processes that train one model. A process by itself is a world of one: the same code, and nothing is sent.

Processes are told of each other as torchrun does it, by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. W
processes; rank r stands in row r // ep, column r % ep of the mesh.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gristmill.base.errors import GristmillError, UsageError
from gristmill.trainer.parallel.config import ParallelConfig

MEETING = "GRISTMILL_MEETING"
"""The environment's name for where processes meet, if that is no MASTER_ADDR and MASTER_PORT: file://..."""
PATIENCE = datetime.timedelta(days=7)


class LostTouchError(GristmillError):
    """Another process is gone, or does not answer: the cause is there."""


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1
    ep: int = 1
    device: torch.device = torch.device("cpu")
    mesh: DeviceMesh | None = None  # "dp" x "one" x "ep"; "one" is one process wide
    everyone: DeviceMesh | None = None  # "dp" x "one": all of them in a row
    aside: dist.ProcessGroup | None = None  # by way of the processors, for small things and for other threads
    background: dist.ProcessGroup | None = None  # the same, for one thread beside training
    patient: dist.ProcessGroup | None = None  # the same, for waits that may last

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether it is the first on its machine."""
        return self.is_alone or os.environ.get("LOCAL_RANK", str(self.rank)) == "0"

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """[W, ...]: what each process has, in their order; all of one shape, on one kind of device."""
        if self.is_alone:
            return own[None]
        all_W = own.new_empty(self.size * own.numel())
        dist.all_gather_single(all_W, own.contiguous().view(-1))
        return all_W.view(self.size, *own.shape)

    def largest(self, value: int) -> int:
        """Of the values that the processes have."""
        if self.is_alone:
            return value
        told = torch.tensor(value)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.aside)
        return int(told)

    def wait(self, long: bool = False) -> None:
        """Until all are here. long: for hours, if need be, as where one fetches or hashes what the others wait for."""
        if not self.is_alone:
            dist.barrier(self.patient if long else self.aside)

    def wait_beside(self) -> None:
        """The same, for the thread beside training."""
        if not self.is_alone:
            dist.barrier(self.background)


ALONE = World()


@contextlib.contextmanager
def joined(config: ParallelConfig, device: torch.device) -> Iterator[World]:
    """The world that this process was started in; left again at the end, if it was this that joined it.

    Args:
        device: of its kind, a process has the one of its own number on its machine.

    Raises:
        UsageError: parallel.ep does not divide the number of processes.
    """
    size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if size % config.ep:
        raise UsageError(f"parallel.ep ({config.ep}) does not divide the number of processes ({size})")
    if size == 1:
        yield World(device=device)
        return
    joins, timeout = not dist.is_initialized(), datetime.timedelta(seconds=config.timeout)
    if device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= torch.cuda.device_count():
            raise UsageError(f"process {number} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if joins:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank, where = int(os.environ["RANK"]), os.environ.get(MEETING, "env://")
        dist.init_process_group(backend, where, timeout, world_size=size, rank=rank)
    try:
        mesh = init_device_mesh(device.type, (size // config.ep, 1, config.ep), mesh_dim_names=("dp", "one", "ep"))
        everyone = init_device_mesh(device.type, (size, 1), mesh_dim_names=("dp", "one"))
        for group in (*mesh.get_all_groups(), *everyone.get_all_groups()):
            dist.distributed_c10d._set_pg_timeout(timeout, group)  # a mesh's groups have half an hour
        limits = (timeout, timeout, PATIENCE)
        aside, background, patient = (
            cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=limit)) for limit in limits
        )
        yield World(dist.get_rank(), size, config.ep, device, mesh, everyone, aside, background, patient)
    except RuntimeError as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, dist.DistError) or re.search(r"gloo/|NCCL|Connection (reset|closed|refused)", str(error)):
            raise LostTouchError(f"lost touch with another process, or waited in vain for it ({told:.200})") from error
        raise
    finally:
        if joins:
            dist.destroy_process_group()
