"""Models larger than the memory of a process: made of shapes first, and filled tensor by tensor, or row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Draw = Callable[[torch.Size], torch.Tensor]
"""The values of a whole tensor of this shape, on the CPU."""
Fill = Callable[[nn.Parameter, Draw], None]
"""Puts what a weight is to hold into it. Each weight is drawn by every process, since the next one's draws follow."""


class Unfilled(TorchFunctionMode):
    """What torch.empty() makes within it has a shape and no memory (the meta device), until place(). What has values
    from the start, such as the ones of a norm, has them; what is set in place, as by torch.nn.init, has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **({**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}))


def place(model: nn.Module, device: torch.device) -> None:
    """All of a model to a device; what was Unfilled gets memory there, and no numbers yet: it is NaN."""

    def placed(one: torch.Tensor) -> torch.Tensor:
        if not one.is_meta:
            return one.to(device)
        room = torch.empty_like(one, device=device)
        return room.fill_(math.nan) if room.is_floating_point() else room.zero_()

    with torch.no_grad():
        model._apply(placed)


def whole(weight: nn.Parameter, draw: Draw) -> None:
    """The Fill of a model that is in one place."""
    weight.copy_(draw(weight.shape))
