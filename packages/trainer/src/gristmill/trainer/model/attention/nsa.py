"""Native sparse attention (arXiv 2502.11089): a query looks at summaries of all blocks, at the few blocks whose
summaries it liked best, and at its neighbourhood; a learnt gate weighs the three.

Blocks are counted from their document's start: a document is cut alike wherever in a window it stands, and no block
crosses into another. The selected blocks are looked at through a mask over all positions: the paper's numbers, without
its kernel's saving.

B sequences, S new positions, T positions looked at, D width, H heads, G key-value heads, K heads per key-value head,
N summaries, L positions of a summarised block, J blocks to select from, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.model.attention._scores import attend, mean_seen, remember
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.filling import Fill, whole
from gristmill.trainer.model.layers import Linear
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.model.segments import Context, rotate


@dataclass(frozen=True)
class Options:
    """The defaults are the paper's (section 4.1)."""

    block: int = 32
    """Positions that a summary stands for (l in the paper)."""
    stride: int = 16
    """Positions from the start of a summarised block to that of the next (d)."""
    selected_block: int = 64
    """Positions of a block that is selected as a whole (l')."""
    selected: int = 16
    """Blocks that a query selects (n): its document's first and the two nearest in any case."""
    window: int = 512
    """Nearest positions that a token looks at in any case, itself among them (w)."""

    def __post_init__(self) -> None:
        for name in ("block", "stride", "selected_block", "window"):
            check_range(name, getattr(self, name), 1)
        check_range("selected", self.selected, 3)
        for name in ("block", "selected_block"):
            if getattr(self, name) % self.stride:
                raise UsageError(f"{name} ({getattr(self, name)}) must be a multiple of stride ({self.stride})")
        if self.block > self.selected_block:
            raise UsageError(f"block ({self.block}) must not exceed selected_block ({self.selected_block})")


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, options: Options, precision: Precision) -> None:
        super().__init__()
        self.options, self.head_dim, self.theta = options, config.head_dim, config.rope_theta
        self.groups = config.kv_heads
        self.query = Linear(config.width, config.heads * config.head_dim, precision)
        # Each branch has its own keys and values, lest the easy near ones teach the far ones nothing (section 3.3.3).
        self.key = Linear(config.width, 3 * config.kv_heads * config.head_dim, precision)
        self.value = Linear(config.width, 3 * config.kv_heads * config.head_dim, precision)
        self.key_summary = Summary(options.block, config.head_dim, precision)
        self.value_summary = Summary(options.block, config.head_dim, precision)
        self.gate = Linear(config.width, 3 * config.heads, precision)
        self.output = Linear(config.heads * config.head_dim, config.width, precision)

    def forward(
        self, x_BSD: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        tables = context.rotary(self.head_dim, self.theta)
        q_BHSd = rotate(self.query(x_BSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2), tables)
        k1_BGSd, k2_BGSd, k3_BGSd = self._branches(self.key(x_BSD))
        v1_BGSd, v2_BGSd, v3_BGSd = self._branches(self.value(x_BSD))
        ends_BN = self._ends(context)
        k_BGNd, v_BGNd = self._summaries(k1_BGSd, v1_BGSd, ends_BN, context, memory)
        coarse_BHSd, p_BGKSN = self._look_at_summaries(q_BHSd, k_BGNd, v_BGNd, ends_BN, context)
        k_BGTd, v_BGTd = remember(memory, selected_key=rotate(k2_BGSd, tables), selected_value=v2_BGSd)
        chosen_BGSJ = self._choose(p_BGKSN.detach().sum(dim=2), ends_BN, context)
        chosen_BHSd = self._look_at_chosen(q_BHSd, k_BGTd, v_BGTd, chosen_BGSJ, context)
        window = self.options.window
        k_BGTd, v_BGTd = remember(memory, window, near_key=rotate(k3_BGSd, tables), near_value=v3_BGSd)
        near_BHSd = attend(q_BHSd, k_BGTd, v_BGTd, context, window)
        gates_BHS3 = self.gate(x_BSD).sigmoid().unflatten(-1, (-1, 3)).transpose(1, 2)
        coarse_BHS1, chosen_BHS1, near_BHS1 = gates_BHS3.split(1, dim=-1)
        y_BHSd = coarse_BHSd * coarse_BHS1 + chosen_BHSd * chosen_BHS1 + near_BHSd * near_BHS1
        return self.output(y_BHSd.transpose(1, 2).flatten(2))

    def flops(self, sequence: int) -> float:
        """Forward FLOPs of scores and of their product with values, as the paper's kernel would have them: per token,
        the mean over a sequence."""
        options = self.options
        chosen = mean_seen(sequence, options.selected * options.selected_block)
        seen = mean_seen(sequence) / options.stride + chosen + mean_seen(sequence, options.window)
        return 4 * self.query.weight.shape[0] * seen

    def _branches(self, x_BSF: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys or values of the three branches, each [B, G, S, d]."""
        return x_BSF.unflatten(-1, (3, self.groups, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()

    def _ends(self, context: Context) -> torch.Tensor:
        """int64 [B or 1, N]: the last positions of all summarised blocks so far, in order. Which blocks there are
        depends on where documents begin, N does not: what is left over ends behind the window, where nobody sees it."""
        block, stride = self.options.block, self.options.stride
        device, S = context.positions_BS.device, context.positions_BS.shape[1]
        if context.first_BS is None:
            N = max((context.past + S - block) // stride + 1, 0)
            return block - 1 + stride * torch.arange(N, device=device)[None]
        beyond_BS = context.positions_BS - (block - 1)
        is_end_BS = (beyond_BS >= 0) & (beyond_BS % stride == 0)
        N = S // stride  # enough: n positions have at most n / stride whole blocks, as stride <= block
        slot_BS = torch.where(is_end_BS, is_end_BS.cumsum(dim=1) - 1, N)  # the last slot takes all others, and goes
        ends_BN = torch.full((len(slot_BS), N + 1), S, device=device)
        return ends_BN.scatter_(1, slot_BS, torch.arange(S, device=device).expand_as(slot_BS))[:, :N]

    def _summaries(
        self, k_BGSd: torch.Tensor, v_BGSd: torch.Tensor, ends_BN: torch.Tensor, context: Context,
        memory: dict[str, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """A key and a value for each block, [B, G, N, d]. Keys are turned as their block's last position."""
        new_BN = ends_BN[:, memory["summary_key"].shape[2] if memory and "summary_key" in memory else 0 :]
        unfinished = max(self.options.block - 1, 1)  # positions that blocks yet to end may reach back to
        k_BGUd, v_BGUd = remember(memory, unfinished, plain_key=k_BGSd, plain_value=v_BGSd)
        stop, U = context.past + k_BGSd.shape[2], k_BGUd.shape[2]
        place_L = torch.arange(1 - self.options.block, 1, device=new_BN.device)
        inside_BNL = (new_BN[..., None] + place_L - (stop - U)).clamp(0, U - 1)
        row_B11 = torch.arange(len(k_BGUd), device=new_BN.device)[:, None, None]
        k_BGNd = self.key_summary(k_BGUd.transpose(1, 2)[row_B11, inside_BNL])
        v_BGNd = self.value_summary(v_BGUd.transpose(1, 2)[row_B11, inside_BNL])
        at_BN = (new_BN - context.past).clamp(max=k_BGSd.shape[2] - 1)[:, None, :, None]
        cos, sin = (torch.take_along_dim(t, at_BN, dim=2) for t in context.rotary(self.head_dim, self.theta))
        k_BGNd, v_BGNd = remember(memory, summary_key=rotate(k_BGNd, (cos, sin)), summary_value=v_BGNd)
        return k_BGNd, v_BGNd

    def _look_at_summaries(
        self, q_BHSd: torch.Tensor, k_BGNd: torch.Tensor, v_BGNd: torch.Tensor, ends_BN: torch.Tensor, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, H, S, d], and each head's probabilities [B, G, K, S, N] (eq. 8); zero where no block has ended yet."""
        q_BGKSd = q_BHSd.unflatten(1, (self.groups, -1))
        score_BGKSN = q_BGKSd @ k_BGNd[:, :, None].transpose(-1, -2) * self.head_dim**-0.5
        index_S1 = torch.arange(context.past, context.past + q_BHSd.shape[2], device=ends_BN.device)[:, None]
        seen_BSN = ends_BN[:, None] <= index_S1
        if context.first_BS is not None:
            seen_BSN = seen_BSN & (ends_BN[:, None] >= context.first_BS[..., None])
        seen_BGKSN = seen_BSN[:, None, None]
        score_BGKSN = score_BGKSN.to(torch.promote_types(score_BGKSN.dtype, torch.float32))
        lowest = torch.finfo(score_BGKSN.dtype).min  # not -inf: a row of nothing but that has no softmax
        p_BGKSN = score_BGKSN.masked_fill(~seen_BGKSN, lowest).softmax(dim=-1) * seen_BGKSN
        return (p_BGKSN.to(v_BGNd.dtype) @ v_BGNd[:, :, None]).flatten(1, 2), p_BGKSN

    @torch.no_grad()
    def _choose(self, p_BGSN: torch.Tensor, ends_BN: torch.Tensor, context: Context) -> torch.Tensor:
        """bool [B, G, S, J]: the blocks that a key-value head's queries select together, counted from the document's
        start. p_BGSN: probabilities, summed over the heads (eq. 10)."""
        block, stride, size = self.options.block, self.options.stride, self.options.selected_block
        place_BT = context.key_positions()
        J = -(-place_BT.shape[1] // size)
        block_J = torch.arange(J, device=ends_BN.device)
        # A block's score is the sum over its strides, and over all summaries that a stride lies in (eq. 9).
        start_BN1 = place_BT.gather(1, ends_BN.clamp(max=place_BT.shape[1] - 1))[..., None] - (block - 1)
        stop_BNJ = torch.minimum(start_BN1 + block, (block_J + 1) * size)
        strides_BNJ = (stop_BNJ - torch.maximum(start_BN1, block_J * size)).clamp(min=0) // stride
        score_BGSJ = p_BGSN @ strides_BNJ[:, None].to(p_BGSN.dtype)
        own_B1S1 = context.positions_BS[:, None, :, None] // size
        always_B1SJ = (block_J == 0) | (block_J >= own_B1S1 - 1)
        score_BGSJ = score_BGSJ.masked_fill(always_B1SJ, float("inf")).masked_fill(block_J > own_B1S1, float("-inf"))
        best_BGSn = score_BGSJ.topk(min(self.options.selected, J), dim=-1).indices
        return torch.zeros_like(score_BGSJ, dtype=torch.bool).scatter_(-1, best_BGSn, True)

    def _look_at_chosen(
        self, q_BHSd: torch.Tensor, k_BGTd: torch.Tensor, v_BGTd: torch.Tensor, chosen_BGSJ: torch.Tensor,
        context: Context,
    ) -> torch.Tensor:  # fmt: skip
        block_BT = context.key_positions() // self.options.selected_block
        block_BGST = block_BT[:, None, None].expand(*chosen_BGSJ.shape[:3], -1)
        mask_BGST = chosen_BGSJ.gather(-1, block_BGST) & context.visible(k_BGTd.shape[2])[:, None]
        y_CKSd = F.scaled_dot_product_attention(  # C = B * G: the heads of a group share one mask
            q_BHSd.unflatten(1, (self.groups, -1)).flatten(0, 1),
            k_BGTd.flatten(0, 1)[:, None],
            v_BGTd.flatten(0, 1)[:, None],
            attn_mask=mask_BGST.flatten(0, 1)[:, None],
            enable_gqa=True,
        )
        return y_CKSd.unflatten(0, (-1, self.groups)).flatten(1, 2)


class Summary(nn.Module):
    """A block's keys or values as one: an MLP of them all, each marked with its place in the block (eq. 7)."""

    def __init__(self, block: int, head_dim: int, precision: Precision) -> None:
        super().__init__()
        self.place_Ld = nn.Parameter(torch.empty(block, head_dim))
        self.hidden = Linear(block * head_dim, head_dim, precision)
        self.summary = Linear(head_dim, head_dim, precision)

    def initialise(self, generator: torch.Generator, fill: Fill = whole) -> None:
        fill(self.place_Ld, lambda shape: torch.empty(shape).normal_(0.0, 0.02, generator=generator))

    def forward(self, x_BNLGd: torch.Tensor) -> torch.Tensor:
        """-> [B, G, N, d]"""
        placed_BNGLd = x_BNLGd.transpose(2, 3) + self.place_Ld.to(x_BNLGd.dtype)
        return self.summary(F.silu(self.hidden(placed_BNGLd.flatten(3)))).transpose(1, 2)
