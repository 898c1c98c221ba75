"""From a label table to a heads/ folder, and from that to thresholds: the two steps that pipelines and the CLI call."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.states import Tokens, extract
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.metrics import baselines, evaluate
from gristmill.scorer.heads.training import predict, train_heads
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.sampling import split_of
from gristmill.scorer.scoring.scorer import Scorer, make_selftest

SELFTEST_ROWS, SELFTEST_TOKENS = 8, 32


def train_bundle(labels: pa.Table, rubric: Rubric, backbone_dir: Path, output: Path, config: TrainConfig) -> Bundle:
    """Train heads on graded documents and write `output`; not yet calibrated.

    labels: columns text, source and one per dimension of the rubric; id, weight, split, rubric_sha and flagged where
    known. Flagged documents, which may have talked their grader into a grade, teach and choose nothing; they stay where
    heads are judged and certified, as scoring meets such text too.

    Raises:
        DataError: a column is missing, grades of another rubric, or too few graded documents.
    """
    scores_ND = _scores(labels, rubric)
    splits = splits_of(labels)
    if "flagged" in labels.column_names:
        scores_ND[labels["flagged"].to_numpy() & np.isin(splits, ("fit", "select"))] = np.nan
    texts, sources = labels["text"].to_pylist(), _sources(labels)
    weights_N = (
        labels["weight"].to_numpy().astype(np.float64) if "weight" in labels.column_names else np.ones(len(labels))
    )
    backbone = StagedBackbone.load(backbone_dir, config.taps, config.dtype, config.threads)
    tokens = Tokens(backbone_dir, backbone.identity.first_token, config.max_tokens)(texts)
    # The certify split is left alone: its predictions come from the deployed scorer, in calibrate_bundle().
    used = [np.zeros(0, np.int32) if split == "certify" else row for row, split in zip(tokens, splits)]
    features = extract(backbone, used, config.batch_tokens)
    heads = train_heads(features, rubric, scores_ND, weights_N, splits, config)
    predictions = {"probe": predict(heads.probe, features.probe, rubric, config.batch_tokens)}
    if heads.judge is not None:
        predictions["judge"] = predict(heads.judge, features.judge, rubric, config.batch_tokens)
    metrics: dict[str, Any] = {"training": heads.report, "splits": {}}
    names, lengths = np.asarray(sources, dtype=object), np.array(features.lengths)
    fit = np.asarray(splits) == "fit"
    for split in ("select", "audit"):
        rows = (np.asarray(splits) == split) & np.isfinite(predictions["probe"]).all(1)
        if not rows.any():
            continue
        known = baselines(scores_ND[fit], list(names[fit]), list(lengths[fit]), list(names[rows]), list(lengths[rows]))
        own = {name: predicted[rows] for name, predicted in predictions.items()}
        metrics["splits"][split] = evaluate(rubric, scores_ND[rows], own | known, list(names[rows]), config.seed)
    shown = [row[:SELFTEST_TOKENS] for row in tokens if len(row) > 1][:SELFTEST_ROWS]
    bundle = Bundle(
        backbone.identity, config, rubric, heads.probe.eval(), heads.judge.eval() if heads.judge else None,
        make_selftest(backbone, heads.probe, heads.judge, shown), _labels_sha(texts, scores_ND), metrics,
    )  # fmt: skip
    bundles.save(bundle, output)
    return bundle


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
    scorer = Scorer.load(heads_dir, backbone_dir, threads=threads)
    rubric = scorer.bundle.rubric
    certify = labels.filter(pa.array([split == "certify" for split in splits_of(labels)], pa.bool_()))
    labelled = scorer.score(certify["text"].to_pylist(), early_exit=False)
    if "probe" not in unlabelled.column_names:
        scores = scorer.score(unlabelled["text"].to_pylist(), early_exit=False)
        unlabelled = scores.append_column("source", pa.array(_sources(unlabelled), pa.string()))
    result = calibrate(
        Labelled(_sources(certify), rubric.quality(_scores(certify, rubric)), _floats(labelled, "probe")),
        Unlabelled(
            _sources(unlabelled), _floats(unlabelled, "probe"),
            _floats(unlabelled, "judge") if scorer.bundle.judge is not None else None,
        ),
        config,
    )  # fmt: skip
    bundles.save_calibration(scorer.bundle, result, heads_dir)
    return result


def splits_of(labels: pa.Table) -> list[str]:
    """The split column, or where it is missing the split that each id decides."""
    if "split" in labels.column_names:
        return labels["split"].to_pylist()
    if "id" not in labels.column_names:
        raise DataError("labels: neither a column split nor a column id to split by")
    return [split_of(str(identifier)) for identifier in labels["id"].to_pylist()]


def _scores(labels: pa.Table, rubric: Rubric) -> np.ndarray:
    missing = [name for name in ("text", *rubric.names) if name not in labels.column_names]
    if missing:
        raise DataError(f"labels: no column {missing[0]!r}; columns are {', '.join(labels.column_names)}")
    if "rubric_sha" in labels.column_names:
        others = set(labels["rubric_sha"].to_pylist()) - {rubric.sha}
        if others:
            raise DataError(
                f"labels: graded with rubric {sorted(map(str, others))[0][:12]}, not {rubric.sha[:12]}; label again"
            )
    return np.stack([_floats(labels, name) for name in rubric.names], axis=1)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)


def _sources(table: pa.Table) -> list[str]:
    if "source" not in table.column_names:
        return [""] * len(table)
    return [str(source) for source in table["source"].to_pylist()]


def _labels_sha(texts: list[str], scores_ND: np.ndarray) -> str:
    total = hashlib.sha256(scores_ND.astype("<f8").tobytes())
    for text in texts:
        total.update(hashlib.sha256((text or "").encode()).digest())
    return total.hexdigest()
