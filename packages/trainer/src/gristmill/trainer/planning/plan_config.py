"""What `trainer plan` is asked: a run, and the machines that it would be on. No torch here, so that --help is quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.planning.mesh import Mesh, parse


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A run to plan: all that `trainer run` takes, and the machines. Without --mixture and --data: the model alone."""

    preset: str = ""
    """The same as --model.preset."""
    gpu: str = ""
    """Plan for this GPU, by its usual name (H100, A100, L4); "": for this machine, where a few steps are timed."""
    mesh: tuple[str, ...] = ()
    """With --gpu: how many of them, as ep=8,dp=2: groups of 8 share the experts of a layer, and 2 such groups read
    different text (data=replicate: with weights of their own). Several are compared."""
    gpus: int = 0
    """With --gpu: so many of them, of which --parallel.ep share experts; where that is 1, all meshes are compared."""
    gpus_per_node: int = 8
    """Neighbours with fast links."""
    inside_gb: float = 0.0
    """GB/s that a GPU sends within its node; 0: its data sheet's."""
    between_gb: float = 0.0
    """GB/s that a GPU sends to other nodes; 0: its data sheet's."""
    link_share: float = 0.8
    """Share of these that is taken to be reached. An assumption; DeepSeek-V3's all-to-all had more than 40 of 50 GB/s
    between nodes (arXiv 2505.09343, figure 7)."""
    mfu: float = 0.3
    """With --gpu: the share of its peak that is taken to become training, while no other GPU is waited for. An
    assumption; step events of runs tell what it was. PaLM, a dense model, had 0.46 (arXiv 2204.02311, table 3)."""
    largest_micro: bool = False
    """With --gpu: plan with the largest micro-batch that fits, instead of --batch.micro."""
    price_per_hour: float = 0.0
    """Of the machine, in any currency; with --gpu, of one GPU."""
    timed_steps: int = 3
    """Without --gpu: how many steps are timed, after a first one. 0: none, and no time is told."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mfu", self.mfu, 0.001, 1)
        check_range("link_share", self.link_share, 0.001, 1)
        check_range("gpus_per_node", self.gpus_per_node, 1)
        for name in ("timed_steps", "gpus", "inside_gb", "between_gb"):
            check_range(name, getattr(self, name))
        if self.mesh and self.gpus:
            raise UsageError("--mesh says how many GPUs there are; leave --gpus out")
        if (self.mesh or self.gpus) and not self.gpu:
            raise UsageError(f"--{'mesh' if self.mesh else 'gpus'} is for GPUs: name theirs, such as --gpu H100")
        _ = self.meshes  # one that cannot be

    @property
    def section(self) -> ModelSection:
        return dataclasses.replace(self.model, preset=self.preset) if self.preset else self.model

    @property
    def meshes(self) -> list[Mesh]:
        """Those that were named; none: all of --gpus."""
        if self.gpus and self.parallel.ep > 1:
            if self.gpus % self.parallel.ep:
                raise UsageError(f"parallel.ep ({self.parallel.ep}) does not divide --gpus ({self.gpus})")
            return [Mesh(self.parallel.ep, self.gpus // self.parallel.ep, self.parallel.data)]
        return [parse(text, self.parallel.data) for text in self.mesh]


def defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Of a plan for a GPU and of no data: steps as large models have them, in what a GPU's peak is known in."""
    given = {argument.partition("=")[0] for argument in arguments}
    if "--gpu" not in given or given & {"--mixture", "--data", "--config"}:
        return {}
    batch = {"sequence": 4096, "sequences": 1024, "micro": 1}  # 4 million tokens
    return {"tokens": 10**12, "precision": "bf16", "batch": batch, "largest_micro": "--batch.micro" not in given}
