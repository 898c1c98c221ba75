"""torch's grouped matmul, with which fp32 compiles too.

torch 2.13 multiplies fp32 groups, but refuses to compile that ("Expected inputs of BF16 type"): there the product is an
operator that torch.compile takes as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def grouped_mm(a: torch.Tensor, b: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """[R, K] by [E, K, N] -> [R, N], or [M, R] by [R, N] -> [E, M, N], where the groups are of the inner dimension.

    Both of one type; ends_E int32, the last one R.
    """
    return _fp32(a, b, ends_E) if a.dtype == torch.float32 else F.grouped_mm(a, b, offs=ends_E)


@torch.library.custom_op("gristmill::grouped_mm_fp32", mutates_args=())
def _fp32(a: torch.Tensor, b: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    return F.grouped_mm(a, b, offs=ends_E)


@_fp32.register_fake
def _(a: torch.Tensor, b: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    groups = () if b.ndim == 3 else (ends_E.shape[0],)
    return a.new_empty(*groups, a.shape[0], b.shape[-1])


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    a, b, ends_E = ctx.saved_tensors
    grad = grad.contiguous()  # that of a sum has strides of zero, which the product refuses
    return _fp32(grad, b.transpose(-2, -1), ends_E), _fp32(a.t(), grad, ends_E), None


_fp32.register_autograd(_backward, setup_context=_keep)
