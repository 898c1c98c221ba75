"""From a label table to a heads/ folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gristmill.base.errors import DataError
from gristmill.scorer.backbone.cache import FeatureCache
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.backbone.staged import StagedBackbone, identify
from gristmill.scorer.backbone.states import Tokens, average_windows, flatten
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.evaluation import evaluate_exits, evaluate_splits, retest_reliabilities
from gristmill.scorer.heads.files import check_place
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.selftest import make_selftest
from gristmill.scorer.heads.sweep import Swept, candidates, sweep
from gristmill.scorer.heads.training import predict, train_heads
from gristmill.scorer.rubric import Rubric

SELFTEST_ROWS, SELFTEST_TOKENS = 8, 32


def train_bundle(
    table: pa.Table,
    rubric: Rubric,
    backbone: str | Path,
    output: Path,
    config: TrainConfig,
    cache: Path | None = None,
    audit: Mapping[str, Any] | None = None,
) -> Bundle:
    """Train heads on graded documents and write `output`; not yet calibrated.

    table: labels, see Labels.of(). Flagged documents, which may have talked their grader into a grade, teach and choose
    nothing; they stay where heads are judged and certified, as scoring meets such text too. backbone: a folder, or its
    address on the Hub. cache: a folder that keeps what the backbone made of each window, so that only new text is run
    through it; without one that is kept beside the output while it is needed. audit: the content of an audit.json, for
    the noise ceiling.

    Raises:
        UsageError: no such backbone, it has not as many blocks as the taps, or other files stand in `output`.
        DataError: a column is missing, grades of another rubric, too few graded documents, a dimension without a grade,
            an audit of another form, or a file of the cache is damaged.
    """
    output = output.resolve()
    check_place(output)
    if audit is not None:
        retest_reliabilities(audit, rubric)
    labels = Labels.of(table, rubric)
    labels_sha = labels.sha()
    labels.scores_ND[labels.flagged_N & np.isin(labels.splits, ("fit", "select"))] = np.nan
    folder = local_folder(backbone)
    identity = identify(folder)
    tokens = Tokens(folder, identity.first_token, config.window_tokens, config.windows)
    # The certify split is left alone: its predictions come from the deployed scorer, in calibrate_bundle().
    rows, documents_M = flatten(
        tokens([None if split == "certify" else text for text, split in zip(labels.texts, labels.splits)])
    )
    if not rows:
        raise DataError("labels: no document outside split certify has any text")

    def load(probe: int, judge: int) -> StagedBackbone:
        return StagedBackbone.load(
            folder, (probe, judge), config.dtype, config.threads, identity, config.device, config.attention
        )

    metrics: dict[str, Any] = {}
    with _folder(cache, output) as kept:
        features = FeatureCache(kept, identity, config, lambda tap: load(tap, tap))
        if config.taps == "sweep":
            swept = _sweep(features, rows, documents_M, labels, identity.layers, rubric, config)
            config, metrics["sweep"] = replace(config, taps=swept.taps), swept.report
        states = features.states(rows, config.chosen_taps)
        probe_states, judge_states = (states[tap] for tap in config.chosen_taps)
        heads = train_heads(probe_states, judge_states, documents_M, labels, rubric, config)
        config = replace(config, judge_kind=heads.judge_kind)
        metrics["training"] = heads.report
        predictions = {
            name: predict(head, own, documents_M, len(labels), rubric, config)
            for name, head, own in (("probe", heads.probe, probe_states), ("judge", heads.judge, judge_states))
            if head is not None
        }
    lengths_N = np.bincount(documents_M, weights=probe_states.tokens_M, minlength=len(labels))
    metrics["splits"] = evaluate_splits(labels, lengths_N, predictions, rubric, config, audit=audit)
    metrics["exits"] = evaluate_exits(labels, predictions, rubric, config.chosen_taps, identity.layers)
    shown = [row[:SELFTEST_TOKENS] for row in rows[:SELFTEST_ROWS]]
    staged = load(*config.chosen_taps)
    for head in filter(None, (heads.probe, heads.judge)):
        head.to(staged.device)
    selftest = make_selftest(staged, heads.probe, heads.judge, shown)
    bundle = Bundle(identity, config, rubric, heads.probe, heads.judge, selftest, labels_sha, metrics)
    bundles.save(bundle, output)
    return bundle


def _sweep(
    features: FeatureCache, rows: Sequence[np.ndarray], documents_M: np.ndarray, labels: Labels, layers: int,
    rubric: Rubric, config: TrainConfig,
) -> Swept:  # fmt: skip
    taps = candidates(layers)
    tokens_M = np.array([len(row) - 1 for row in rows])
    pools_MKW = features.pools(rows, taps)
    pools_KNW = [
        torch.from_numpy(average_windows(pools_MW.numpy(), tokens_M, documents_M, len(labels))).float()
        for pools_MW in pools_MKW.unbind(1)
    ]
    torch.set_num_threads(config.threads)
    return sweep(torch.stack(pools_KNW, dim=1), taps, layers, labels, rubric, config)


@contextlib.contextmanager
def _folder(cache: Path | None, output: Path) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.features-", dir=output.parent) as folder:
        yield Path(folder)
