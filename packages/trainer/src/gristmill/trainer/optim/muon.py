"""Muon: momentum, made orthogonal (Jordan 2024), at the size of an AdamW step (Moonlight, arXiv 2502.16982, eq. 4).

For matrices: experts are stacks of them, and a map of two (gate and up) is two. AdamW's rates and decay carry over.
Where processes have rows of a matrix, each makes the whole orthogonal and keeps its rows (Moonlight, algorithm 1);
stacks are shared out by matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.optim.orthogonalise import orthogonalise

Rows = Callable[[torch.nn.Parameter, torch.Tensor], torch.Tensor]

WIDTH_POWER = 0.5  # an orthogonal matrix times sqrt(width): as large as muP wants a change, times sqrt(width)
RMS = 0.2  # of AdamW's updates (section 2.2)


class Muon(torch.optim.Optimizer):
    """Groups carry `maps`: how many maps stand one below the other in each of their matrices.

    whole, mine: make of the rows that a parameter has all rows of the matrix, and the other way round.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, whole: Rows, mine: Rows) -> None:
        super().__init__(groups, {"momentum": momentum, "maps": 1, "weight_decay": 0.0})
        self._whole, self._mine = whole, mine

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """All groups' matrices are made orthogonal together."""
        directions, moves = [], []
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter]["momentum"].lerp_(parameter.grad, 1 - momentum)
                ahead = parameter.grad.lerp_(mean, momentum)  # Nesterov's; in place, as nobody reads it again
                if parameter.ndim == 2:
                    ahead = self._whole(parameter, ahead)
                directions.append(ahead.unflatten(-2, (group["maps"], -1)))
                moves.append((parameter, group["lr"], group["weight_decay"]))
        for (parameter, rate, decay), update in zip(moves, orthogonalise(directions), strict=True):
            parameter.mul_(1 - rate * decay)
            size = RMS * math.sqrt(max(update.shape[-2:]))
            moved = update.flatten(-3, -2)
            parameter.add_(self._mine(parameter, moved) if moved.ndim == 2 else moved, alpha=-rate * size)


def build(groups: list[dict[str, Any]], config: OptimizerConfig, whole: Rows, mine: Rows) -> torch.optim.Optimizer:
    return Muon(groups, config.momentum, whole, mine)


def slots(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"momentum": torch.zeros_like(parameter)}
