"""In which number format the matrix products run. One file per family of formats, all behind `Precision`.

Weights stay in fp32; a product casts its own weight. No autocast: what runs in which type can be read off the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model.precision.plain import Plain


class Precision(Protocol):
    """Two products, and the layout the second one wants. R rows (a multiple per expert), D in, F out, E experts."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        ...

    @property
    def row_multiple(self) -> int:
        """Each expert's rows are padded up to a multiple of this."""
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [..., D] times weight [F, D] transposed -> [..., F]."""
        ...

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Rows ends_E[e-1]..ends_E[e] of x_RD times weight e -> [R, F]. ends_E: int32, the last one equal to R."""
        ...


@dataclass(frozen=True)
class Mixed:
    """One precision for experts, another for all else. Activations have the latter's type."""

    dense: Precision
    experts: Precision

    @property
    def dtype(self) -> torch.dtype:
        return self.dense.dtype

    @property
    def row_multiple(self) -> int:
        return self.experts.row_multiple

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.dense.linear(x, weight)

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        return self.experts.grouped_linear(x_RD.to(self.experts.dtype), weight_EFD, ends_E).to(self.dtype)


PRECISIONS: dict[str, Precision] = {"fp32": Plain(torch.float32, 1), "bf16": Plain(torch.bfloat16, 32)}


def build(name: str, experts: str = "") -> Precision:
    """Of all products, or, where `experts` names another, of all but the experts'."""
    dense = _named(name, "precision")
    return Mixed(dense, _named(experts, "expert_precision")) if experts else dense


def _named(name: str, field: str) -> Precision:
    if name not in PRECISIONS:
        raise UsageError(f"{field}: no {name!r}{nearest(name, PRECISIONS)}")
    return PRECISIONS[name]
