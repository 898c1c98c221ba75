"""The decoder: embeddings, blocks of attention and experts, a final norm, and a head that may share the embeddings.

Router health travels beside the hidden states as plain values.
B sequences, S positions, T = B*S tokens, D width, V vocabulary, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gristmill.trainer.model import attention, feed_forward, head, kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.filling import Fill, whole
from gristmill.trainer.model.layers import RMSNorm
from gristmill.trainer.model.moe import MixtureOfExperts, RouterReport, router
from gristmill.trainer.model.moe.adapt import Coefficients
from gristmill.trainer.model.precision import Precision
from gristmill.trainer.model.segments import Context, Segments, one_per_row

Memory = list[dict[str, torch.Tensor]]
"""What each layer remembers of positions that came in earlier calls."""


class Loss(NamedTuple):
    """What to differentiate: nll, the mean over learnt tokens in nats, and auxiliary, the routers' losses."""

    nll: torch.Tensor
    auxiliary: torch.Tensor
    routers: list[RouterReport]  # one per layer that has experts


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, precision: Precision) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = attention.build(config, layer, precision)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn = feed_forward.build(config, layer, precision)

    def forward(
        self, x_BSD: torch.Tensor, context: Context, memory: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, RouterReport | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), context, memory)
        y_BSD, report = self.ffn(self.ffn_norm(x_BSD))
        return x_BSD + y_BSD, report


class Transformer(nn.Module):
    """`recompute` trades time for memory: each block's activations are computed again in the backward pass."""

    def __init__(self, config: ModelConfig, precision: Precision, recompute: bool = False) -> None:
        super().__init__()
        for name in config.attention:  # those that no layer has, too
            kinds.find(attention.__name__, name, "model.attention")
        kinds.find(router.__name__, config.router, "model.router")
        kinds.require_known_options(config, {*config.attention, config.router, "adapt"})
        self.config, self.precision, self.recompute = config, precision, recompute
        self.embedding_VD = nn.Parameter(torch.empty(config.vocab, config.width))
        self.blocks = nn.ModuleList(Block(config, layer, precision) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head_VD = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab, config.width))
        self.coefficients = Coefficients(config)

    @torch.no_grad()
    def initialise(self, seed: int, fill: Fill = whole) -> None:
        """Normal with std 1/sqrt(inputs), into the residual stream smaller by sqrt(2 * layers) (GPT-2); tables 0.02.

        Picked on one seed (tiny, 300 k tokens, validation nats): 5.84; flat 0.02: 5.93; router alone at 0.02: 5.99.
        A module with parameters of another sort sets them itself, in initialise(generator, fill).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                std = 0.02 if name in ("embedding_VD", "head_VD") else parameter.shape[-1] ** -0.5
                if name.endswith((".output.weight", ".down_EDF", ".down.weight")):
                    std /= math.sqrt(2 * self.config.layers)
                fill(parameter, lambda shape: torch.empty(shape).normal_(0.0, std, generator=generator))  # noqa: B023
        for module in self.modules():
            if module is not self and hasattr(module, "initialise"):
                module.initialise(generator, fill)  # pyright: ignore[reportCallIssue]

    @property
    def output_VD(self) -> torch.Tensor:
        return self.embedding_VD if self.head_VD is None else self.head_VD

    @property
    def routers(self) -> list[nn.Module]:
        """One of each layer that has experts, in order."""
        return [block.ffn.router for block in self.blocks if isinstance(block.ffn, MixtureOfExperts)]  # pyright: ignore

    def compile_blocks(self) -> None:
        """Fuse what stands between the products, block by block (torch.compile): the names of parameters stay.

        Each shape has code of its own: code for all shapes, made when a second one comes, would round otherwise than
        that which a resumed run begins with.
        """
        for block in self.blocks:
            block.compile(dynamic=False)

    def new_memory(self) -> Memory:
        """To be given to forward() and logits(), which extend it by the positions that they are given."""
        return [{} for _ in self.blocks]

    def forward(
        self, tokens_BS: torch.Tensor, segments: Segments | None = None, memory: Memory | None = None, past: int = 0
    ) -> tuple[torch.Tensor, list[RouterReport]]:
        """Hidden states after the final norm, [B, S, D] in the precision's type, and one report per router.

        With a memory, the tokens go on from the `past` positions that it has seen.
        """
        segments = segments or one_per_row(tokens_BS, past)
        context = Context(segments, self.precision.dtype, past)
        x_BSD = F.embedding(tokens_BS, self.embedding_VD).to(self.precision.dtype)
        x_BSD = _times(x_BSD, self.config.embedding_scale)
        reports = []
        for layer, block in enumerate(self.blocks):
            if self.recompute and memory is None and torch.is_grad_enabled():
                # A context of its own: what a first pass left in one would lead compiled code another way the second.
                again = partial(_with_new_context, block, segments, self.precision.dtype)
                x_BSD, report = checkpoint(again, x_BSD, use_reentrant=False)  # pyright: ignore
            else:
                x_BSD, report = block(x_BSD, context, None if memory is None else memory[layer])
            if report is not None:
                reports.append(report)
        return _times(self.norm(x_BSD), self.config.output_scale), reports

    def loss(
        self,
        tokens_BS: torch.Tensor,
        targets_BS: torch.Tensor,
        segments: Segments | None = None,
        learnt_BS: torch.Tensor | None = None,
    ) -> Loss:
        """nll is a mean over learnt tokens, auxiliary over all: micro-batches accumulate by their shares of each."""
        x_BSD, reports = self(tokens_BS, segments)
        x_TD, targets_T = x_BSD.flatten(0, 1), targets_BS.flatten()
        if learnt_BS is not None:
            learnt_T = learnt_BS.flatten()
            x_TD, targets_T = x_TD[learnt_T], targets_T[learnt_T]
        nll = head.cross_entropy(x_TD, self.output_VD, targets_T)
        return Loss(nll, self.coefficients.weigh(reports, nll), reports)

    @torch.no_grad()
    def adapt(self, loads: Sequence[torch.Tensor], norm: float, biases: bool = True) -> None:
        """After an optimiser step: routers that balance by a bias move it by the whole batch's load [E] of their layer,
        unless `biases` are to stay, and coefficients that adapt do so by loads and gradient norm."""
        for one, load_E in zip(self.routers, loads, strict=True):
            if biases and hasattr(one, "balance"):
                one.balance(load_E)  # pyright: ignore[reportCallIssue]
        self.coefficients.adapt(loads, norm)

    @torch.no_grad()
    def token_nll(
        self, tokens_BS: torch.Tensor, targets_BS: torch.Tensor, segments: Segments | None = None
    ) -> torch.Tensor:
        """Negative log-likelihood of each target in nats: [B, S] fp32."""
        x_BSD, _ = self(tokens_BS, segments)
        return head.token_nll(x_BSD.flatten(0, 1), self.output_VD, targets_BS.flatten()).view_as(targets_BS)

    def logits(
        self, tokens_BS: torch.Tensor, segments: Segments | None = None, memory: Memory | None = None, past: int = 0
    ) -> torch.Tensor:
        """[B, S, V] in the precision's type; for tests, generation and parity, not for training."""
        x_BSD, _ = self(tokens_BS, segments, memory, past)
        return self.precision.linear(x_BSD, self.output_VD)


def _with_new_context(
    block: nn.Module, segments: Segments, dtype: torch.dtype, x_BSD: torch.Tensor
) -> tuple[torch.Tensor, RouterReport | None]:
    return block(x_BSD, Context(segments, dtype))


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x if factor == 1.0 else x * factor
