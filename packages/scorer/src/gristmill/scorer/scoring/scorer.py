"""Scores for documents, in their order: all get the probe, survivors go on to the judge from where the probe read.

Batches are packed by length, so a score does not depend on who came along; survivors are packed again before stage two.
Shapes: N documents, D dimensions, B batch, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from gristmill.base.errors import DataError, UsageError
from gristmill.base.progress import Progress
from gristmill.scorer.backbone.staged import StagedBackbone, identify
from gristmill.scorer.backbone.states import Tokens, batches, head_input, pad, pad_states
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle, SelfTest
from gristmill.scorer.heads.calibration import ALL
from gristmill.scorer.heads.training import to_scale

# Largest change of a head's output (in fractions of the scale) that other kernels on another machine may cause.
SELFTEST_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03}


@dataclass
class Counters:
    """Work since the scorer was loaded. block_tokens: tokens x blocks run, padding included."""

    documents: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    exits: int = 0
    block_tokens: int = 0
    blocks: int = 0

    @property
    def padding_waste(self) -> float:
        """Share of stage one's tokens that were padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def saved(self) -> float:
        """Share of block-forwards that early exits saved, against every document run to the last tap."""
        full = self.padded_tokens * self.blocks
        return 1 - self.block_tokens / full if full else 0.0


class Scorer:
    """A loaded bundle on its backbone. `counters` adds up over calls of score()."""

    def __init__(self, bundle: Bundle, backbone: StagedBackbone, folder: Path) -> None:
        self.bundle, self.backbone = bundle, backbone
        self.tokens = Tokens(folder, bundle.backbone.first_token, bundle.config.window_tokens, 1)
        self.counters = Counters(blocks=bundle.config.chosen_taps[1] if bundle.judge else bundle.config.chosen_taps[0])

    @classmethod
    def load(cls, heads_dir: Path, backbone_dir: Path, dtype: str | None = None, threads: int = 1) -> Scorer:
        """Load a heads/ folder and the backbone that it names, and run its self-test.

        dtype: of the backbone; by default the one that the heads were trained on.

        Raises:
            DataError: another backbone, an unknown format, or a self-test that gives other scores.
        """
        bundle = bundles.load(heads_dir)
        identity = identify(backbone_dir)
        bundles.check_backbone(bundle, identity, backbone_dir)
        probe, judge = bundle.config.chosen_taps
        taps = (probe, judge) if bundle.judge else (probe, probe)  # no judge: its blocks are not loaded either
        backbone = StagedBackbone.load(backbone_dir, taps, dtype or bundle.config.dtype, threads, identity)
        check_selftest(bundle, backbone, heads_dir)
        return cls(bundle, backbone, backbone_dir)

    def score(
        self, texts: Sequence[str | None], sources: Sequence[str] | None = None, early_exit: bool = True
    ) -> pa.Table:
        """One row per text, in order.

        Columns: quality float32 in [0, 1] (the judge's where it ran, else the probe's), probe float32, judge float32
        (null where it did not run), exit bool (true where tau_drop of the source ended it), one float32 per dimension
        (unclamped, from the head that decided), tokens int32 (read by the backbone, its first token not counted). An
        empty text has nulls and 0 tokens.

        Raises:
            UsageError: sources and texts differ in length.
        """
        if sources is not None and len(sources) != len(texts):
            raise UsageError(f"{len(texts)} texts but {len(sources)} sources")
        rubric, budget = self.bundle.rubric, self.bundle.config.batch_tokens
        rows = [own[0] if own else np.zeros(0, np.int32) for own in self.tokens(texts)]
        tau_N = self._tau_drop(sources or [ALL] * len(texts)) if early_exit else np.full(len(texts), -math.inf)
        scores_ND = np.full((len(texts), len(rubric.dimensions)), np.nan)
        probe_N, judge_N = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
        exit_N = np.zeros(len(texts), dtype=bool)
        queue: list[tuple[int, torch.Tensor, bool]] = []  # row, state, whether it is the judge's state already

        def flush() -> None:
            if queue:
                indices = [index for index, _, _ in queue]
                scores_ND[indices] = self._judge([state for _, state, _ in queue], queue[0][2])
                judge_N[indices] = rubric.quality(scores_ND[indices])
                queue.clear()

        packed = batches([len(row) for row in rows], budget)
        with Progress("score", total=len(packed), unit="batches") as progress, torch.inference_mode():
            for done, batch in enumerate(packed, 1):
                ids_BS, mask_BS = pad([rows[i] for i in batch])
                self.counters.padded_tokens += mask_BS.numel()
                first, last = self.backbone.first(ids_BS, mask_BS)
                scores_ND[batch] = to_scale(self.bundle.probe(*head_input(first, mask_BS)), rubric)
                probe_N[batch] = rubric.quality(scores_ND[batch]).astype(np.float32)
                if self.bundle.judge is not None:
                    exit_N[batch] = probe_N[batch] < tau_N[batch]
                    for position, i in enumerate(batch):
                        if exit_N[i]:
                            continue
                        if queue and (len(queue) + 1) * len(queue[0][1]) > budget:
                            flush()
                        state = (first if last is None else last)[position, : len(rows[i])]
                        queue.append((int(i), state.clone(), last is not None))
                progress.update(done)
            flush()
        self._count(rows, exit_N)
        quality_N = np.where(np.isfinite(judge_N), judge_N, probe_N)
        empty_N = np.array([len(row) == 0 for row in rows], dtype=bool)
        columns: dict[str, pa.Array] = {
            "quality": _nullable(quality_N),
            "probe": _nullable(probe_N),
            "judge": _nullable(judge_N),
            "exit": pa.array(exit_N, pa.bool_(), mask=empty_N),
        }
        columns |= {name: _nullable(scores_ND[:, i]) for i, name in enumerate(rubric.names)}
        columns["tokens"] = pa.array([max(len(row) - 1, 0) for row in rows], pa.int32())
        return pa.table(columns)

    def _judge(self, states: list[torch.Tensor], finished: bool) -> np.ndarray:
        if self.bundle.judge is None:
            raise DataError("this bundle has no judge")
        hidden_BSD, mask_BS = pad_states(states)
        last = hidden_BSD if finished else self.backbone.second(hidden_BSD, mask_BS)
        return to_scale(self.bundle.judge(*head_input(last, mask_BS)), self.bundle.rubric)

    def _tau_drop(self, sources: Sequence[str]) -> np.ndarray:
        groups = self.bundle.calibration["groups"] if self.bundle.calibration else {ALL: {"tau_drop": None}}
        taus = {name: -math.inf if g["tau_drop"] is None else g["tau_drop"] for name, g in groups.items()}
        return np.array([taus.get(source, taus[ALL]) for source in sources], dtype=np.float64)

    def _count(self, rows: list[np.ndarray], exit_N: np.ndarray) -> None:
        self.counters.documents += len(rows)
        self.counters.tokens += sum(len(row) for row in rows)
        self.counters.exits += int(exit_N.sum())
        self.counters.block_tokens += self.backbone.counters.block_tokens
        self.backbone.counters.block_tokens = 0


