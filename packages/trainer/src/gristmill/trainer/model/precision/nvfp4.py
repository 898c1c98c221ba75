"""nvfp4: e2m1 in blocks of 16 values along the product's inner dimension, an e4m3 scale each, an fp32 scale per matrix.

As NVIDIA describes it (arXiv 2509.25149, section 2): the matrix's scale brings the greatest block scale
to 448, the block's its largest magnitude to 6. Of their recipe, stochastic rounding of gradients is an option here;
Hadamard transforms and 16 x 16 blocks of weights are not.
"""

from __future__ import annotations

import torch

from gristmill.trainer.model.precision._elements import E2M1, E4M3, TINIEST, Operand, StochasticRounding, largest, tiles
from gristmill.trainer.model.precision._kernel import NVFP4

BLOCK = 16


class Nvfp4:
    kernel = NVFP4

    def activation(self, x: torch.Tensor, rounding: StochasticRounding | None = None) -> Operand:
        tiled = tiles(x, 1, BLOCK)
        most = largest(tiled)
        tensor_scale = (most.amax((-4, -2), keepdim=True) / (E2M1.largest * E4M3.largest)).clamp(min=TINIEST)
        scales = E4M3.round(most / E2M1.largest / tensor_scale)
        combined = scales * tensor_scale
        divisor = torch.where(combined == 0, 1.0, combined)  # a block far below the matrix's largest is all zeros
        return Operand(E2M1.round(tiled / divisor, rounding), scales, x.shape, tensor_scale)

    def weight(self, x: torch.Tensor) -> Operand:
        return self.activation(x)
