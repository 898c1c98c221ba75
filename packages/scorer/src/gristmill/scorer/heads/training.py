"""Grades into heads: Huber loss on the expected scores, missing dimensions masked, stopped on the select split.

A document's windows are rows that share its grades and its weight, and its prediction is their mean by tokens, as in
scoring. The judge costs a second stage for every survivor, so it ships only where it orders documents better than the
probe. Shapes: N documents, M windows, D dimensions, B batch, S sequence, W width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gristmill.base.errors import DataError
from gristmill.base.progress import Progress
from gristmill.scorer.backbone.cache import States
from gristmill.scorer.backbone.states import average_windows, batches
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.heads.modules import AttentionPool, Encoder, MeanPool
from gristmill.scorer.heads.ridge import ridge
from gristmill.scorer.rubric import Rubric

# The queries start from nothing, the linear map from its closed-form best. A rate of 1e-2 for them beside 3e-4 gave
# Spearman .770 out of fold, 1e-3 for both .747 (SmolLM2-135M after 20 blocks, 800 documents of known damage).
QUERY_RATE = 30.0
# Fewer graded documents than this in fit or select decide nothing.
MINIMUM_SPLIT = 8
NAMED = 5

JudgeKind = Literal["best", "encoder", "attention"]


@dataclass(frozen=True)
class TrainedHeads:
    """`judge` is None where it was not trained or did not earn its place; `judge_kind` is what it is, or was asked to
    be. `report` is metrics["training"]."""

    probe: nn.Module
    judge: nn.Module | None
    judge_kind: JudgeKind
    report: dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """What every head of a training is trained on and chosen by."""

    documents_M: np.ndarray
    tokens_M: np.ndarray
    targets_MD: torch.Tensor  # fractions of the scale, standardised; NaN where missing
    weights_M: torch.Tensor
    rows: dict[str, np.ndarray]  # windows of the splits fit and select
    select_N: np.ndarray  # documents whose quality is known
    quality_N: np.ndarray
    mean_D: np.ndarray
    spread_D: np.ndarray
    rubric: Rubric
    config: TrainConfig


def train_heads(
    probe: States, judge: States, documents_M: np.ndarray, labels: Labels, rubric: Rubric, config: TrainConfig
) -> TrainedHeads:
    """Train both heads on the rows of the fit split, stop each on select, and ship the judge only if it earns it.

    probe, judge: what each reads of every window. documents_M: the document of each, a row of `labels`. A document with
    a state that is not finite is left out and named in the report.

    Raises:
        DataError: too few graded documents in fit or select, or a dimension that none of fit has.
    """
    torch.set_num_threads(config.threads)
    task, left_out = _task(probe, judge, documents_M, labels, rubric, config)
    with torch.random.fork_rng(devices=[]):
        mean = _mean_pool(probe, task)
        head = _finished(mean, task)
        report: dict[str, Any] = {
            **{name: len(np.unique(documents_M[rows])) for name, rows in task.rows.items()},
            "windows": len(documents_M), "not_finite": left_out, "mean_pool_spearman": _rho(head, probe, task),
        }  # fmt: skip
        if config.pooling == "attention":
            trained = _attention(probe, mean, task, "probe")
            head = _finished(trained, task)
        report["probe_spearman"] = _rho(head, probe, task)
        kind, shipped, found = _judge(judge, task, report["probe_spearman"])
    return TrainedHeads(head, shipped, kind, report | found)


def _judge(states: States, task: _Task, probe_rho: float) -> tuple[JudgeKind, nn.Module | None, dict[str, Any]]:
    """The kind of judge that was trained or asked for, itself where it earns its place, and its part of the report."""
    config = task.config
    report: dict[str, Any] = {
        "judge_spearman": None, "judge_kinds": {}, "judge_gain_needed": config.judge_gain, "judge_shipped": False,
    }  # fmt: skip
    if not config.judge:
        return config.judge_kind, None, report | {"reason": "the judge is switched off"}
    if len(set(config.chosen_taps)) == 1:
        reason = f"probe and judge would both read after block {config.chosen_taps[0]}: probe only"
        return config.judge_kind, None, report | {"reason": reason}
    kinds: tuple[JudgeKind, ...] = ("attention", "encoder") if config.judge_kind == "best" else (config.judge_kind,)
    heads, rhos = {}, {}
    for kind in kinds:
        if kind == "attention":
            trained = _attention(states, _mean_pool(states, task), task, "judge (attention)")
        else:
            trained = _encoder(states, task)
        heads[kind] = _finished(trained, task)
        rhos[kind] = _rho(heads[kind], states, task)
    best = max(kinds, key=lambda kind: rhos[kind])
    gain = rhos[best] - probe_rho
    shipped = gain >= config.judge_gain
    verdict = "enough" if shipped else "not enough: probe only"
    report |= {
        "judge_spearman": rhos[best], "judge_kinds": rhos, "judge_shipped": shipped,
        "reason": f"judge ({best}) - probe = {gain:+.3f} Spearman on select, {config.judge_gain:.3f} needed: {verdict}",
    }  # fmt: skip
    return best, heads[best] if shipped else None, report


@torch.no_grad()
def predict(
    head: nn.Module, states: States, documents_M: np.ndarray, count: int, rubric: Rubric, config: TrainConfig
) -> np.ndarray:
    """Scores [N, D] of `count` documents on each dimension's own scale, unclamped; NaN for those without windows."""
    head.eval().to(config.device)
    scores_MD = np.full((len(states.rows), len(rubric.dimensions)), np.nan)
    for batch in batches(states.tokens_M.tolist(), config.batch_tokens):
        scores_MD[batch] = to_scale(head(*_padded(states, batch, config.device)), rubric)
    head.cpu()
    return average_windows(scores_MD, states.tokens_M, documents_M, count)


