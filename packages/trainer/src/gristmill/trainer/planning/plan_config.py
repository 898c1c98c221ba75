"""What `trainer plan` is asked: a run, and the machine that it would be on. No torch here, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.base.config import check_range
from gristmill.trainer.config import TrainConfig


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A run to plan: all that `trainer run` takes, and the machine."""

    gpu: str = ""
    """Plan for this GPU, by its usual name (H100, A100, L4); "": for this machine, where a few steps are timed."""
    mfu: float = 0.3
    """With --gpu: the share of its peak that is taken to become training. An assumption; step events of runs tell
    what it was. PaLM, a dense model, had 0.46 (arXiv 2204.02311, table 3)."""
    timed_steps: int = 3
    """Without --gpu: how many steps are timed, after a first one. 0: none, and no time is told."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mfu", self.mfu, 0.001, 1)
        check_range("timed_steps", self.timed_steps)
