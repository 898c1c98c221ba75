"""What kinds of attention share: softmax attention under a context's mask, and memory of earlier positions.

B sequences, S new positions, T positions looked at, H heads, G key-value heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gristmill.trainer.model.segments import Context


def attend(
    q_BHSd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTe: torch.Tensor, context: Context, window: int = 0,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """[B, H, S, e]. Scores are left to scaled_dot_product_attention, which takes fewer key-value heads as they are."""
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