def to_scale(fractions_BD: torch.Tensor, rubric: Rubric) -> np.ndarray:
    """A head's output in fractions of the scale -> scores on each dimension's own scale, float64."""
    low_D, span_D = _scale(rubric)
    return fractions_BD.double().cpu().numpy() * span_D + low_D


def _scale(rubric: Rubric) -> tuple[np.ndarray, np.ndarray]:
    low_D = np.array([d.min for d in rubric.dimensions], dtype=np.float64)
    return low_D, np.array([d.max - d.min for d in rubric.dimensions], dtype=np.float64)


def _task(
    probe: States, judge: States, documents_M: np.ndarray, labels: Labels, rubric: Rubric, config: TrainConfig
) -> tuple[_Task, list[str]]:
    low_D, span_D = _scale(rubric)
    targets_ND = (labels.scores_ND - low_D) / span_D
    windows_N = np.bincount(documents_M, minlength=len(labels))
    finite_M = (probe.means_MD.isfinite().all(1) & judge.means_MD.isfinite().all(1)).numpy()
    broken_N = np.bincount(documents_M[~finite_M], minlength=len(labels)) > 0
    usable_N = np.isfinite(targets_ND).any(1) & (windows_N > 0) & ~broken_N
    splits = {name: usable_N & (labels.splits == name) for name in ("fit", "select")}
    left_out = [labels.ids[i] for i in np.flatnonzero(broken_N)]
    for name, mask_N in splits.items():
        if mask_N.sum() < MINIMUM_SPLIT:
            told = f"; {len(left_out)} have states that are not finite, as {left_out[0]!r}" if left_out else ""
            raise DataError(
                f"labels: {mask_N.sum()} graded documents in split {name!r}, {MINIMUM_SPLIT} needed; label more{told}"
            )
    known_ND = np.isfinite(targets_ND[splits["fit"]])
    if missing := [name for i, name in enumerate(rubric.names) if not known_ND[:, i].any()]:
        raise DataError(
            f"labels: no document of split 'fit' has a grade on {', '.join(missing)}; grade it, or take it out of the "
            "rubric"
        )
    mean_D, spread_D = _moments(targets_ND[splits["fit"]])
    weights_M = labels.weights_N[documents_M] / windows_N[documents_M]
    rows = {name: np.flatnonzero(mask_N[documents_M]) for name, mask_N in splits.items()}
    quality_N = rubric.quality(labels.scores_ND)
    task = _Task(
        documents_M=documents_M,
        tokens_M=probe.tokens_M,
        targets_MD=torch.from_numpy((targets_ND - mean_D) / spread_D).float()[documents_M],
        weights_M=torch.from_numpy(weights_M / weights_M[rows["fit"]].mean()).float(),
        rows=rows,
        select_N=np.flatnonzero(splits["select"] & np.isfinite(quality_N)),
        quality_N=quality_N,
        mean_D=mean_D,
        spread_D=spread_D,
        rubric=rubric,
        config=config,
    )
    return task, left_out[:NAMED] + ([f"and {len(left_out) - NAMED} more"] if len(left_out) > NAMED else [])


