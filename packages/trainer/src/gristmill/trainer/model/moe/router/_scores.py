"""What routers share: logits in fp32, the choice of k experts, out of some groups alone, and their weights.

T tokens, D width, E experts, K experts per token, G groups of N experts, H groups that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.model.config import ModelConfig

TINY = 1e-20  # as in DeepSeek-V3's code: a sum of scores that are all zero divides nothing by zero


@dataclass(frozen=True)
class TopK:
    """Options of routers where each token chooses k experts."""

    normalise: bool = True
    """A token's weights sum to 1 before they are scaled (Mixtral, Qwen3, DeepSeek-V3); else they are the scores as they
    are (Switch, DeepSeek-V2)."""
    scale: float = 1.0
    """Weights times this (DeepSeek's routed_scaling_factor)."""
    groups: int = 1
    """Experts, in their order, fall into so many groups of equal size; in DeepSeek's models a group is a device."""
    groups_kept: int = 1
    """A token's experts come out of so many of the groups, those of the best scores."""

    def __post_init__(self) -> None:
        check_range("scale", self.scale)
        check_range("groups", self.groups, 1)
        check_range("groups_kept", self.groups_kept, 1, self.groups)


def require_possible(kind: str, options: TopK, config: ModelConfig, experts: int) -> None:
    """Refuses what cannot route.

    Raises:
        UsageError: groups of unlike size, too few experts in those that are kept, or weights that are always 1.
    """
    where = f"model.options: {kind}"
    if experts % options.groups:
        raise UsageError(f"{where}.groups ({options.groups}) must divide the {experts} experts of every layer")
    held = options.groups_kept * (experts // options.groups)
    if held < config.top_k:
        raise UsageError(
            f"{where}.groups_kept: {options.groups_kept} of {options.groups} groups hold {held} experts, fewer than "
            f"model.top_k ({config.top_k}); keep more groups"
        )
    if options.normalise and config.top_k == 1 < experts:
        raise UsageError(
            f"{where}.normalise: with model.top_k 1 a token's only weight would always be 1, and the loss would teach "
            f"the router nothing; give {kind}.normalise false"
        )


def logits(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
    """[T, E] in fp32, or in fp64 where the input is."""
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    return F.linear(x_TD.to(dtype), weight_ED.to(dtype))


@torch.no_grad()
def choose(scores_TE: torch.Tensor, top_k: int, options: TopK, best: int) -> torch.Tensor:
    """The k experts of the highest scores, [T, K], out of the groups that are kept; a group stands where the sum of its
    `best` highest scores puts it (DeepSeek-V2, arXiv 2405.04434, section 2.2.2: the highest; DeepSeek-V3: two)."""
    if options.groups_kept < options.groups:
        scores_TGN = scores_TE.unflatten(1, (options.groups, -1))
        rank_TG = scores_TGN.topk(min(best, scores_TGN.shape[2]), dim=-1).values.sum(dim=-1)
        kept_TH = rank_TG.topk(options.groups_kept, dim=-1).indices
        left_out_TG = torch.ones_like(rank_TG, dtype=torch.bool).scatter(1, kept_TH, False)
        scores_TE = scores_TGN.masked_fill(left_out_TG[..., None], float("-inf")).flatten(1)
    return scores_TE.topk(top_k, dim=-1).indices


def weights(scores_TE: torch.Tensor, experts_TK: torch.Tensor, options: TopK) -> torch.Tensor:
    """The chosen experts' scores, [T, K], as what their outputs are multiplied by."""
    scores_TK = scores_TE.gather(1, experts_TK)
    if options.normalise:
        scores_TK = scores_TK / (scores_TK.sum(dim=-1, keepdim=True) + TINY)
    return scores_TK * options.scale
