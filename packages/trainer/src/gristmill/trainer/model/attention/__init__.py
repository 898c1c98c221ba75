"""How tokens look at one another: one file per kind. None may look across a document's edge, or ahead.

A kind's file has `Options` and `Attention(config, options, precision)`, called as attention(x_BSD, context, memory):
x_BSD are the positions that are new, context says where they stand and what they may see, and memory, where it is not
None, is this layer's own dict of tensors from earlier calls (keys and values, or a state), which it updates.
A kind whose scores can be bounded by QK-clip has what optim/qk_clip.py tells.
"""

from __future__ import annotations

from torch import nn

from gristmill.trainer.model import kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.precision import Precision


def build(config: ModelConfig, layer: int, precision: Precision) -> nn.Module:
    name = config.attention[layer % len(config.attention)]
    module = kinds.find(__name__, name, "model.attention")
    return module.Attention(config, kinds.options(name, module.Options, config), precision)
