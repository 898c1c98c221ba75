"""The experts' three products with quantised operands: forward, input's gradient, weight's gradient.

Each quantises its own two operands along its own inner dimension, from what is kept at hand: activations in their type,
weights in fp32. R rows (each expert's a multiple of ROWS), D in, F out, E experts; N, K any, K the inner dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gristmill.trainer.model.precision import _kernel
from gristmill.trainer.model.precision._elements import Operand, StochasticRounding
from gristmill.trainer.model.precision._grouped import grouped_mm

# Of each expert: fp8's block, so that no block of a weight gradient has rows of two experts; and the tile in which the
# kernels for mxfp8 and nvfp4 want scales.
ROWS = 128


class Format(Protocol):
    """A family's file has one. `kernel`: how torch multiplies this format on a GPU; None where it cannot."""

    @property
    def kernel(self) -> _kernel.Kernel | None: ...

    def activation(self, x: torch.Tensor, rounding: StochasticRounding | None = None) -> Operand:
        """x [..., N, K] of any floating type, quantised along K; with a rounding, stochastically."""
        ...

    def weight(self, x: torch.Tensor) -> Operand:
        """x [E, N, K], quantised along K."""
        ...


@dataclass(frozen=True)
class Blockwise:
    """Grouped products in one format. `rounding`: gradients are rounded stochastically by it; None: to nearest."""

    format: Format
    rounding: StochasticRounding | None = None
    row_multiple: int = ROWS

    @torch.compiler.disable(recursive=True, reason="inductor 2.13 asserts on the two layouts that a gradient is cut in")
    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        return _GroupedLinear.apply(x_RD, weight_EFD, ends_E, self)  # pyright: ignore[reportReturnType]

    def multiply(self, a: Operand, b: Operand, ends_E: torch.Tensor) -> torch.Tensor:
        """[R, K] by [E, N, K] -> [R, N], or [M, R] by [N, R] -> [E, M, N], where the groups are of the inner dimension.

        The emulation multiplies the operands' values in fp32. What it computes is what the format says, but for fp32's
        own rounding: of sums, and, where scales are no powers of two, of number times scale. In bf16 the latter would
        be a second quantisation. Kernels sum in fp32 too, and round the result to bf16.
        """
        kernel = self.format.kernel
        if kernel is not None and kernel.takes(a, b):
            return kernel.multiply(a, b, ends_E)
        return grouped_mm(a.values(), b.values().transpose(-2, -1), ends_E)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor, how: Blockwise
    ) -> torch.Tensor:
        ctx.save_for_backward(x_RD, weight_EFD, ends_E)
        ctx.how = how
        return how.multiply(how.format.activation(x_RD), how.format.weight(weight_EFD), ends_E).to(x_RD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x_RD, weight_EFD, ends_E = ctx.saved_tensors
        how, grad_RF = ctx.how, grads[0]
        grad_x_RD = grad_weight_EFD = None
        if ctx.needs_input_grad[0]:
            weight = how.format.weight(weight_EFD.transpose(-2, -1))
            grad = how.format.activation(grad_RF, how.rounding)
            grad_x_RD = how.multiply(grad, weight, ends_E).to(x_RD.dtype)
        if ctx.needs_input_grad[1]:
            grad = how.format.activation(grad_RF.t(), how.rounding)
            grad_weight_EFD = how.multiply(grad, how.format.activation(x_RD.t()), ends_E).to(weight_EFD.dtype)
        return grad_x_RD, grad_weight_EFD, None, None
