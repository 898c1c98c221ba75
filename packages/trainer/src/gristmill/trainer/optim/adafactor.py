"""Adafactor (arXiv 1804.04235), torch's: of the squares of gradients it keeps the means of rows and of columns alone.

Its rates are relative: a step moves weights by their own root mean square times the rate, and the rate falls at least
with the root of the step.
"""

from __future__ import annotations

from typing import Any

import torch

from gristmill.trainer.optim.config import OptimizerConfig

WIDTH_POWER = 0.5  # the weights' own size, 1 / sqrt(width), is the other half


def build(groups: list[dict[str, Any]], config: OptimizerConfig, *_rows: object) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups)


def slots(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    step = {"step": torch.zeros((), dtype=torch.float32)}  # torch has it on the processor
    if parameter.ndim < 2:
        return step | {"variance": torch.zeros_like(parameter)}
    *stack, rows, columns = parameter.shape
    return step | {
        "row_var": parameter.new_zeros((*stack, rows, 1)),
        "col_var": parameter.new_zeros((*stack, 1, columns)),
    }
