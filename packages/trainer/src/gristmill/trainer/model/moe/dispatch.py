"""Tokens to expert order and back. The buffer's size depends only on the shapes, so nothing waits for a count.

Each expert's rows are padded up to a multiple; padding is zero on the way in, and on the way back nobody reads it.
T tokens, K experts per token, A = T*K assignments, E experts, C tokens that an expert takes, R rows of the buffer,
D width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

MINIMUM_CAPACITY = 4  # of an expert, in tokens, as DeepSpeed has it: a step of generation sees one token


class Layout(Protocol):
    """Where tokens sit in the buffer. ends_E: int32, one past each expert's last row; the last one is R, so that no row
    is left uncomputed. dropped: share of what was routed that no expert computes."""

    @property
    def ends_E(self) -> torch.Tensor: ...

    @property
    def dropped(self) -> torch.Tensor: ...

    def scatter(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Tokens into expert order: [R, D], zero in padding rows."""
        ...

    def combine(self, y_RD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each token's rows times their weights, summed: [T, D]."""
        ...


class TokenChoice(NamedTuple):
    """Every token has K assignments."""

    row_TK: torch.Tensor  # int64: the row of each assignment; R of one that is dropped
    token_R: torch.Tensor  # int64: the token in each row; T in a padding row
    assignment_R: torch.Tensor  # int64: the assignment in each row; A in a padding row
    ends_E: torch.Tensor
    dropped: torch.Tensor

    def scatter(self, x_TD: torch.Tensor) -> torch.Tensor:
        return _Gather.apply(x_TD, self.token_R, self.row_TK)  # pyright: ignore[reportReturnType]

    def gather(self, y_RD: torch.Tensor) -> torch.Tensor:
        """Each assignment's row, [A, D]; zero of one that is dropped."""
        return _Gather.apply(y_RD, self.row_TK.flatten(), self.assignment_R[:, None])  # pyright: ignore

    def combine(self, y_RD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        y_TKD = self.gather(y_RD).view(*self.row_TK.shape, -1)
        return (y_TKD * weights[..., None].to(y_TKD.dtype)).sum(dim=1)


class ExpertChoice(NamedTuple):
    """Every expert has C tokens; a token may be with none, or with all."""

    token_R: torch.Tensor  # int64: the token in each row; T in a padding row
    ends_E: torch.Tensor
    dropped: torch.Tensor
    tokens: int

    def scatter(self, x_TD: torch.Tensor) -> torch.Tensor:
        return _with_zero_row(x_TD).index_select(0, self.token_R)

    def combine(self, y_RD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        E, C = weights.shape
        weight_R = F.pad(weights, (0, len(self.token_R) // E - C)).flatten()
        y_TD = y_RD.new_zeros(self.tokens + 1, y_RD.shape[1])
        return y_TD.index_add(0, self.token_R, y_RD * weight_R[:, None].to(y_RD.dtype))[:-1]


def capacity(factor: float, tokens: int, top_k: int, experts: int, least: int = MINIMUM_CAPACITY) -> int:
    """Rows of an expert at a capacity factor (GShard, arXiv 2006.16668, section 2.2); 0, no bound, at factor 0."""
    return max(math.ceil(factor * tokens * top_k / experts), least) if factor else 0


def by_token(
    experts_TK: torch.Tensor,
    weights_TK: torch.Tensor | None,
    experts: int,
    row_multiple: int,
    most: int = 0,
    even: bool = False,
) -> TokenChoice:
    """Assignments sorted by expert, each expert starting at a multiple of `row_multiple`. No token at all is possible.

    Args:
        most: an expert with more assignments drops those of the least weight; 0: no bound, and weights_TK may be None.
        even: with a bound, each expert has rows for so many assignments, whether it has them or not.
    """
    T, K = experts_TK.shape
    expert_A = experts_TK.flatten()
    if most:
        assert weights_TK is not None
        by_weight_A = weights_TK.detach().flatten().argsort(descending=True, stable=True)
        order_A = by_weight_A[expert_A[by_weight_A].argsort(stable=True)]
    else:
        order_A = expert_A.argsort(stable=True)
    count_E = torch.zeros(experts, dtype=torch.int64, device=expert_A.device)
    count_E = count_E.scatter_add(0, expert_A, torch.ones_like(expert_A))
    sorted_A = expert_A[order_A]
    rank_A = torch.arange(T * K, device=expert_A.device) - (count_E.cumsum(0) - count_E)[sorted_A]
    kept_E = count_E.clamp(max=most) if most else count_E
    if most and even:
        padded_E = torch.full_like(kept_E, most + -most % row_multiple)
        rows = experts * (most + -most % row_multiple)
    else:
        padded_E = (kept_E + row_multiple - 1) // row_multiple * row_multiple
        reached = min(experts, T * K)  # experts that can have a row at all
        # What all together can come to; where nothing is routed here, still one tile for the products.
        rows = max((T * K + reached * (row_multiple - 1)) // row_multiple * row_multiple, row_multiple)
    row_A = rank_A + (padded_E.cumsum(0) - padded_E)[sorted_A]
    if most:
        row_A = torch.where(rank_A < most, row_A, rows)
    assignment_R = torch.full((rows + 1,), T * K, device=expert_A.device)
    assignment_R[row_A] = order_A  # what is dropped goes to a row behind the last, and with it
    assignment_R = assignment_R[:rows]
    row_TK = torch.empty_like(order_A)
    row_TK[order_A] = row_A
    ends_E = padded_E.cumsum(0).to(torch.int32)
    ends_E[-1] = rows  # the last expert takes the slack: grouped_mm leaves rows behind the last end uninitialised
    dropped = 1 - kept_E.sum() / max(T * K, 1)
    return TokenChoice(row_TK.view(T, K), assignment_R // K, assignment_R, ends_E, dropped)


def by_expert(tokens_EC: torch.Tensor, tokens: int, row_multiple: int) -> ExpertChoice:
    """Each expert's tokens, padded up to a multiple."""
    E, C = tokens_EC.shape
    padding = -C % row_multiple
    token_R = F.pad(tokens_EC, (0, padding), value=tokens).flatten()
    ends_E = torch.arange(1, E + 1, device=tokens_EC.device, dtype=torch.int32) * (C + padding)
    taken_T = torch.zeros(tokens, device=tokens_EC.device).scatter(0, tokens_EC.flatten(), 1.0)
    return ExpertChoice(token_R, ends_E, 1 - taken_T.mean(), tokens)


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
    return _with_zero_row(x_ND).index_select(0, index_M)


def _with_zero_row(x_ND: torch.Tensor) -> torch.Tensor:
    return torch.cat((x_ND, x_ND.new_zeros(1, x_ND.shape[1])))
