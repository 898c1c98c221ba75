"""Multi-head latent attention: keys and values of all heads are read off one narrow latent per position. Only that
latent, and one rotary key that the heads share, are remembered (DeepSeek-V2, arXiv 2405.04434, section 2.1).

B sequences, S new positions, T positions looked at, D width, H heads, L width of the latent; of a head, n the width of
queries and keys without positions, r with rotary ones, v of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.model.attention._scores import attend, mean_seen, remember, shrinkage
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.layers import Linear, RMSNorm
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.model.segments import Context, Yarn, rotate, yarn_scale

EPS = 1e-6  # of the latents' norms, whatever the model's own: so in DeepSeek's code, and in transformers


@dataclass(frozen=True)
class Options:
    q_lora: int = 0
    """Width of the latent that queries are read off; 0: they are one map of the input."""
    kv_lora: int = 512
    """Width of the latent that keys and values are read off."""
    nope_dim: int = 128
    """Of a head's queries and keys, the width without positions."""
    rope_dim: int = 64
    """The width with rotary positions: pairs are neighbours, as DeepSeek stores them."""
    value_dim: int = 128
    """Width of a head's values."""
    yarn_factor: float = 1.0
    """Rotary positions are stretched so many times (YaRN, arXiv 2309.00071); 1: not."""
    yarn_original: int = 4096
    """Positions before they were stretched."""
    yarn_beta_fast: float = 32.0
    """Pairs that turn more often than that over the original positions are left alone."""
    yarn_beta_slow: float = 1.0
    """Pairs that turn less often than that are stretched in full."""
    yarn_mscale: float = 1.0
    """Weight of YaRN's temperature on the rotary part."""
    yarn_mscale_all_dim: float = 0.0
    """Its weight on all scores."""

    def __post_init__(self) -> None:
        for name in ("kv_lora", "nope_dim", "rope_dim", "value_dim", "yarn_factor", "yarn_original"):
            check_range(name, getattr(self, name), 1)
        check_range("q_lora", self.q_lora)
        for name in ("yarn_mscale", "yarn_mscale_all_dim"):
            check_range(name, getattr(self, name))
        check_range("yarn_beta_slow", self.yarn_beta_slow, 1e-3)
        check_range("yarn_beta_fast", self.yarn_beta_fast, self.yarn_beta_slow)
        if self.rope_dim % 2:
            raise UsageError(f"rope_dim ({self.rope_dim}) must be even: rotary positions turn pairs")


