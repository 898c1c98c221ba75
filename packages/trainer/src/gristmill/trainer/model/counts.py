"""How many weights a model has, all and those that one token meets, and the arithmetic of training on a token.

Counted on the model itself, built without memory (torch's meta device): there is no second set of formulas to go wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Block, Transformer

PARTS = {
    "attention": "attention", "attention_norm": "norms", "ffn_norm": "norms", "ffn.router": "routers",
    "ffn.experts": "experts", "ffn.shared": "shared experts", "ffn.residual": "residual networks",
    "ffn.network": "dense networks", "ffn.output_norm": "norms", "ffn.bungee": "norms",
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """parts: weights of each part of the model, active: those of them that one token meets."""

    parts: Mapping[str, int]
    active_parts: Mapping[str, int]
    matmul: int  # active weights that a token is multiplied with: no norms, no table that is only looked up
    scores: tuple[Block, ...]  # whose attention tells what scores cost

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def active(self) -> int:
        return sum(self.active_parts.values())

    def flops_per_token(self, sequence: int) -> int:
        """Training FLOPs per token: 6 per active matmul weight, and attention's scores, forward and twice that backward
        (arXiv 2204.02311, appendix B)."""
        scores = sum(block.attention.flops(sequence) for block in self.scores)  # pyright: ignore
        return round(6 * self.matmul + 3 * scores)

    def to_json(self, sequence: int) -> dict[str, Any]:
        return {
            "total": self.total,
            "active": self.active,
            "parts": {part: {"total": self.parts[part], "active": self.active_parts[part]} for part in self.parts},
            "flops_per_token": self.flops_per_token(sequence),
            "sequence": sequence,
        }


def count(config: ModelConfig) -> Counts:
    with torch.device("meta"):
        model = Transformer(config, precision.build("fp32"))
    parts, active, matmul = Counter[str](), Counter[str](), 0
    for name, tensor in model.state_dict().items():  # biases of routers among them, as published counts have them
        if name.startswith("coefficients."):
            continue
        part = _part(name)
        met = tensor.numel()
        if part == "experts":
            met = met * config.top_k // tensor.shape[0]
        parts[part] += tensor.numel()
        active[part] += met
        looked_up = part == "embeddings" and not config.tie_embeddings
        matmul += met if tensor.ndim > 1 and not looked_up else 0
    return Counts(parts, active, matmul, tuple(model.blocks))  # pyright: ignore


def table(counts: Counts, sequence: int) -> str:
    """For a terminal: a line for each part, largest first, then all, then the arithmetic."""
    rows = sorted(((part, n, counts.active_parts[part]) for part, n in counts.parts.items()), key=lambda row: -row[1])
    rows.append(("all", counts.total, counts.active))
    lines = [f"{'':<18}{'parameters':>20}{'active':>20}{'of all':>9}"]
    lines += [f"{part:<18}{n:>20,}{active:>20,}{n / counts.total:>9.1%}" for part, n, active in rows]
    flops = counts.flops_per_token(sequence)
    return "\n".join([*lines, f"training: {flops / 1e6:,.1f} MFLOP per token, in windows of {sequence:,} tokens"])


def _part(name: str) -> str:
    outer = {"embedding_VD": "embeddings", "head_VD": "head", "norm.weight": "norms"}
    if name in outer:
        return outer[name]
    inner = name.split(".", 2)[2]
    return next(part for prefix, part in PARTS.items() if inner == prefix or inner.startswith(f"{prefix}."))
