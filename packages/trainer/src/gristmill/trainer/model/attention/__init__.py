"""How tokens look at one another. One file per kind, all behind `build`; none may cross a document's edge."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model.attention.gqa import GroupedQueryAttention
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.precision import Precision

# A kind is built from (config, precision) and called with (x_BSD, context: attention.segments.Context) -> [B, S, D].
KINDS: dict[str, Callable[[ModelConfig, Precision], nn.Module]] = {"gqa": GroupedQueryAttention}


def build(config: ModelConfig, precision: Precision) -> nn.Module:
    if config.attention not in KINDS:
        raise UsageError(f"model.attention: no {config.attention!r}{nearest(config.attention, KINDS)}")
    return KINDS[config.attention](config, precision)
