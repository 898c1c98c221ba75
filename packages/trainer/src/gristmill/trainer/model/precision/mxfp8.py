"""mxfp8: e4m3 in blocks of 32 values along the product's inner dimension, each with a power of two as its scale (e8m0).

The format is OCP's (microscaling formats, MX, 1.0). Scales are rounded up, so that a block's largest magnitude stays in
range: rounded down, as MX 1.0 suggests in section 6.3, they cut off what then lies above 448, and training diverged
(arXiv 2506.08027).
"""

from __future__ import annotations

import torch

from gristmill.trainer.model.precision._elements import E4M3, TINIEST, Operand, StochasticRounding, largest, tiles
from gristmill.trainer.model.precision._kernel import MXFP8

BLOCK = 32


class Mxfp8:
    kernel = MXFP8

    def activation(self, x: torch.Tensor, rounding: StochasticRounding | None = None) -> Operand:
        tiled = tiles(x, 1, BLOCK)
        most = largest(tiled)
        power = (most.view(torch.int32) & 0x7F800000).view(torch.float32)
        # 448 = 1.75 * 2**8: the least power of two by which nothing exceeds it, without the rounding of a logarithm
        scales = (power * torch.where(most > 1.75 * power, 2.0**-7, 2.0**-8)).clamp(min=TINIEST)
        return Operand(E4M3.round(tiled / scales, rounding), scales, x.shape)

    def weight(self, x: torch.Tensor) -> Operand:
        return self.activation(x)
