"""Sliding-window attention: grouped-query attention that looks at the nearest positions alone (Mistral, arXiv
2310.06825).

Global layers among local ones are a pattern of kinds: model.attention swa swa swa gqa.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.base.config import check_range
from gristmill.trainer.model.attention import gqa
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.precision import Precision


@dataclass(frozen=True)
class Options(gqa.Options):
    window: int = 512
    """Positions that a token looks at, itself among them."""

    def __post_init__(self) -> None:
        check_range("window", self.window, 1)


class Attention(gqa.Attention):
    def __init__(self, config: ModelConfig, options: Options, precision: Precision) -> None:
        super().__init__(config, options, precision, options.window)
