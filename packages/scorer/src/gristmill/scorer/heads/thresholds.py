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
from gristmill.scorer.heads.labels import Labels, floats, splits_of
from gristmill.scorer.heads.reliability import isotonic_knots
from gristmill.scorer.heads.weights import fit_weights, weighted
from gristmill.scorer.scoring.scorer import Scorer


def calibrate_bundle(
    heads_dir: Path,
    backbone_dir: Path,
    labels: pa.Table,
    unlabelled: pa.Table,
    config: CalibrationConfig,
    scoring: ScoringConfig | None = None,
    documents: pa.Table | None = None,
) -> dict[str, Any]:
    """Score the certify split and the unlabelled documents without exits, set thresholds, and write calibration.json.

    What is certified must be read as scoring reads it, whole, where labels hold only what the oracle was shown.

    Beside what calibrate() gives it holds weights (of the dimensions, where they were fitted) and isotonic (maps from
    the deployed scores to the oracle's, for reports: decisions use raw scores).

    unlabelled: a uniform sample of what will be scored, with columns source and text; id too, for ties (or columns
    source, probe, judge and tokens, where it has been scored without exits already). scoring: as scoring itself will be
    run. documents: columns id and text, the whole texts of the graded documents.

    Raises:
        DataError: too few good labels to certify, or labels of parts of documents without `documents` (both unless
            config.allow_uncertified); documents that lack a graded one; too few unlabelled documents, some that were
            scored with exits, or no column overall to fit weights to.
    """
    certified = labels.filter(pa.array([split == "certify" for split in splits_of(labels)], pa.bool_()))
    texts = None if documents is None else _whole_texts(certified, documents)
    parts = 0 if texts is not None else _parts(certified)
    if parts and not config.allow_uncertified:
        raise DataError(
            f"labels: {parts} of {len(certified)} documents of split certify are there in part only, as the oracle was "
            f"shown them, and scoring reads them whole; give those (--documents FILE with id and text), or set "
            f"allow_uncertified (stamped as mode expected)"
        )
    scorer = Scorer.load(heads_dir, backbone_dir, scoring)
    graded = Labels.of(labels, scorer.bundle.rubric)
    weights = fit_weights(graded, scorer.bundle.rubric) if config.weights == "fit" else None
    rubric = scorer.rubric = weighted(scorer.bundle.rubric, {"weights": weights})
    certify = graded.take(graded.splits == "certify")
    labelled = scorer.score(texts or certify.texts, early_exit=False)
    result = calibrate(
        Labelled(
            certify.sources,
            rubric.quality(certify.scores_ND),
            floats(labelled, "probe"),
            certify.weights_N,
            certify.ids,
            whole=not parts,
        ),
        _sample(scorer, unlabelled, weights is not None),
        config,
    )
    predicted_ND = np.stack([floats(labelled, name) for name in rubric.names], axis=1)
    result |= {"weights": weights, "isotonic": isotonic_knots(certify.scores_ND, predicted_ND, rubric)}
    bundles.save_calibration(scorer.bundle, result, heads_dir)
    return result


def _whole_texts(certified: pa.Table, documents: pa.Table) -> list[str | None]:
    for name, table, columns in (("labels", certified, ("id",)), ("documents", documents, ("id", "text"))):
        for column in columns:
            if column not in table.column_names:
                raise DataError(f"{name}: no column {column!r}, by which whole texts are found")
    ids, texts = (documents[name].to_pylist() for name in ("id", "text"))
    known: dict[str, str | None] = {}
    for one, text in zip(map(str, ids), texts):
        if known.setdefault(one, text) != text:
            raise DataError(f"documents: several texts of id {one!r}; give each document an id of its own")
    wanted = [str(one) for one in certified["id"].to_pylist()]
    missing = [one for one in wanted if one not in known]
    if missing:
        raise DataError(
            f"documents: {len(missing)} of the {len(wanted)} graded documents of split certify are not there, such as "
            f"{missing[0]!r}; give those that the labels were drawn from"
        )
    return [known[one] for one in wanted]


def _parts(certified: pa.Table) -> int:
    """How many of the documents the oracle was shown in part."""
    columns = certified.column_names
    if "truncated" in columns:
        return sum(bool(one) for one in certified["truncated"].to_pylist())
    windows = certified["window"].to_pylist() if "window" in columns else []
    return sum(one not in (None, "whole") for one in windows)


def _sample(scorer: Scorer, unlabelled: pa.Table, new_weights: bool) -> Unlabelled:
    columns = unlabelled.column_names
    sources = (
        ["" if one is None else str(one) for one in unlabelled["source"].to_pylist()]
        if "source" in columns
        else [""] * len(unlabelled)
    )
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
