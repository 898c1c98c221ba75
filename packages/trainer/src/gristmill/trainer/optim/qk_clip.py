"""QK-clip: no head's scores grow without bound (Kimi K2, arXiv 2507.20534, algorithm 1).

Attention that can do it tells so by `can_clip`; once watched, it keeps each head's largest score of the batch in
`largest_H`, and shrinkage_of_rows() tells by what to scale down the query and key weights of the heads where that
exceeds a bound.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from gristmill.base.errors import UsageError
from gristmill.trainer.model.transformer import Transformer


class Watched(Protocol):
    can_clip: bool
    largest_H: torch.Tensor | None

    def watch_scores(self) -> None: ...
    def shrinkage_of_rows(self, largest_H: torch.Tensor, most: float) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Weights, and a factor for each of their rows."""
        ...


def watch(model: Transformer) -> list[Watched]:
    """The layers whose attention can be clipped, which from now on see to their scores.

    Raises:
        UsageError: there is none.
    """
    found = [cast(Watched, block.attention) for block in model.blocks if getattr(block.attention, "can_clip", False)]
    if not found:
        raise UsageError(
            "optimizer.qk_clip: no layer's attention can be clipped: that is for gqa and swa without norms "
            "(model.options gqa.qk_norm false), and for mla; leave it out"
        )
    for attention in found:
        attention.watch_scores()
    return found
