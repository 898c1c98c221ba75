"""How the processes of a run share the work. Nothing here, nor their number, decides what is learnt but for rounding,
so a run may go on with other processes than it began with. No torch here, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.base.config import check_range


@dataclass(frozen=True)
class ParallelConfig:
    ep: int = 1
    """Processes over which the experts of a layer are spread: neighbours, on one machine where there is room. Divides
    the number of processes and that of experts."""
    data: Literal["shard", "replicate"] = "shard"
    """shard: a process keeps its share of the rows of weights, gradients and optimiser state, and gathers the weights
    of a block when it comes to it. replicate: each keeps all (of experts that are spread, all of its own)."""
    all_to_all: Literal["torch", "symmetric"] = "torch"
    """How rows travel to experts elsewhere. torch: NCCL between GPUs, gloo between processors. symmetric: GPUs reach
    into each other's memory (torch's symmetric memory, where NVSHMEM is installed)."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before it gives up."""

    def __post_init__(self) -> None:
        check_range("parallel.ep", self.ep, 1)
        check_range("parallel.timeout", self.timeout, 1)
