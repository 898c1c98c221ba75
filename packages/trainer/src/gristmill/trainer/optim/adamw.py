"""AdamW, fused (4 to 5 times the speed of the loop, on CPU too), with decay on matrices only.

Its state is read and written by parameter name, so that a checkpoint does not depend on the order of groups.
"""

from __future__ import annotations

import torch
from torch import nn

from gristmill.base.errors import DataError
from gristmill.trainer.optim.config import OptimizerConfig


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_table = name.rsplit(".", 1)[-1] in ("embedding_VD", "head_VD")
        (plain if parameter.ndim < 2 or is_table else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<slot>/<parameter>` -> tensor, for every tensor that the optimiser keeps."""
    return {
        f"{slot}/{name}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state[parameter].items()
    }


def load_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], where: str
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        if name not in parameters:
            raise DataError(f"{where}: optimiser state for {name!r}, which this model has not")
        target = parameters[name]
        optimizer.state[target][slot] = value.to(target.device)
