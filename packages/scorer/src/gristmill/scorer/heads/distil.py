"""From a label table to a heads/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import Tokens, average_windows, extract, flatten
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.evaluation import evaluate_splits
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.selftest import make_selftest
from gristmill.scorer.heads.training import predict, train_heads
from gristmill.scorer.rubric import Rubric

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
    backbone = StagedBackbone.load(backbone_dir, config.chosen_taps, config.dtype, config.threads)
    tokens = Tokens(backbone_dir, backbone.identity.first_token, config.window_tokens, config.windows)
    # The certify split is left alone: its predictions come from the deployed scorer, in calibrate_bundle().
    rows, owner_M = flatten(
        tokens([None if split == "certify" else text for text, split in zip(labels.texts, labels.splits)])
    )
    features = extract(backbone, rows, config.batch_tokens)
    # Each window is a row with its document's grades, and a share of its document's weight.
    own = labels.take(owner_M)
    weights_M = own.weights_N / np.bincount(owner_M)[owner_M]
    heads = train_heads(features, rubric, own.scores_ND, weights_M, list(own.splits), config)
    tokens_M = np.array(features.lengths) - 1
    predictions = {
        name: average_windows(predict(head, states, rubric, config.batch_tokens), tokens_M, owner_M, len(labels))
        for name, head, states in (("probe", heads.probe, features.probe), ("judge", heads.judge, features.judge))
        if head is not None
    }
    lengths_N = np.bincount(owner_M, weights=tokens_M, minlength=len(labels))
    splits = evaluate_splits(labels, lengths_N, predictions, rubric, config)
    metrics: dict[str, Any] = {"training": heads.report, "splits": splits}
    shown = [row[:SELFTEST_TOKENS] for row in rows[:SELFTEST_ROWS]]
    bundle = Bundle(
        backbone.identity, config, rubric, heads.probe.eval(), heads.judge.eval() if heads.judge else None,
        make_selftest(backbone, heads.probe, heads.judge, shown), labels.sha(), metrics,
    )  # fmt: skip
    bundles.save(bundle, output)
    return bundle
