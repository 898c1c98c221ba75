"""What scoring did: documents by source, tokens, padding, blocks run, seconds by part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gristmill.scorer.backbone.staged import StagedBackbone


@dataclass
class Counters:
    """Work since a scorer was loaded. Tokens are those that the backbone read, each window's first one included."""

    documents: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    """Of the first stage."""
    exits: int = 0
    shadow: int = 0
    """Exits that were judged all the same."""
    unscored: dict[str, int] = field(default_factory=dict)
    """Documents by the reason why they have no score."""
    blocks: int = 0
    """That a document passes which goes all the way."""
    block_tokens: int = 0
    """Tokens x blocks run, padding included."""
    block_tokens_needed: int = 0
    """The same without padding, and without running any block twice."""
    flops_per_block_token: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """By part: tokenise (in a thread beside the others), stage one, stage two."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """By source: documents, tokens, exits, shadow."""

    @property
    def padding_waste(self) -> float:
        """Share of stage one's tokens that were padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def saved(self) -> float:
        """Share of block-forwards that early exits saved, against every document run to the last tap."""
        full = self.padded_tokens * self.blocks
        return 1 - self.block_tokens / full if full else 0.0

    @property
    def flops(self) -> float:
        """Of the products with the weights of the blocks that were run; those between tokens are not counted."""
        return self.block_tokens * self.flops_per_block_token

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def source(self, name: str, **counts: int) -> None:
        own = self.sources.setdefault(name, {})
        for key, count in counts.items():
            own[key] = own.get(key, 0) + count


def flops_per_block_token(backbone: StagedBackbone) -> float:
    """Two for each weight that a token meets, on average over the blocks; of experts, those it is sent to."""
    config: Any = backbone.model.config
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    share = getattr(config, "num_experts_per_tok", 1) / experts if experts else 1.0
    lists = [module for module in backbone.model.children() if isinstance(module, nn.ModuleList)]
    blocks = next(iter(lists), nn.ModuleList())
    sizes = [
        (parameter.numel() * (share if ".experts." in name else 1.0))
        for name, parameter in blocks.named_parameters()
        if parameter.dim() > 1
    ]
    return 2 * sum(sizes) / max(len(blocks), 1)
