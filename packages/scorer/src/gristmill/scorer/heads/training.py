"""Grades into heads: Huber loss on the expected scores, missing dimensions masked, stopped on the select split.

The judge costs a second stage for every survivor, so it ships only where it orders documents better than the probe.
Shapes: N documents, D dimensions, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gristmill.base.errors import DataError
from gristmill.scorer.backbone.states import Features, batches, head_input, pad_states
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.heads.modules import make_judge, make_probe
from gristmill.scorer.rubric import Rubric

# Fewer graded documents than this in fit or select decide nothing.
MINIMUM_SPLIT = 8


@dataclass(frozen=True)
class TrainedHeads:
    """`judge` is None where it was not trained or did not earn its place; `report` says which, with the numbers."""

    probe: nn.Module
    judge: nn.Module | None
    report: dict[str, Any]


def train_heads(
    features: Features,
    rubric: Rubric,
    scores_ND: np.ndarray,
    weights_N: np.ndarray,
    splits: Sequence[str],
    config: TrainConfig,
) -> TrainedHeads:
    """Train both heads on the rows of the fit split, stop each on select, and ship the judge only if it earns it.

    scores_ND: expected scores on each dimension's own scale, NaN where missing. weights_N: sample weights.

    Raises:
        DataError: too few graded documents in fit or select.
    """
    torch.set_num_threads(config.threads)
    low_D = np.array([d.min for d in rubric.dimensions], dtype=np.float64)
    span_D = np.array([d.max - d.min for d in rubric.dimensions], dtype=np.float64)
    targets_ND = (scores_ND - low_D) / span_D
    usable_N = np.isfinite(targets_ND).any(1) & (np.asarray(features.lengths) > 1)
    rows = {name: np.flatnonzero(usable_N & (np.asarray(splits) == name)) for name in ("fit", "select")}
    for name, found in rows.items():
        if len(found) < MINIMUM_SPLIT:
            raise DataError(
                f"labels: {len(found)} graded documents in split {name!r}, {MINIMUM_SPLIT} needed; label more"
            )
    quality_N = rubric.quality(scores_ND)
    mean_D, spread_D = _moments(targets_ND[rows["fit"]])

    def train(make: Callable[[], nn.Module], states: list[torch.Tensor], rate: float, epochs: int) -> tuple[Any, float]:
        torch.manual_seed(config.seed)
        head = make()
        fitted = _fit(head, states, (targets_ND - mean_D) / spread_D, weights_N, rows, config, rate, epochs)
        _unstandardise(fitted, mean_D, spread_D)
        predicted_ND = predict(fitted, states, rubric, config.batch_tokens)[rows["select"]]
        known = np.isfinite(quality_N[rows["select"]])
        truth = quality_N[rows["select"]][known]
        return fitted, spearman(truth, rubric.quality(predicted_ND)[known]) or 0.0

    width, dimensions = features.probe[0].shape[1], len(rubric.dimensions)
    probe, probe_rho = train(
        lambda: make_probe(width, dimensions, config), features.probe, config.learning_rate, config.epochs
    )
    report: dict[str, Any] = {
        "fit": len(rows["fit"]), "select": len(rows["select"]), "probe_spearman": probe_rho, "judge_spearman": None,
        "judge_gain_needed": config.judge_gain, "judge_shipped": False, "reason": "the judge is switched off",
    }  # fmt: skip
    judge = None
    if config.judge and config.chosen_taps[1] > config.chosen_taps[0]:
        judge, judge_rho = train(
            lambda: make_judge(width, dimensions, config), features.judge, config.judge_learning_rate,
            config.judge_epochs,
        )  # fmt: skip
        gain = judge_rho - probe_rho
        shipped = gain >= config.judge_gain
        verdict = "enough" if shipped else "not enough: probe only"
        report |= {
            "judge_spearman": judge_rho, "judge_shipped": shipped,
            "reason": f"judge - probe = {gain:+.3f} Spearman on select, {config.judge_gain:.3f} needed: {verdict}",
        }  # fmt: skip
        judge = judge if shipped else None
    return TrainedHeads(probe, judge, report)


@torch.inference_mode()
def predict(head: nn.Module, states: Sequence[torch.Tensor], rubric: Rubric, budget: int) -> np.ndarray:
    """Scores [N, D] on each dimension's own scale, unclamped; NaN rows for empty documents."""
    head.eval()
    out_ND = np.full((len(states), len(rubric.dimensions)), np.nan)
    for batch in batches([len(state) if len(state) > 1 else 0 for state in states], budget):
        x_BSW, mask_BS = head_input(*pad_states([states[i] for i in batch]))
        out_ND[batch] = to_scale(head(x_BSW, mask_BS), rubric)
    return out_ND