def _moments(targets_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each dimension; small oracles use a tenth of the scale, and heads train badly on that."""
    return np.nanmean(targets_ND, axis=0), np.maximum(np.nanstd(targets_ND, axis=0), 1e-3)


def _mean_pool(states: States, task: _Task) -> MeanPool:
    """The linear map of the mean that errs least on select, in closed form."""
    fit, select = task.rows["fit"], task.rows["select"]
    weight_PDW, bias_PD = ridge(states.means_MD[fit], task.targets_MD[fit], task.weights_M[fit])
    predicted_PMD = torch.einsum("mw,pdw->pmd", states.means_MD[select].double(), weight_PDW) + bias_PD[:, None]
    errors_P = ((predicted_PMD - task.targets_MD[select]).square() * task.weights_M[select][:, None]).nansum((1, 2))
    best = int(errors_P.argmin())
    head = MeanPool(states.means_MD.shape[1], len(task.mean_D))
    with torch.no_grad():
        head.output.weight.copy_(weight_PDW[best])
        head.output.bias.copy_(bias_PD[best])
    return head


def _attention(states: States, mean: MeanPool, task: _Task, label: str) -> AttentionPool:
    """Attention pooling that starts as the linear map of the mean, so that it is never worse on select."""
    config = task.config
    torch.manual_seed(config.seed)
    head = AttentionPool(states.means_MD.shape[1], len(task.mean_D), config.queries)
    head.begin_as(mean)
    _fit(head, states, task, config.learning_rate, config.epochs, label)
    return head


def _encoder(states: States, task: _Task) -> Encoder:
    config = task.config
    torch.manual_seed(config.seed)
    head = Encoder(states.means_MD.shape[1], len(task.mean_D), config.judge_width)
    _fit(head, states, task, config.judge_learning_rate, config.judge_epochs, "judge (encoder)")
    return head


def _finished(head: nn.Module, task: _Task) -> nn.Module:
    """The head with the standardisation of its targets folded into its last layer, frozen."""
    head = copy.deepcopy(head).cpu().eval().requires_grad_(False)
    mean, spread = torch.from_numpy(task.mean_D).float(), torch.from_numpy(task.spread_D).float()
    weight, bias = head.get_parameter("output.weight"), head.get_parameter("output.bias")
    weight.mul_(spread[:, None])
    bias.mul_(spread).add_(mean)
    return head


def _rho(head: nn.Module, states: States, task: _Task) -> float:
    """Spearman of quality on the select split."""
    chosen = np.flatnonzero(np.isin(task.documents_M, task.select_N))
    own = States([states.rows[i] for i in chosen], states.means_MD[chosen])
    predicted_ND = predict(head, own, task.documents_M[chosen], len(task.quality_N), task.rubric, task.config)
    return spearman(task.quality_N[task.select_N], task.rubric.quality(predicted_ND[task.select_N])) or 0.0


def _fit(head: nn.Module, states: States, task: _Task, rate: float, epochs: int, label: str) -> None:
    """Train in place and keep the weights of the epoch, the start included, that errs least on select."""
    config = task.config
    head.to(config.device)
    queries = [parameter for name, parameter in head.named_parameters() if name == "queries_QW"]
    others = [parameter for name, parameter in head.named_parameters() if name != "queries_QW"]
    groups = [{"params": others}, {"params": queries, "lr": rate * QUERY_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay)
    lengths_M = task.tokens_M
    packed = {
        name: [rows[batch] for batch in batches(lengths_M[rows].tolist(), config.batch_tokens)]
        for name, rows in task.rows.items()
    }
    # One scale for all batches, so that each window counts by its weight and not by its company.
    known_MD = task.targets_MD[task.rows["fit"]].isfinite()
    batch_weight = float((known_MD * task.weights_M[task.rows["fit"]][:, None]).sum()) / len(packed["fit"])
    steps = epochs * len(packed["fit"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
    generator = np.random.default_rng([config.seed, 0xF1])
    best, best_loss, waited = copy.deepcopy(head.state_dict()), _select_loss(head, states, packed["select"], task), 0
    with Progress(f"train {label}", total=epochs, unit="epochs") as progress:
        for epoch in range(epochs):
            head.train()
            for position in generator.permutation(len(packed["fit"])):
                loss, _ = _loss(head, states, packed["fit"][position], task)
                optimizer.zero_grad()
                (loss / batch_weight).backward()
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            progress.update(epoch + 1)
            loss = _select_loss(head, states, packed["select"], task)
            if loss < best_loss - 1e-6:
                best, best_loss, waited = copy.deepcopy(head.state_dict()), loss, 0
            else:
                waited += 1
                if waited >= config.patience:
                    break
    head.load_state_dict(best)


def _share_of_rate(step: int, steps: int) -> float:
    """A tenth of the steps up from zero, then down along a cosine."""
    warm = steps / 10
    return (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


@torch.inference_mode()
def _select_loss(head: nn.Module, states: States, packed: Sequence[np.ndarray], task: _Task) -> float:
    head.eval()
    sums = [_loss(head, states, batch, task) for batch in packed]
    return sum(float(part) for part, _ in sums) / sum(float(count) for _, count in sums)


def _loss(head: nn.Module, states: States, batch: np.ndarray, task: _Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the Huber loss over the known dimensions, and the sum of their weights."""
    device = task.config.device
    target_BD, weights_B = task.targets_MD[batch].to(device), task.weights_M[batch].to(device)
    known_BD = target_BD.isfinite()
    predicted_BD = head(*_padded(states, batch, device))
    loss_BD = nn.functional.huber_loss(predicted_BD, target_BD.nan_to_num(), reduction="none", delta=task.config.huber)
    weight_BD = weights_B[:, None] * known_BD
    return (loss_BD * weight_BD).sum(), weight_BD.sum()


def _padded(states: States, batch: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head reads of some windows: float32 [B, S, W], zero where the boolean mask [B, S] is."""
    rows = [states.rows[i] for i in batch]
    longest = max(len(row) for row in rows)
    x_BSW = torch.empty(len(rows), longest, rows[0].shape[1])
    mask_BS = torch.zeros(len(rows), longest, dtype=torch.bool)
    for x_SW, mask_S, row in zip(x_BSW, mask_BS, rows):
        x_SW[: len(row)] = row
        x_SW[len(row) :] = 0
        mask_S[: len(row)] = True
    return x_BSW.to(device), mask_BS.to(device)
