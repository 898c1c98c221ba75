"""The nearest matrix with orthogonal rows or columns, for many matrices at once: Muon's step (Jordan 2024,
https://kellerjordan.github.io/posts/muon).

Matrices of one shape go as one stack, whatever tensors they are from. A matrix's answer does not depend on those beside
it, so that machines may each take a share of the list. N matrices of M rows and K columns, M <= K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at 0; singular values end near 1, not at it
STEPS = 5
TINY = 1e-7
_QUICK_ON_CPU = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
AT_ONCE = 1 << 26  # numbers of a stack: 128 MiB in bf16, and products of it twice that


@torch.no_grad()
def orthogonalise(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each [..., M, K] matrix, or stack of such, with singular values near 1: in the order and the shapes given,
    in bf16 where that is quicker."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        alike.setdefault(tuple(matrix.shape[-2:]), []).append(index)
    results: list[torch.Tensor] = [torch.empty(0)] * len(matrices)
    for (rows, columns), indices in alike.items():
        stack_NMK = torch.cat([_rounded(matrices[index]).reshape(-1, rows, columns) for index in indices])
        parts = [newton_schulz(part_NMK) for part_NMK in stack_NMK.split(max(AT_ONCE // (rows * columns), 1))]
        counts = [matrices[index].shape[:-2].numel() for index in indices]
        for index, result in zip(indices, torch.cat(parts).split(counts), strict=True):
            results[index] = result.reshape(matrices[index].shape)
    return results


def newton_schulz(stack_NMK: torch.Tensor) -> torch.Tensor:
    """The quintic iteration x <- a x + (b g + c g g) x with g = x x^T, from x of norm 1; the smaller side is g's."""
    a, b, c = COEFFICIENTS
    is_tall = stack_NMK.shape[1] > stack_NMK.shape[2]
    x_NMK = stack_NMK.mT if is_tall else stack_NMK
    x_NMK = x_NMK / x_NMK.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(STEPS):
        gram_NMM = x_NMK @ x_NMK.mT
        update_NMM = torch.baddbmm(gram_NMM, gram_NMM, gram_NMM, beta=b, alpha=c)
        x_NMK = torch.baddbmm(x_NMK, update_NMM, x_NMK, beta=a)
    return x_NMK.mT if is_tall else x_NMK


def flops(rows: int, columns: int) -> int:
    """Of the products for one matrix."""
    M, K = sorted((rows, columns))
    return STEPS * (4 * M * M * K + 2 * M**3)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """In bf16 where that is quicker, as always in torch.optim.Muon: the iteration forgives rounding."""
    return x.bfloat16() if x.is_cuda or _QUICK_ON_CPU else x