class Attention(nn.Module):
    can_clip = True

    def __init__(self, config: ModelConfig, options: Options, precision: Precision) -> None:
        super().__init__()
        self.heads, self.theta, self.q_lora = config.heads, config.rope_theta, options.q_lora
        self.nope_dim, self.rope_dim, self.value_dim = options.nope_dim, options.rope_dim, options.value_dim
        self.yarn = None
        if options.yarn_factor > 1:
            self.yarn = Yarn(
                options.yarn_factor, options.yarn_original, options.yarn_beta_fast, options.yarn_beta_slow,
                options.yarn_mscale, options.yarn_mscale_all_dim,
            )  # fmt: skip
        self.largest_H: torch.Tensor | None = None
        query_dim = options.nope_dim + options.rope_dim
        self.scale = query_dim**-0.5 * yarn_scale(options.yarn_factor, options.yarn_mscale_all_dim) ** 2
        if options.q_lora:
            self.query_down = Linear(config.width, options.q_lora, precision)
            self.query_norm = RMSNorm(options.q_lora, EPS)
            self.query_up = Linear(options.q_lora, config.heads * query_dim, precision)
        else:
            self.query = Linear(config.width, config.heads * query_dim, precision)
        self.key_value_down = Linear(config.width, options.kv_lora + options.rope_dim, precision)
        self.key_value_norm = RMSNorm(options.kv_lora, EPS)
        self.key_value_up = Linear(options.kv_lora, config.heads * (options.nope_dim + options.value_dim), precision)
        self.output = Linear(config.heads * options.value_dim, config.width, precision)

    def forward(
        self, x_BSD: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        tables = context.rotary(self.rope_dim, self.theta, self.yarn)
        q_BHSq = self._queries(x_BSD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_BHSn, q_BHSr = q_BHSq.split((self.nope_dim, self.rope_dim), dim=-1)
        q_BHSr = rotate(_halves(q_BHSr), tables)
        latent_BSL, k_BSr = self.key_value_down(x_BSD).tensor_split((-self.rope_dim,), dim=-1)
        latent_B1SL, k_B1Sr = self.key_value_norm(latent_BSL)[:, None], rotate(_halves(k_BSr[:, None]), tables)
        latent_B1TL, k_B1Tr = remember(memory, latent=latent_B1SL, rotary_key=k_B1Sr)
        heads = self._absorbed if context.past else self._expanded
        y_BHSv = heads(q_BHSn, q_BHSr, latent_B1TL, k_B1Tr, context)
        return self.output(y_BHSv.transpose(1, 2).flatten(2))

    def watch_scores(self) -> None:
        self.largest_H = torch.zeros(self.heads, device=self.key_value_up.weight.device)

    def shrinkage_of_rows(self, largest_H: torch.Tensor, most: float) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """A head's own parts of queries and keys by a root each; against the rotary key, which heads share, the
        queries take it all."""
        shrink_H1 = shrinkage(largest_H, most)[:, None]
        query, up = (self.query_up if self.q_lora else self.query).weight, self.key_value_up.weight
        shrink_Hq = shrink_H1.repeat(1, query.shape[0] // self.heads)
        shrink_Hq[:, : self.nope_dim] = shrink_H1.sqrt()
        shrink_Hu = torch.ones_like(shrink_H1).repeat(1, up.shape[0] // self.heads)
        shrink_Hu[:, : self.nope_dim] = shrink_H1.sqrt()
        return [(query, shrink_Hq.flatten()), (up, shrink_Hu.flatten())]

    def flops(self, sequence: int) -> float:
        """Forward FLOPs of scores and of their product with values: per token, the mean over a sequence."""
        return 2 * self.heads * (self.nope_dim + self.rope_dim + self.value_dim) * mean_seen(sequence)

    def _queries(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return self.query_up(self.query_norm(self.query_down(x_BSD))) if self.q_lora else self.query(x_BSD)

    def _expanded(
        self, q_BHSn: torch.Tensor, q_BHSr: torch.Tensor, latent_B1TL: torch.Tensor, k_B1Tr: torch.Tensor,
        context: Context,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values of every head, written out."""
        up_BHTu = self.key_value_up(latent_B1TL[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BHTn, v_BHTv = up_BHTu.split((self.nope_dim, self.value_dim), dim=-1)
        q_BHSq = torch.cat((q_BHSn, q_BHSr), dim=-1)
        k_BHTq = torch.cat((k_BHTn, k_B1Tr.expand(-1, self.heads, -1, -1)), dim=-1)
        largest_H = self.largest_H if self.training else None
        return attend(q_BHSq, k_BHTq, v_BHTv, context, scale=self.scale, largest_H=largest_H)

    def _absorbed(
        self, q_BHSn: torch.Tensor, q_BHSr: torch.Tensor, latent_B1TL: torch.Tensor, k_B1Tr: torch.Tensor,
        context: Context,
    ) -> torch.Tensor:  # fmt: skip
        """The same, without writing out keys and values of positions long past for every new one: queries go to the
        latent's space, and what they find there comes back (section 2.1.2)."""
        up_HuL = self.key_value_up.weight.to(q_BHSn.dtype).unflatten(0, (self.heads, -1))
        up_HnL, up_HvL = up_HuL.split((self.nope_dim, self.value_dim), dim=1)
        q_BHSq = torch.cat((q_BHSn @ up_HnL, q_BHSr), dim=-1)
        k_B1Tq = torch.cat((latent_B1TL, k_B1Tr), dim=-1)
        return attend(q_BHSq, k_B1Tq, latent_B1TL, context, scale=self.scale) @ up_HvL.transpose(1, 2)


def _halves(x: torch.Tensor) -> torch.Tensor:
    """Pairs (0, 1), (2, 3), ... as rotate() wants them: first parts, then second parts."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
