"""What kinds of attention share: softmax attention under a context's mask, and memory of earlier positions.

B sequences, S new positions, T positions looked at, H heads, G key-value heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gristmill.trainer.model.segments import Context

ROWS = 256


def attend(
    q_BHSd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTe: torch.Tensor, context: Context, window: int = 0,
    scale: float | None = None, largest_H: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """[B, H, S, e]. Scores are left to scaled_dot_product_attention, which takes fewer key-value heads as they are.

    largest_H: where given, takes up each head's largest score.
    """
    if largest_H is not None:
        _see(largest_H, q_BHSd, k_BGTd, context.visible(k_BGTd.shape[2], window), scale or q_BHSd.shape[-1] ** -0.5)
    bias_B1ST = context.bias(k_BGTd.shape[2], window)
    # Fused kernels want values as wide as keys, and spare [H, S, T].
    narrower = max(q_BHSd.shape[-1] - v_BGTe.shape[-1], 0)
    y_BHSe = F.scaled_dot_product_attention(
        q_BHSd,
        k_BGTd,
        F.pad(v_BGTe, (0, narrower)) if narrower else v_BGTe,
        attn_mask=bias_B1ST,
        is_causal=bias_B1ST is None and not context.past,
        scale=scale,
        enable_gqa=q_BHSd.shape[1] != k_BGTd.shape[1],
    )
    return y_BHSe[..., : v_BGTe.shape[-1]]


@torch.no_grad()
def _see(
    largest_H: torch.Tensor, q_BHSd: torch.Tensor, k_BGTd: torch.Tensor, seen_BST: torch.Tensor, scale: float
) -> None:
    """A few queries at a time: the scores of all never exist. R of the queries, K heads to a key-value head."""
    k_BG1dT = k_BGTd[:, :, None].mT.to(largest_H.dtype)
    for start in range(0, q_BHSd.shape[2], ROWS):
        rows = slice(start, start + ROWS)
        q_BGKRd = q_BHSd[:, :, rows].unflatten(1, (k_BGTd.shape[1], -1)).to(largest_H.dtype)
        hidden_B11RT = ~seen_BST[:, None, None, rows]
        score_BGKRT = (q_BGKRd @ k_BG1dT).masked_fill_(hidden_B11RT, float("-inf"))
        largest_H.copy_(torch.maximum(largest_H, score_BGKRT.amax(dim=(0, 3, 4)).flatten() * scale))


def shrinkage(largest_H: torch.Tensor, most: float) -> torch.Tensor:
    """What each head's scores are to be multiplied by, so that the largest is at most `most`: 1 where it is."""
    return most / largest_H.clamp(min=most)


def remember(
    memory: dict[str, torch.Tensor] | None, window: int = 0, dim: int = 2, **new: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Each tensor behind what memory has of its name, and memory so extended: to the last `window` positions, if given.
    Tensors grow along `dim`. Without a memory they come back as they are."""
    if memory is None:
        return tuple(new.values())
    joined = {name: torch.cat((memory[name], x), dim) if name in memory else x for name, x in new.items()}
    for name, x in joined.items():
        memory[name] = x.narrow(dim, x.shape[dim] - window, window) if 0 < window < x.shape[dim] else x
    return tuple(joined.values())


def mean_seen(sequence: int, window: int = 0) -> float:
    """Positions that a position of a sequence looks at: the mean over the sequence; with a window, at most `window`."""
    most = min(window or sequence, sequence)
    return most - most**2 / (2 * sequence)
