"""In which number format the matrix products run. One file per family of formats, all behind `Precision`.

Weights stay in fp32; a product casts or quantises its own weight. No autocast: what runs in which type can be read off
the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model.precision._elements import StochasticRounding
from gristmill.trainer.model.precision.blockwise import Blockwise, Format
from gristmill.trainer.model.precision.fp8 import Fp8
from gristmill.trainer.model.precision.mxfp8 import Mxfp8
from gristmill.trainer.model.precision.nvfp4 import Nvfp4
from gristmill.trainer.model.precision.plain import Plain

__all__ = ["Precision", "StochasticRounding", "build"]


class Grouped(Protocol):
    """The experts' product, and the layout it wants. R rows (a multiple per expert), D in, F out, E experts."""

    @property
    def row_multiple(self) -> int:
        """Each expert's rows are padded up to a multiple of this."""
        ...

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Rows ends_E[e-1]..ends_E[e] of x_RD times weight e -> [R, F], in x's type. ends_E: int32, multiples of
        row_multiple but for the last one, which is R."""
        ...


class Precision(Grouped, Protocol):
    """All products of a model."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [..., D] times weight [F, D] transposed -> [..., F]."""
        ...


@dataclass(frozen=True)
class Mixed:
    """One format for experts, another for all else. Activations have the latter's type."""

    dense: Plain
    experts: Grouped

    @property
    def dtype(self) -> torch.dtype:
        return self.dense.dtype

    @property
    def row_multiple(self) -> int:
        return self.experts.row_multiple

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.dense.linear(x, weight)

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        return self.experts.grouped_linear(x_RD, weight_EFD, ends_E)


PLAIN = {"fp32": Plain(torch.float32, 1), "bf16": Plain(torch.bfloat16, 32)}
BLOCKWISE: dict[str, Format] = {"fp8": Fp8(), "mxfp8": Mxfp8(), "nvfp4": Nvfp4()}


def build(name: str, experts: str = "", rounding: StochasticRounding | None = None) -> Precision:
    """Of all products, or, where `experts` names another format, of all but the experts'.

    rounding: by which the experts' gradients are rounded; None: to nearest.

    Raises:
        UsageError: no such format, or one that only experts can have.
    """
    if name not in PLAIN:
        hint = "; experts alone can have it: --expert-precision" if name in BLOCKWISE else nearest(name, PLAIN)
        raise UsageError(f"precision: no {name!r}{hint}")
    if not experts:
        return PLAIN[name]
    known = [*PLAIN, *BLOCKWISE]
    if experts not in known:
        raise UsageError(f"expert_precision: no {experts!r}{nearest(experts, known)}")
    own = PLAIN[experts] if experts in PLAIN else Blockwise(BLOCKWISE[experts], rounding)
    return Mixed(PLAIN[name], own)