def to_scale(fractions_BD: torch.Tensor, rubric: Rubric) -> np.ndarray:
    """A head's output in fractions of the scale -> scores on each dimension's own scale, float64."""
    low_D = np.array([d.min for d in rubric.dimensions], dtype=np.float64)
    span_D = np.array([d.max - d.min for d in rubric.dimensions], dtype=np.float64)
    return fractions_BD.double().numpy() * span_D + low_D


def _moments(targets_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each dimension; small oracles use a tenth of the scale, and heads train badly on that."""
    mean_D, spread_D = np.full(targets_ND.shape[1], 0.5), np.ones(targets_ND.shape[1])
    for i, column in enumerate(targets_ND.T):
        known = column[np.isfinite(column)]
        if len(known):
            mean_D[i], spread_D[i] = known.mean(), max(known.std(), 1e-3)
    return mean_D, spread_D


def _unstandardise(head: nn.Module, mean_D: np.ndarray, spread_D: np.ndarray) -> None:
    """Fold the standardisation of the targets into the head's last layer."""
    mean, spread = torch.from_numpy(mean_D).float(), torch.from_numpy(spread_D).float()
    with torch.no_grad():
        weight, bias = head.get_parameter("output.weight"), head.get_parameter("output.bias")
        weight.mul_(spread[:, None])
        bias.mul_(spread).add_(mean)


def _fit(
    head: nn.Module,
    states: Sequence[torch.Tensor],
    targets_ND: np.ndarray,
    weights_N: np.ndarray,
    rows: dict[str, np.ndarray],
    config: TrainConfig,
    rate: float,
    epochs: int,
) -> nn.Module:
    targets = torch.from_numpy(targets_ND).float()
    weights = torch.from_numpy(np.asarray(weights_N, dtype=np.float64) / np.mean(weights_N[rows["fit"]])).float()
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=config.weight_decay)
    packed = {
        name: [found[batch] for batch in batches([len(states[i]) for i in found], config.batch_tokens)]
        for name, found in rows.items()
    }
    generator = np.random.default_rng([config.seed, 0xF1])
    best, best_loss, waited = copy.deepcopy(head.state_dict()), float("inf"), 0
    steps = epochs * len(packed["fit"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=max(steps, 2), pct_start=0.1)
    for _epoch in range(epochs):
        head.train()
        for position in generator.permutation(len(packed["fit"])):
            loss, count = _loss(head, states, packed["fit"][position], targets, weights, config.huber)
            optimizer.zero_grad()
            (loss / count).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        head.eval()
        with torch.inference_mode():
            sums = [_loss(head, states, batch, targets, weights, config.huber) for batch in packed["select"]]
        loss = sum(float(part) for part, _ in sums) / sum(float(count) for _, count in sums)
        if loss < best_loss - 1e-6:
            best, best_loss, waited = copy.deepcopy(head.state_dict()), loss, 0
        else:
            waited += 1
            if waited >= config.patience:
                break
    head.load_state_dict(best)
    return head.eval()


def _loss(
    head: nn.Module, states: Sequence[torch.Tensor], batch: np.ndarray, targets: torch.Tensor, weights: torch.Tensor,
    delta: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Weighted sum of the Huber loss over the known dimensions, and the sum of their weights."""
    x_BSW, mask_BS = head_input(*pad_states([states[i] for i in batch]))
    target_BD = targets[batch]
    known_BD = target_BD.isfinite()
    loss_BD = nn.functional.huber_loss(head(x_BSW, mask_BS), target_BD.nan_to_num(), reduction="none", delta=delta)
    weight_BD = weights[batch][:, None] * known_BD
    return (loss_BD * weight_BD).sum(), weight_BD.sum()
