"""Grouped-query attention with norms on queries and keys and rotary positions, as in Qwen3 (arXiv 2505.09388).

B sequences, S positions, D width, H heads, G key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gristmill.trainer.model.attention._scores import attend, mean_seen, remember, shrinkage
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.layers import Linear, RMSNorm
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.model.segments import Context, rotate


@dataclass(frozen=True)
class Options:
    qk_norm: bool = True
    """RMSNorm on each head's queries and keys; Mixtral has none."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, precision: Precision, window: int = 0) -> None:
        super().__init__()
        self.head_dim, self.theta, self.window = config.head_dim, config.rope_theta, window
        self.query = Linear(config.width, config.heads * config.head_dim, precision)
        self.key = Linear(config.width, config.kv_heads * config.head_dim, precision)
        self.value = Linear(config.width, config.kv_heads * config.head_dim, precision)
        self.output = Linear(config.heads * config.head_dim, config.width, precision)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if options.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if options.qk_norm else nn.Identity()
        self.can_clip = not options.qk_norm  # norms take away whatever weights are scaled by
        self.largest_H: torch.Tensor | None = None

    def forward(
        self, x_BSD: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        heads = (*x_BSD.shape[:2], -1, self.head_dim)
        tables = context.rotary(self.head_dim, self.theta)
        q_BHSd = rotate(self.query_norm(self.query(x_BSD).view(heads)).transpose(1, 2), tables)
        k_BGSd = rotate(self.key_norm(self.key(x_BSD).view(heads)).transpose(1, 2), tables)
        v_BGSd = self.value(x_BSD).view(heads).transpose(1, 2)
        k_BGTd, v_BGTd = remember(memory, self.window, key=k_BGSd, value=v_BGSd)
        largest_H = self.largest_H if self.training else None
        y_BHSd = attend(q_BHSd, k_BGTd, v_BGTd, context, self.window, largest_H=largest_H)
        return self.output(y_BHSd.transpose(1, 2).flatten(2))

    def watch_scores(self) -> None:
        heads = self.query.weight.shape[0] // self.head_dim
        self.largest_H = torch.zeros(heads, device=self.query.weight.device)

    def shrinkage_of_rows(self, largest_H: torch.Tensor, most: float) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Queries and keys by a root each. Keys that heads share stay as they are, and queries take it all."""
        maps = [self.query, self.key] if self.key.weight.shape == self.query.weight.shape else [self.query]
        shrink_F = shrinkage(largest_H, most).repeat_interleave(self.head_dim) ** (1 / len(maps))
        return [(one.weight, shrink_F) for one in maps]

    def flops(self, sequence: int) -> float:
        """Forward FLOPs of scores and of their product with values: per token, the mean over a sequence."""
        return 4 * self.query.weight.shape[0] * mean_seen(sequence, self.window)
