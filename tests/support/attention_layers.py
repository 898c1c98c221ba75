"""One layer of any kind of attention, small, with weights that matter, and ways to run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gristmill.trainer.model import attention, kinds
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.precision.plain import Plain
from gristmill.trainer.model.segments import Context, from_starts, one_per_row

Run = Callable[..., torch.Tensor]
KINDS = kinds.names("gristmill.trainer.model.attention")
# Sizes that do not divide one another, and short blocks and windows, which a short sequence crosses.
OPTIONS: dict[str, int | float | bool | str] = {
    "swa.window": 5,
    "mla.q_lora": 20, "mla.kv_lora": 24, "mla.nope_dim": 6, "mla.rope_dim": 4, "mla.value_dim": 10,
    "nsa.block": 4, "nsa.stride": 2, "nsa.selected_block": 4, "nsa.selected": 4, "nsa.window": 5,
    "kda.taps": 3,
}  # fmt: skip


def config(*kind: str, **changed: Any) -> ModelConfig:
    """A model of those kinds, with the options of these kinds and no others."""
    own = {key: value for key, value in OPTIONS.items() if key.partition(".")[0] in kind}
    fields: dict[str, Any] = {
        "vocab": 61, "width": 32, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 8, "experts": 4, "top_k": 2,
        "expert_width": 16, "attention": kind, "options": own,
    }  # fmt: skip
    return ModelConfig(**(fields | changed))


def layer(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changed: Any) -> Any:
    """With weights in fp64 or fp32, large enough that scores and gates are far from even."""
    made = attention.build(config(kind, **changed), 0, Plain(dtype, 1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            std = 2 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(
                (1.0 if parameter.ndim == 1 else 0.0) + torch.randn(parameter.shape, generator=generator) * std
            )
        for module in made.modules():
            if hasattr(module, "initialise"):
                module.initialise(generator)  # pyright: ignore
    return made.double() if dtype == torch.float64 else made


def inputs(rows: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    x_BSD = torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x_BSD.to(dtype)


def whole(made: Run, x_BSD: torch.Tensor, starts: Sequence[Sequence[int]] | None = None) -> torch.Tensor:
    """All positions at once; starts: where documents begin in each row, beside its first position."""
    tokens_BS = torch.zeros(x_BSD.shape[:2], dtype=torch.long)
    segments = one_per_row(tokens_BS)
    if starts is not None:
        starts_BS = tokens_BS.bool()
        for row, places in enumerate(starts):
            starts_BS[row, list(places)] = True
        segments = from_starts(starts_BS)
    return made(x_BSD, Context(segments, x_BSD.dtype))


def in_pieces(made: Run, x_BSD: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The same positions, given over several calls with one memory."""
    memory: dict[str, torch.Tensor] = {}
    outputs, past = [], 0
    for piece_BSD in x_BSD.split(list(lengths), dim=1):
        tokens_BS = torch.zeros(piece_BSD.shape[:2], dtype=torch.long)
        outputs.append(made(piece_BSD, Context(one_per_row(tokens_BS, past), x_BSD.dtype, past), memory))
        past += piece_BSD.shape[1]
    assert past == x_BSD.shape[1] and math.prod(outputs[0].shape)
    return torch.cat(outputs, dim=1)
