"""Grouped-query attention with norms on queries and keys and rotary positions, as in Qwen3.

The scores are left to scaled_dot_product_attention, which takes fewer key-value heads than query heads as they are.
B sequences, S positions, D width, H heads, G key-value heads, R half the head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.trainer.model.attention.segments import Context
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.layers import Linear, RMSNorm
from gristmill.trainer.model.precision import Precision


class GroupedQueryAttention(nn.Module):
    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = Linear(config.width, config.heads * config.head_dim, precision)
        self.key = Linear(config.width, config.kv_heads * config.head_dim, precision)
        self.value = Linear(config.width, config.kv_heads * config.head_dim, precision)
        self.output = Linear(config.heads * config.head_dim, config.width, precision)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BSD: torch.Tensor, context: Context) -> torch.Tensor:
        heads = (*x_BSD.shape[:2], -1, self.head_dim)
        q_BHSd = self.query_norm(self.query(x_BSD).view(heads)).transpose(1, 2)
        k_BGSd = self.key_norm(self.key(x_BSD).view(heads)).transpose(1, 2)
        v_BGSd = self.value(x_BSD).view(heads).transpose(1, 2)
        y_BHSd = F.scaled_dot_product_attention(
            _rotate(q_BHSd, context),
            _rotate(k_BGSd, context),
            v_BGSd,
            attn_mask=context.bias_B1SS,
            is_causal=context.bias_B1SS is None,
            enable_gqa=True,
        )
        return self.output(y_BHSd.transpose(1, 2).flatten(2))


def _rotate(x: torch.Tensor, context: Context) -> torch.Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = context.cos_B1SR, context.sin_B1SR
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
