"""The two trained parts: a probe that pools with four learned queries, and a judge with one small transformer layer.

Both read head_input() and answer in fractions of each dimension's scale, unclamped: no gradient dies at the ends.
Shapes: B batch, S sequence, W backbone width, D head width, H attention heads, Q queries, N dimensions graded.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Probe(nn.Module):
    """Attention pooling with `queries` learned queries, then one linear map (reference: four queries beat the mean)."""

    def __init__(self, width: int, dimensions: int, queries: int = 4) -> None:
        super().__init__()
        self.queries_QW = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.output = nn.Linear(queries * width, dimensions)
        nn.init.normal_(self.output.weight, std=0.01 / math.sqrt(queries))
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BSW: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, W], mask [B, S] -> [B, N]."""
        logits_BSQ = x_BSW @ self.queries_QW.T / math.sqrt(x_BSW.shape[-1])
        logits_BSQ = logits_BSQ.masked_fill(~mask_BS[..., None], -torch.inf)
        pooled_BQW = torch.einsum("bsq,bsw->bqw", logits_BSQ.softmax(dim=1), x_BSW)
        return self.output(pooled_BQW.flatten(1))


class Judge(nn.Module):
    """Linear to a smaller width, one pre-norm transformer layer without positions, masked mean, linear."""

    def __init__(self, width: int, dimensions: int, inner: int = 128, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.input = nn.Linear(width, inner)
        self.norm_attention = nn.RMSNorm(inner)
        self.qkv = nn.Linear(inner, 3 * inner, bias=False)
        self.projection = nn.Linear(inner, inner, bias=False)
        self.norm_feed = nn.RMSNorm(inner)
        self.up = nn.Linear(inner, 2 * inner)
        self.down = nn.Linear(2 * inner, inner)
        self.norm_output = nn.RMSNorm(inner)
        self.output = nn.Linear(inner, dimensions)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BSW: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, W], mask [B, S] -> [B, N]."""
        x_BSD = self.input(x_BSW)
        x_BSD = x_BSD + self._drop(self._attention(self.norm_attention(x_BSD), mask_BS))
        x_BSD = x_BSD + self._drop(self.down(F.gelu(self.up(self.norm_feed(x_BSD)))))
        weights_BS1 = mask_BS[..., None].float()
        mean_BD = (self.norm_output(x_BSD) * weights_BS1).sum(1) / weights_BS1.sum(1)
        return self.output(mean_BD)

    def _attention(self, x_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        batch, length, inner = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, length, 3, self.heads, inner // self.heads)
        q_BHSE, k_BHSE, v_BHSE = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, attn_mask=mask_BS[:, None, None, :])
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, inner))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training)
