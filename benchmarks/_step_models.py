"""The models that bench step trains: ours, transformers' Qwen3MoE, and ours with torchtitan's MoE layer in it.

Configurations A and B: 8 layers of width 384, 6 heads of 64 with 2 for keys and values, a vocabulary of 16,384, and
experts of which a token meets as much arithmetic in either: 2 of 16 of width 256, or 4 of 32 of width 128.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from _peers import FOLDER
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.moe.losses import RouterReport
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.config import OptimizerConfig

A = ModelConfig(
    vocab=16_384, width=384, layers=8, heads=6, kv_heads=2, head_dim=64, experts=16, top_k=2, expert_width=256,
    tie_embeddings=False, sequence_loss=0.0, z_loss=0.0,
)  # fmt: skip
CONFIGS = {"A": A, "B": replace(A, experts=32, top_k=4, expert_width=128)}
PEER_PACKAGES = FOLDER / ".venv" / "lib"

Step = Callable[[torch.Tensor], float]
"""Trains on tokens [B, S + 1] once, and answers the loss."""


def ours(config: ModelConfig, kind: str, compiled: bool = False, device: str = "cpu") -> Step:
    model = Transformer(config, precision.build(kind))
    model.initialise(0)
    model.to(device)
    if compiled:
        model.compile_blocks()
    return _step(model, optimizer.build(model, OptimizerConfig()), lambda x, y: model.loss(x, y).nll)


def torchtitan(config: ModelConfig, kind: str) -> Step:
    """Ours, with torchtitan's layer in the place of experts and router. It computes in fp32 on a processor: its router
    asks for autocast to fp32, which is ignored there, and fails on inputs in bf16."""
    model = Transformer(config, precision.build(kind))
    for block in model.blocks:
        block.ffn = _Foreign(_torchtitan_layer(config))
    model.initialise(0)
    return _step(model, optimizer.build(model, OptimizerConfig()), lambda x, y: model.loss(x, y).nll)


def transformers(
    config: ModelConfig, kind: str, experts: str = "grouped_mm", compiled: bool = False, device: str = "cpu"
) -> Step:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    theirs = {
        "vocab_size": config.vocab, "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "num_experts": config.experts, "num_experts_per_tok": config.top_k, "norm_topk_prob": True,
        "moe_intermediate_size": config.expert_width, "intermediate_size": config.hidden_width,
        "tie_word_embeddings": config.tie_embeddings, "output_router_logits": False, "use_cache": False,
        "experts_implementation": experts, "attn_implementation": "sdpa",
    }  # fmt: skip
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**theirs)).to(device)  # pyright: ignore[reportArgumentType]
    run: Any = torch.compile(model) if compiled else model

    def loss(x_BS: torch.Tensor, y_BS: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bf16"):
            logits_TV = run(input_ids=x_BS).logits.flatten(0, 1)
        return nn.functional.cross_entropy(logits_TV.float(), y_BS.flatten())

    plain = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return _step(model, plain, loss)


def _step(
    model: nn.Module, own: torch.optim.Optimizer | optimizer.Optimizer, loss: Callable[..., torch.Tensor]
) -> Step:
    model.train()

    def step(tokens_BS: torch.Tensor) -> float:
        value = loss(tokens_BS[:, :-1], tokens_BS[:, 1:])
        value.backward()
        own.step()
        own.zero_grad()
        return value.item()

    return step


class _Foreign(nn.Module):
    """Another's layer as one of ours: it says nothing of its router."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, RouterReport | None]:
        return self.layer(x_BSD.float()).to(x_BSD.dtype), None


def _torchtitan_layer(config: ModelConfig) -> nn.Module:
    # Last on the path: its own dependencies that we have are ours. Kernels of triton are declared where the package is
    # imported, and never run on a processor; triton itself takes a gigabyte.
    (packages,) = PEER_PACKAGES.glob("python*/site-packages")
    if str(packages) not in sys.path:
        import torch._inductor.compile_fx  # noqa: F401 - torch has looked for triton by now, and found none

        sys.path.append(str(packages))
        sys.modules.setdefault("triton", _no_triton())
        sys.modules.setdefault("triton.language", sys.modules["triton"].language)
    from torchtitan.models.common.linear import Linear  # pyright: ignore[reportMissingImports]
    from torchtitan.models.common.moe import (  # pyright: ignore[reportMissingImports]
        GroupedExperts,
        MoE,
        RoutedExperts,
        TokenChoiceTopKRouter,
    )
    from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher  # pyright: ignore[reportMissingImports]

    normal = partial(nn.init.normal_, std=0.02)
    E, D = config.experts, config.width
    router = TokenChoiceTopKRouter.Config(
        num_experts=E, top_k=config.top_k, score_func="softmax", route_norm=True,
        gate=Linear.Config(in_features=D, out_features=E, bias=False, param_init={"weight": normal}),
    )  # fmt: skip
    experts = GroupedExperts.Config(
        dim=D, hidden_dim=config.expert_width, num_experts=E,
        param_init={"w1_EFD": normal, "w2_EDF": normal, "w3_EFD": normal},
    )  # fmt: skip
    layer = MoE.Config(
        num_experts=E, load_balance_coeff=None, shared_experts=None, router=router,
        routed_experts=RoutedExperts.Config(
            inner_experts=experts, token_dispatcher=LocalTokenDispatcher.Config(num_experts=E, top_k=config.top_k)
        ),
    ).build()  # fmt: skip
    for buffer in layer.buffers():
        buffer.zero_()
    return layer


def _no_triton() -> Any:
    """Enough of a module for decorators and annotations."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # who asks for __file__ should not be told of a function
                raise AttributeError(name)
            return lambda *given, **_: given[0] if len(given) == 1 and callable(given[0]) else lambda function: function

    triton, language = Anything("triton"), Anything("triton.language")
    language.constexpr = int  # pyright: ignore[reportAttributeAccessIssue]
    triton.language = language  # pyright: ignore[reportAttributeAccessIssue]
    return triton
