"""Tokens to expert order and back. The buffer's size depends only on the shapes, so nothing waits for a count.

Each expert's rows are padded up to a multiple; padding is zero on the way in, and on the way back nobody reads it.
T tokens, K experts per token, A = T*K assignments, E experts, R rows of the buffer, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Layout(NamedTuple):
    """Where each assignment sits in the buffer, and what each row of the buffer holds."""

    row_TK: torch.Tensor  # int64: the row of each assignment
    token_R: torch.Tensor  # int64: the token in each row; T in a padding row
    assignment_R: torch.Tensor  # int64: the assignment in each row; A in a padding row
    ends_E: torch.Tensor  # int32: one past each expert's last row; the last one is R, so no row is left uncomputed


def layout(experts_TK: torch.Tensor, experts: int, row_multiple: int) -> Layout:
    """Sort assignments by expert (stable), each expert starting at a multiple of `row_multiple`."""
    T, K = experts_TK.shape
    expert_A = experts_TK.flatten()
    order_A = expert_A.argsort(stable=True)
    count_E = torch.bincount(expert_A, minlength=experts)
    padded_E = (count_E + row_multiple - 1) // row_multiple * row_multiple
    shift_E = (padded_E.cumsum(0) - padded_E) - (count_E.cumsum(0) - count_E)
    rows = T * K if row_multiple == 1 else T * K + experts * row_multiple
    row_A = torch.arange(T * K, device=expert_A.device) + shift_E[expert_A[order_A]]  # in sorted order
    assignment_R = torch.full((rows,), T * K, device=expert_A.device)
    assignment_R[row_A] = order_A
    row_TK = torch.empty_like(order_A)
    row_TK[order_A] = row_A
    ends_E = padded_E.cumsum(0).to(torch.int32)
    ends_E[-1] = rows  # the last expert takes the slack: grouped_mm leaves rows behind the last end uninitialised
    return Layout(row_TK.view(T, K), assignment_R // K, assignment_R, ends_E)


def scatter(x_TD: torch.Tensor, where: Layout) -> torch.Tensor:
    """Tokens into expert order: [R, D], zero in padding rows."""
    return _Gather.apply(x_TD, where.token_R, where.row_TK)  # pyright: ignore[reportReturnType]


def collect(y_RD: torch.Tensor, where: Layout) -> torch.Tensor:
    """Rows back to their tokens: [T, K, D]."""
    y_AD = _Gather.apply(y_RD, where.row_TK.flatten(), where.assignment_R[:, None])
    return y_AD.view(*where.row_TK.shape, -1)  # pyright: ignore[reportOptionalMemberAccess]


class _Gather(torch.autograd.Function):
    """out[m] = x[index[m]], zero where the index is one past the end; backward gathers too, through the inverse.

    The default backward adds rows one by one into place (index_put_), several times slower on CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, index_M: torch.Tensor, inverse_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse_NK)
        return _take(x_ND, index_M)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse_NK,) = ctx.saved_tensors
        N, K = inverse_NK.shape
        picked_AD = _take(grads[0], inverse_NK.flatten())
        return (picked_AD if K == 1 else picked_AD.view(N, K, -1).sum(dim=1)), None, None


def _take(x_ND: torch.Tensor, index_M: torch.Tensor) -> torch.Tensor:
    return torch.cat((x_ND, x_ND.new_zeros(1, x_ND.shape[1]))).index_select(0, index_M)
