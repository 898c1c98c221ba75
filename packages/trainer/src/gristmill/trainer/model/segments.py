"""Which positions of a window belong together: a segment is one document's part of it, and attention stays inside.

From segment starts follow positions (reset at each), masks and rotary tables: each made once per batch, at the first
asking, and shared by the layers.
B sequences, S new positions, T positions that they may look at (earlier ones and the new), R half a rotary width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Segments(NamedTuple):
    """positions_BS int64, counted from the segment's start; first_BS int64: where in the window the position's segment
    begins (None: every row is one segment)."""

    positions_BS: torch.Tensor
    first_BS: torch.Tensor | None


def one_per_row(tokens_BS: torch.Tensor, past: int = 0) -> Segments:
    positions_S = torch.arange(past, past + tokens_BS.shape[1], device=tokens_BS.device)
    return Segments(positions_S.expand(tokens_BS.shape), None)


def from_starts(starts_BS: torch.Tensor) -> Segments:
    """Segments from a bool tensor that is true where one begins; position 0 always begins one."""
    index_S = torch.arange(starts_BS.shape[1], device=starts_BS.device)
    first_BS = torch.where(starts_BS, index_S, 0).cummax(dim=1).values
    return Segments(index_S - first_BS, first_BS if starts_BS[:, 1:].any() else None)


class Yarn(NamedTuple):
    """Rotary positions stretched by `factor` (YaRN, arXiv 2309.00071), as DeepSeek's configurations have it."""

    factor: float
    original: int
    """Positions that the model was first trained on."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


class Context:
    """What every attention layer is given. `past` positions came in earlier calls (then every row is one segment)."""

    def __init__(self, segments: Segments, dtype: torch.dtype, past: int = 0) -> None:
        if past and segments.first_BS is not None:
            raise ValueError("segments inside a row, and positions from earlier calls")
        self.positions_BS, self.first_BS = segments
        self.dtype, self.past = dtype, past
        self._rotary: dict[tuple[int, float, Yarn | None], tuple[torch.Tensor, torch.Tensor]] = {}
        self._bias: dict[tuple[int, int], torch.Tensor | None] = {}

    def rotary(self, dim: int, theta: float, yarn: Yarn | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [B, 1, S, dim / 2] (RoFormer, arXiv 2104.09864)."""
        key = (dim, theta, yarn)
        if key not in self._rotary:
            frequency_R, scale = _frequencies(dim, theta, yarn, self.positions_BS.device)
            angle_B1SR = (self.positions_BS[..., None].float() * frequency_R)[:, None]
            self._rotary[key] = ((angle_B1SR.cos() * scale).to(self.dtype), (angle_B1SR.sin() * scale).to(self.dtype))
        return self._rotary[key]

    def key_positions(self) -> torch.Tensor:
        """int64 [B or 1, T]: positions of all that came so far, the new ones among them, from their segment's start."""
        if self.first_BS is not None:
            return self.positions_BS
        return torch.arange(self.past + self.positions_BS.shape[1], device=self.positions_BS.device)[None]

    def visible(self, keys: int, window: int = 0) -> torch.Tensor:
        """bool [B or 1, S, T]: new position may look at key, of the last T = `keys`; with a window, at the `window`
        nearest alone, itself among them."""
        device, S = self.positions_BS.device, self.positions_BS.shape[1]
        row_S1 = torch.arange(self.past, self.past + S, device=device)[:, None]
        column_T = torch.arange(self.past + S - keys, self.past + S, device=device)
        seen_1ST = (column_T <= row_S1)[None]
        if window:
            seen_1ST = seen_1ST & (column_T > row_S1 - window)
        return seen_1ST if self.first_BS is None else seen_1ST & (column_T >= self.first_BS[..., None])

    def bias(self, keys: int, window: int = 0) -> torch.Tensor | None:
        """visible() as a mask to add to scores, [B or 1, 1, S, T]; None where it is the plain causal one, or hides
        nothing."""
        key = (keys, window)
        if key not in self._bias:
            S = self.positions_BS.shape[1]
            narrow = 0 < window < keys
            if self.first_BS is None and not narrow and (not self.past or S == 1):
                self._bias[key] = None
            else:
                seen_BST = self.visible(keys, window)
                bias_BST = torch.zeros(seen_BST.shape, dtype=self.dtype, device=seen_BST.device)
                self._bias[key] = bias_BST.masked_fill_(~seen_BST, float("-inf"))[:, None]
        return self._bias[key]


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """x [B, H, S, dim] turned by its positions; pairs are (i, i + dim / 2), as in Hugging Face's Llama."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = tables
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def _frequencies(dim: int, theta: float, yarn: Yarn | None, device: torch.device) -> tuple[torch.Tensor, float]:
    exponent_R = torch.arange(0, dim, 2, device=device).float() / dim
    frequency_R = 1.0 / theta**exponent_R
    if yarn is None:
        return frequency_R, 1.0

    def turns_at(rotations: float) -> float:
        """The pair that makes so many rotations over the original positions."""
        return dim * math.log(yarn.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turns_at(yarn.beta_fast)), 0)
    high = min(math.ceil(turns_at(yarn.beta_slow)), dim - 1)
    index_R = torch.arange(dim // 2, device=device).float()
    stretched_R = ((index_R - low) / max(high - low, 0.001)).clamp(0, 1)
    scale = yarn_scale(yarn.factor, yarn.mscale) / yarn_scale(yarn.factor, yarn.mscale_all_dim)
    return frequency_R / yarn.factor * stretched_R + frequency_R * (1 - stretched_R), scale


def yarn_scale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature: 0.1 * mscale * ln(factor) + 1."""
    return 1.0 if factor <= 1 or not mscale else 0.1 * mscale * math.log(factor) + 1.0
