"""Which positions of a window belong together: a segment is one document's part of it, and attention stays inside.

From segment starts follow positions (reset at each), the mask, and the rotary angles: once per batch, for all layers.
B sequences, S positions, R half the head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Segments(NamedTuple):
    """positions_BS int64, counted from the segment's start; mask_BSS bool: row may look at column (None: causal)."""

    positions_BS: torch.Tensor
    mask_BSS: torch.Tensor | None


class Context(NamedTuple):
    """What every attention layer is given: rotary tables [B, 1, S, R], and the mask to add to scores (None: causal)."""

    cos_B1SR: torch.Tensor
    sin_B1SR: torch.Tensor
    bias_B1SS: torch.Tensor | None


def causal(tokens_BS: torch.Tensor) -> Segments:
    """One segment per row."""
    positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    return Segments(positions_S.expand(tokens_BS.shape), None)


def from_starts(starts_BS: torch.Tensor) -> Segments:
    """Segments from a bool tensor that is true where one begins; position 0 always begins one."""
    S = starts_BS.shape[1]
    index_S = torch.arange(S, device=starts_BS.device)
    start_BS = torch.where(starts_BS, index_S, 0).cummax(dim=1).values
    if not starts_BS[:, 1:].any():
        return Segments(index_S.expand(starts_BS.shape), None)
    same_BSS = start_BS[:, :, None] == start_BS[:, None, :]
    past_SS = torch.ones(S, S, dtype=torch.bool, device=starts_BS.device).tril()
    return Segments(index_S - start_BS, same_BSS & past_SS)


def context(segments: Segments, head_dim: int, theta: float, dtype: torch.dtype) -> Context:
    """Rotary tables (RoFormer, arXiv 2104.09864, in the half-split layout of Hugging Face) and the additive mask."""
    exponent_R = torch.arange(0, head_dim, 2, device=segments.positions_BS.device).float() / head_dim
    angle_B1SR = (segments.positions_BS[..., None].float() / theta**exponent_R)[:, None]
    bias_B1SS = None
    if segments.mask_BSS is not None:
        bias_BSS = torch.zeros(segments.mask_BSS.shape, dtype=dtype, device=segments.mask_BSS.device)
        bias_B1SS = bias_BSS.masked_fill_(~segments.mask_BSS, float("-inf"))[:, None]
    return Context(angle_B1SR.cos().to(dtype), angle_B1SR.sin().to(dtype), bias_B1SS)
