"""fp8 as DeepSeek-V3 trains with it (arXiv 2412.19437, section 3.3.2): e4m3 in every product, forward and backward.

Activations and gradients have a scale for 128 values along the product's inner dimension, weights for 128 x 128. Scales
are fp32: the largest magnitude of a tile becomes 448.
"""

from __future__ import annotations

import torch

from gristmill.trainer.model.precision._elements import E4M3, TINIEST, Operand, StochasticRounding, largest, tiles
from gristmill.trainer.model.precision._kernel import Kernel

BLOCK = 128


class Fp8:
    """torch 2.13 has no grouped product with scales of these shapes, so this format is emulated on every device."""

    kernel: Kernel | None = None

    def activation(self, x: torch.Tensor, rounding: StochasticRounding | None = None) -> Operand:
        return _quantise(x, 1, rounding)

    def weight(self, x: torch.Tensor) -> Operand:
        return _quantise(x, BLOCK)


def _quantise(x: torch.Tensor, rows: int, rounding: StochasticRounding | None = None) -> Operand:
    tiled = tiles(x, rows, BLOCK)
    scales = (largest(tiled) / E4M3.largest).clamp(min=TINIEST)
    return Operand(E4M3.round(tiled / scales, rounding), scales, x.shape)
