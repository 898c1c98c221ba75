"""The output head and its cross-entropy, a few rows at a time: the logits of a whole batch never exist.

For training the gradients are computed in the forward pass, while a chunk's logits are at hand (as in Liger-Kernel's
fused linear cross-entropy, arXiv 2410.10989). T tokens, D width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 512  # rows: large enough for full-speed products, 32 MiB of fp32 logits at a vocabulary of 16,384


def cross_entropy(x_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats (fp32 scalar), with gradients for x_TD and weight_VD."""
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def token_nll(x_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats: [T] fp32, without gradients."""
    weight_VD = weight_VD.to(x_TD.dtype)
    chunks = zip(x_TD.split(CHUNK), targets_T.split(CHUNK))
    return torch.cat([_chunk(x_CD, weight_VD, targets_C)[0] for x_CD, targets_C in chunks])


def _chunk(
    x_CD: torch.Tensor, weight_VD: torch.Tensor, targets_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits_CV = (x_CD @ weight_VD.t()).float()
    log_sum_C1 = logits_CV.logsumexp(dim=-1, keepdim=True)
    nll_C = (log_sum_C1 - logits_CV.gather(1, targets_C[:, None])).squeeze(1)
    return nll_C, logits_CV, log_sum_C1


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        cast_VD = weight_VD.to(x_TD.dtype)
        T = len(targets_T)
        grad_x_TD = torch.empty_like(x_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=x_TD.device)
        for start in range(0, T, CHUNK):
            rows = slice(start, start + CHUNK)
            nll_C, logits_CV, log_sum_C1 = _chunk(x_TD[rows], cast_VD, targets_T[rows])
            total += nll_C.sum()
            grad_CV = logits_CV.sub_(log_sum_C1).exp_()  # softmax, then less 1 at the target
            grad_CV.scatter_add_(1, targets_T[rows, None], grad_CV.new_full((len(nll_C), 1), -1.0))
            scaled_CV = grad_CV.mul_(1 / T).to(x_TD.dtype)
            grad_x_TD[rows] = scaled_CV @ cast_VD
            grad_weight_VD += scaled_CV.t() @ x_TD[rows]
        ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        return total / max(T, 1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_x_TD, grad_weight_VD = ctx.saved_tensors
        return (grad_x_TD * grads[0]).to(grad_x_TD.dtype), grad_weight_VD * grads[0], None
