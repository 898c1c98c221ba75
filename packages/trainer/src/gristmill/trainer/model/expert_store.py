"""Experts that stay on disk and come when a token is routed to them: a model whose experts do not fit, on one machine.

What was used last is kept, up to a number of bytes. T tokens, R rows in expert order, E experts, K experts per token,
D width, F expert width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from gristmill.base.errors import UsageError
from gristmill.trainer.checkpoints.tensor_file import Source
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.model.moe.experts import Experts
from gristmill.trainer.model.moe.router import Routing
from gristmill.trainer.model.transformer import Transformer

Weights = tuple[torch.Tensor, torch.Tensor]
"""gate_up_FD and down_DF of one expert, in the number format of the file."""


class ExpertStore:
    """Experts out of a checkpoint, those used last held in memory: at most `limit` bytes at any moment."""

    def __init__(self, weights: Mapping[str, Source], limit: int) -> None:
        self._weights, self._limit = weights, limit
        self._held: OrderedDict[tuple[str, int], Weights] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self.hits = self.misses = self.bytes_held = self.bytes_read = 0

    def add(self, name: str) -> None:
        """The experts that stand in the checkpoint under `name`.

        Raises:
            UsageError: not even one of them has room.
        """
        parts = [self._weights[f"{name}.{part}"] for part in ("gate_up_EFD", "down_EDF")]
        size = sum(part.dtype.itemsize * part.shape[1] * part.shape[2] for part in parts)
        if size > self._limit:
            raise UsageError(
                f"an expert cache of {self._limit / 1e9:g} GB holds no expert: one takes {size / 1e9:.3g} GB; give more"
            )
        self._sizes[name] = size

    def get(self, name: str, expert: int, device: torch.device) -> Weights:
        """Out of memory, or off the disk in place of what was used longest ago."""
        key = (name, expert)
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key]
        self.misses += 1
        size = self._sizes[name]
        while self.bytes_held + size > self._limit:
            (old, _), _ = self._held.popitem(last=False)
            self.bytes_held -= self._sizes[old]
        gate_up_FD, down_DF = (
            self._weights[f"{name}.{part}"].read(expert).clone().to(device) for part in ("gate_up_EFD", "down_EDF")
        )
        self._held[key] = gate_up_FD, down_DF
        self.bytes_held += size
        self.bytes_read += size
        return self._held[key]

    def summary(self) -> str:
        asked = self.hits + self.misses
        return (
            f"experts asked for {asked:,} times, {self.hits:,} from memory ({self.hits / max(asked, 1):.1%}); "
            f"{self.bytes_read / 1e9:.3g} GB read, {self.bytes_held / 1e9:.3g} GB held"
        )


class StoredExperts(nn.Module):
    """Stands in for Experts, without weights of its own. Waits for the router, to read what it chose."""

    def __init__(self, experts: Experts, store: ExpertStore, name: str) -> None:
        super().__init__()
        self._layout, self._precision = experts.eval().layout, experts.precision  # eval: the capacity of generation
        self._store, self._name = store, name

    def forward(self, x_TD: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over a token's experts of weight * expert(x), [T, D], and the share that was dropped."""
        assert routing.experts_TK is not None, "outside training, tokens choose"
        where = self._layout(len(x_TD), routing)
        x_RD = where.scatter(x_TD)
        y_RD = torch.zeros_like(x_RD)
        ends = where.ends_E.tolist()
        for expert in routing.experts_TK.unique().tolist():
            rows = slice(ends[expert - 1] if expert else 0, ends[expert])
            y_RD[rows] = self._expert(expert, x_RD[rows])
        return where.combine(y_RD, routing.weights), where.dropped

    def _expert(self, expert: int, x_RD: torch.Tensor) -> torch.Tensor:
        gate_up_FD, down_DF = self._store.get(self._name, expert, x_RD.device)
        end_1 = torch.full((1,), len(x_RD), dtype=torch.int32, device=x_RD.device)
        gate_RF, up_RF = self._precision.grouped_linear(x_RD, gate_up_FD[None], end_1).chunk(2, dim=-1)
        return self._precision.grouped_linear(F.silu(gate_RF) * up_RF, down_DF[None], end_1)


def attach(model: Transformer, store: ExpertStore) -> None:
    """Put the store in the place of every layer's experts."""
    for layer, block in enumerate(model.blocks):
        if isinstance(block.ffn, MixtureOfExperts):
            name = f"blocks.{layer}.ffn.experts"
            store.add(name)
            block.ffn.experts = StoredExperts(block.ffn.experts, store, name)  # pyright: ignore
