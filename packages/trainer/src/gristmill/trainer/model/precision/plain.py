"""fp32 and bf16: weight and activations are cast to one type, and the product runs as it is.

bf16 groups are rounded up to 32 rows: oneDNN builds a new AMX kernel for every unseen number of rows, which costs more
than the padding (measured 35.5 ms against 6.6 ms per call).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gristmill.trainer.model.precision._grouped import grouped_mm


@dataclass(frozen=True)
class Plain:
    dtype: torch.dtype
    row_multiple: int

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight.to(self.dtype))

    def grouped_linear(self, x_RD: torch.Tensor, weight_EFD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        y_RF = grouped_mm(x_RD.to(self.dtype), weight_EFD.to(self.dtype).transpose(-2, -1), ends_E)
        return y_RF.to(x_RD.dtype)
