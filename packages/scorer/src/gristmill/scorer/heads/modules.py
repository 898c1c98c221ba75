"""The trained parts: heads that read head_input() and answer in fractions of each dimension's scale, unclamped.

Unclamped, because a clamp would leave no gradient at the ends. Which head stands at which tap is the bundle's matter.
Shapes: B batch, S sequence, W backbone width, D head width, C chunks of tokens, H attention heads, Q queries, N
dimensions graded.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from gristmill.scorer.config import ATTENTION_HEADS, TrainConfig

# Neighbouring tokens that the encoder reads as one, by their mean: an eighth of the work, in training and in scoring.
CHUNK = 8


class MeanPool(nn.Module):
    """One linear map of the mean over tokens."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, dimensions)

    def forward(self, x_BSW: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, W], mask [B, S] -> [B, N]."""
        weights_BS = mask_BS.float() / mask_BS.sum(1, keepdim=True)
        return self.output(torch.einsum("bs,bsw->bw", weights_BS, x_BSW))


class AttentionPool(nn.Module):
    """Attention pooling with learned queries, then one linear map (reference: four queries beat the mean)."""

    def __init__(self, width: int, dimensions: int, queries: int = 4) -> None:
        super().__init__()
        self.queries_QW = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.output = nn.Linear(queries * width, dimensions)

    def forward(self, x_BSW: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, W], mask [B, S] -> [B, N]."""
        logits_BSQ = x_BSW @ self.queries_QW.T / math.sqrt(x_BSW.shape[-1])
        logits_BSQ = logits_BSQ.masked_fill(~mask_BS[..., None], -torch.inf)
        pooled_BQW = logits_BSQ.softmax(dim=1).transpose(1, 2) @ x_BSW
        return self.output(pooled_BQW.flatten(1))

    @torch.no_grad()
    def begin_as(self, mean: MeanPool) -> None:
        """Start from a linear map of the mean: queries near zero look at all tokens alike, and share its weights."""
        queries = len(self.queries_QW)
        self.output.weight.copy_(mean.output.weight.repeat(1, queries) / queries)
        self.output.bias.copy_(mean.output.bias)


class Encoder(nn.Module):
    """Linear to a smaller width, one pre-norm transformer layer without positions over chunks, mean, linear."""

    def __init__(
        self, width: int, dimensions: int, inner: int = 128, heads: int = ATTENTION_HEADS, dropout: float = 0.1
    ) -> None:
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
        x_BCW, tokens_BC = chunked(x_BSW, mask_BS)
        x_BCD = self.input(x_BCW)
        x_BCD = x_BCD + self._drop(self._attention(self.norm_attention(x_BCD), tokens_BC > 0))
        x_BCD = x_BCD + self._drop(self.down(F.gelu(self.up(self.norm_feed(x_BCD)))))
        weights_BC = tokens_BC / tokens_BC.sum(1, keepdim=True)
        return self.output(torch.einsum("bc,bcd->bd", weights_BC, self.norm_output(x_BCD)))

    def _attention(self, x_BCD: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
        batch, length, inner = x_BCD.shape
        qkv = self.qkv(x_BCD).view(batch, length, 3, self.heads, inner // self.heads)
        q_BHCE, k_BHCE, v_BHCE = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q_BHCE, k_BHCE, v_BHCE, attn_mask=mask_BC[:, None, None, :])
        return self.projection(mixed.transpose(1, 2).reshape(batch, length, inner))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training)


def chunked(x_BSW: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of CHUNK neighbouring tokens [B, C, W], and how many tokens each is the mean of, float [B, C].

    x_BSW is zero where the mask is, as head_input() gives it.
    """
    missing = -x_BSW.shape[1] % CHUNK
    if missing:
        x_BSW, mask_BS = F.pad(x_BSW, (0, 0, 0, missing)), F.pad(mask_BS, (0, missing))
    tokens_BC = mask_BS.unflatten(1, (-1, CHUNK)).sum(2).float()
    return x_BSW.unflatten(1, (-1, CHUNK)).sum(2) / tokens_BC.clamp(min=1)[..., None], tokens_BC


def make_probe(width: int, dimensions: int, config: TrainConfig) -> nn.Module:
    """An untrained probe of the kind that config.pooling names."""
    if config.pooling == "mean":
        return MeanPool(width, dimensions)
    return AttentionPool(width, dimensions, config.queries)


def make_judge(width: int, dimensions: int, config: TrainConfig) -> nn.Module:
    """An untrained judge of the kind that config.judge_kind names, which is not "best" once one is chosen."""
    if config.judge_kind == "attention":
        return AttentionPool(width, dimensions, config.queries)
    return Encoder(width, dimensions, config.judge_width)
