"""From a heads/ folder, labels of the certify split and unlabelled documents to its calibration.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.config import CalibrationConfig, ScoringConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.decisions import document_tokens
from gristmill.scorer.heads.labels import Labels, floats
from gristmill.scorer.heads.reliability import isotonic_knots
from gristmill.scorer.heads.weights import fit_weights, weighted
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

    Beside what calibrate() gives it holds weights (of the dimensions, where they were fitted) and isotonic (maps from
    the deployed scores to the oracle's, for reports: decisions use raw scores).

    unlabelled: a uniform sample of what will be scored, with columns source and text; id too, for ties (or columns
    source, probe, judge and tokens, where it has been scored without exits already).

    Raises:
        DataError: too few good labels to certify (unless config.allow_uncertified), too few unlabelled documents, some
            that were scored with exits, or no column overall to fit weights to.
    """
    scorer = Scorer.load(heads_dir, backbone_dir, ScoringConfig(threads=threads))
    graded = Labels.of(labels, scorer.bundle.rubric)
    weights = fit_weights(graded, scorer.bundle.rubric) if config.weights == "fit" else None
    rubric = scorer.rubric = weighted(scorer.bundle.rubric, {"weights": weights})
    certify = graded.take(graded.splits == "certify")
    labelled = scorer.score(certify.texts, early_exit=False)
    result = calibrate(
        Labelled(certify.sources, rubric.quality(certify.scores_ND), floats(labelled, "probe")),
        _sample(scorer, unlabelled, weights is not None),
        config,
    )
    predicted_ND = np.stack([floats(labelled, name) for name in rubric.names], axis=1)
    result |= {"weights": weights, "isotonic": isotonic_knots(certify.scores_ND, predicted_ND, rubric)}
    bundles.save_calibration(scorer.bundle, result, heads_dir)
    return result


def _sample(scorer: Scorer, unlabelled: pa.Table, new_weights: bool) -> Unlabelled:
    columns = unlabelled.column_names
    sources = [str(one) for one in unlabelled["source"].to_pylist()] if "source" in columns else [""] * len(unlabelled)
    ids = [str(one) for one in unlabelled["id"].to_pylist()] if "id" in columns else None
    texts = unlabelled["text"].to_pylist() if "text" in columns else None
    if "probe" not in columns or (new_weights and texts is not None):
        unlabelled = scorer.score(texts or [], early_exit=False)
    elif new_weights:
        raise DataError("unlabelled: scored with other weights than those fitted here; give the documents, with text")
    probe, judge = floats(unlabelled, "probe"), None
    if scorer.bundle.judge is not None:
        judge = floats(unlabelled, "judge")
        if missing := int((np.isfinite(probe) & ~np.isfinite(judge)).sum()):
            raise DataError(f"unlabelled: {missing} documents without the judge's score; score all of them, no exits")
    tokens = None
    if "tokens" in unlabelled.column_names:
        tokens = floats(unlabelled, "tokens")
        if texts is not None:
            most = scorer.bundle.config.windows * scorer.bundle.config.window_tokens
            tokens = document_tokens(tokens, texts, most)
    return Unlabelled(sources, probe, judge, ids, tokens)
