"""A few token sequences with what backbone and heads made of them when a bundle was written, run again at each load.

Shapes: B sequences, T tokens of one, W backbone width, N dimensions graded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gristmill.base.errors import DataError
from gristmill.base.files import atomic_path
from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import head_input, pad

# Largest change of a head's output (in fractions of the scale) that other kernels on another machine may cause.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03}


@dataclass(frozen=True)
class SelfTest:
    """rows: token ids, int32 [T] each. pooled_BW: mean of what the probe reads. probe_BN, judge_BN: head outputs in
    fractions of the scale; judge_BN is None where there is no judge. All float32."""

    rows: list[np.ndarray]
    pooled_BW: torch.Tensor
    probe_BN: torch.Tensor
    judge_BN: torch.Tensor | None

    def save(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {
            "tokens": torch.from_numpy(np.concatenate(self.rows)),
            "lengths": torch.tensor([len(row) for row in self.rows], dtype=torch.int32),
            "pooled": self.pooled_BW,
            "probe": self.probe_BN,
        }
        if self.judge_BN is not None:
            tensors["judge"] = self.judge_BN
        with atomic_path(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, temporary)

    @classmethod
    def load(cls, path: Path) -> SelfTest:
        """Raises DataError where the file is no self-test."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            rows = np.split(tensors["tokens"].numpy(), np.cumsum(tensors["lengths"].numpy())[:-1])
            return cls(rows, tensors["pooled"], tensors["probe"], tensors.get("judge"))
        except (SafetensorError, FileNotFoundError, KeyError) as error:
            raise DataError(f"{path}: no self-test ({error}); train the heads again") from None


@torch.inference_mode()
def make_selftest(
    backbone: StagedBackbone, probe: nn.Module, judge: nn.Module | None, rows: Sequence[np.ndarray]
) -> SelfTest:
    """Run token sequences of at least one token after the first, and keep what came out."""
    ids_BS, mask_BS = pad(rows)
    mask_BS = mask_BS.to(backbone.device)
    first, last = backbone.first(ids_BS, mask_BS)
    x_BSW, kept_BS = head_input(first, mask_BS)
    judge_BN = None
    if judge is not None:
        judge_BN = judge(*head_input(backbone.second(first, mask_BS) if last is None else last, mask_BS)).cpu()
    pooled_BW = x_BSW.sum(1) / kept_BS.sum(1, keepdim=True)
    return SelfTest(list(rows), pooled_BW.cpu(), probe(x_BSW, kept_BS).cpu(), judge_BN)


def check_selftest(
    stored: SelfTest,
    backbone: StagedBackbone,
    probe: nn.Module,
    judge: nn.Module | None,
    trained_dtype: str,
    where: Path,
) -> None:
    """Run the stored sequences again.

    trained_dtype: of the backbone that the self-test was made with.

    Raises:
        DataError: a score is off by more than the tolerance of the backbone's dtype; the message tells whether it is
            the backbone that gives other states.
    """
    found = make_selftest(backbone, probe, judge, stored.rows)
    dtype = str(next(backbone.model.parameters()).dtype).removeprefix("torch.")
    # Another dtype than in training is allowed, and then rounds as coarsely as bfloat16 does.
    tolerance = TOLERANCE[dtype if dtype == trained_dtype else "bfloat16"]
    states = float((stored.pooled_BW - found.pooled_BW).norm() / stored.pooled_BW.norm())
    pairs = (("probe", stored.probe_BN, found.probe_BN), ("judge", stored.judge_BN, found.judge_BN))
    for name, before, now in pairs:
        if before is None or now is None:
            continue
        difference = float((before - now).abs().max())
        if not difference <= tolerance:
            raise DataError(
                f"{where}: self-test of the {name} is off by {difference:.4f} (allowed {tolerance}), the backbone's "
                f"states by {states:.1e} (relative); the heads or the libraries are not those that the bundle was made "
                f"with: restore the folder, or train the heads again"
            )
