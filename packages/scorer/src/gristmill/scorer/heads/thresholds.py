"""From a heads/ folder, labels of the certify split and unlabelled documents to its calibration.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.scorer.config import CalibrationConfig, ScoringConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.labels import Labels, floats
from gristmill.scorer.scoring.scorer import Scorer


def calibrate_bundle(
    heads_dir: Path,
    backbone_dir: Path,
    labels: pa.Table,
    unlabelled: pa.Table,
    config: CalibrationConfig,
    threads: int = 1,
) -> dict[str, Any]:
    """Score the certify split and the unlabelled documents without exits, set thresholds, and write calibration.json.

    unlabelled: a uniform sample of what will be scored, with columns source and text (or source, probe and judge, where
    it has been scored without exits already).

    Raises:
        DataError: too few good labels to certify (unless config.allow_uncertified), or too few unlabelled documents.
    """
    scorer = Scorer.load(heads_dir, backbone_dir, ScoringConfig(threads=threads))
    rubric = scorer.bundle.rubric
    graded = Labels.of(labels, rubric)
    certify = graded.take(graded.splits == "certify")
    labelled = scorer.score(certify.texts, early_exit=False)
    sources = [str(s) for s in unlabelled["source"].to_pylist()] if "source" in unlabelled.column_names else []
    sources = sources or [""] * len(unlabelled)
    if "probe" not in unlabelled.column_names:
        unlabelled = scorer.score(unlabelled["text"].to_pylist(), early_exit=False)
    judged = scorer.bundle.judge is not None
    result = calibrate(
        Labelled(certify.sources, rubric.quality(certify.scores_ND), floats(labelled, "probe")),
        Unlabelled(sources, floats(unlabelled, "probe"), floats(unlabelled, "judge") if judged else None),
        config,
    )
    bundles.save_calibration(scorer.bundle, result, heads_dir)
    return result
