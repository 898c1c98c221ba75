"""From a label table to a heads/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import Tokens, extract
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.evaluation import evaluate_splits
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.training import predict, train_heads
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.scoring.scorer import make_selftest

SELFTEST_ROWS, SELFTEST_TOKENS = 8, 32


def train_bundle(table: pa.Table, rubric: Rubric, backbone_dir: Path, output: Path, config: TrainConfig) -> Bundle:
    """Train heads on graded documents and write `output`; not yet calibrated.

    table: labels, see Labels.of(). Flagged documents, which may have talked their grader into a grade, teach and choose
    nothing; they stay where heads are judged and certified, as scoring meets such text too.

    Raises:
        DataError: a column is missing, grades of another rubric, or too few graded documents.
    """
    labels = Labels.of(table, rubric)
    labels.scores_ND[labels.flagged_N & np.isin(labels.splits, ("fit", "select"))] = np.nan
    backbone = StagedBackbone.load(backbone_dir, config.taps, config.dtype, config.threads)
    tokens = Tokens(backbone_dir, backbone.identity.first_token, config.max_tokens)(labels.texts)
    # The certify split is left alone: its predictions come from the deployed scorer, in calibrate_bundle().
    used = [np.zeros(0, np.int32) if split == "certify" else row for row, split in zip(tokens, labels.splits)]
    features = extract(backbone, used, config.batch_tokens)
    heads = train_heads(features, rubric, labels.scores_ND, labels.weights_N, list(labels.splits), config)
    predictions = {"probe": predict(heads.probe, features.probe, rubric, config.batch_tokens)}
    if heads.judge is not None:
        predictions["judge"] = predict(heads.judge, features.judge, rubric, config.batch_tokens)
    splits = evaluate_splits(labels, np.array(features.lengths), predictions, rubric, config)
    metrics: dict[str, Any] = {"training": heads.report, "splits": splits}
    shown = [row[:SELFTEST_TOKENS] for row in tokens if len(row) > 1][:SELFTEST_ROWS]
    bundle = Bundle(
        backbone.identity, config, rubric, heads.probe.eval(), heads.judge.eval() if heads.judge else None,
        make_selftest(backbone, heads.probe, heads.judge, shown), labels.sha(), metrics,
    )  # fmt: skip
    bundles.save(bundle, output)
    return bundle