def make_selftest(
    backbone: StagedBackbone, probe: torch.nn.Module, judge: torch.nn.Module | None, rows: Sequence[np.ndarray]
) -> SelfTest:
    """Run a few token sequences and keep their scores, rounded to 6 digits."""
    probe_out, judge_out = _outputs(backbone, probe, judge, rows)
    return SelfTest(
        [[int(t) for t in row] for row in rows], _rounded(probe_out), None if judge_out is None else _rounded(judge_out)
    )


def check_selftest(bundle: Bundle, backbone: StagedBackbone, where: Path) -> None:
    """Run the stored token sequences again.

    Raises:
        DataError: a score is off by more than the tolerance of the backbone's dtype.
    """
    rows = [np.array(row, dtype=np.int32) for row in bundle.selftest.tokens]
    dtype = str(next(backbone.model.parameters()).dtype).removeprefix("torch.")
    # Another dtype than in training is allowed, and then rounds as coarsely as bfloat16 does.
    tolerance = SELFTEST_TOLERANCE[dtype if dtype == bundle.config.dtype else "bfloat16"]
    found = _outputs(backbone, bundle.probe, bundle.judge, rows)
    for name, stored, now in zip(("probe", "judge"), (bundle.selftest.probe, bundle.selftest.judge), found):
        if stored is None or now is None:
            continue
        difference = float((torch.tensor(stored) - now).abs().max())
        if not difference <= tolerance:
            raise DataError(
                f"{where}: self-test of the {name} is off by {difference:.4f} (allowed {tolerance}); the heads or the "
                f"libraries are not those that the bundle was made with: restore the folder, or train the heads again"
            )


@torch.inference_mode()
def _outputs(
    backbone: StagedBackbone, probe: torch.nn.Module, judge: torch.nn.Module | None, rows: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids_BS, mask_BS = pad(list(rows))
    first, last = backbone.first(ids_BS, mask_BS)
    probe_out = probe(*head_input(first, mask_BS))
    judge_out = None
    if judge is not None:
        judge_out = judge(*head_input(backbone.second(first, mask_BS) if last is None else last, mask_BS))
    backbone.counters.block_tokens = 0
    return probe_out, judge_out


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(float(v), 6) for v in row] for row in values]


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
