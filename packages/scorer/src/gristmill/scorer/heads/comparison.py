"""`scorer eval`: heads on labels that they may never have seen, beside any other score table of the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.evaluation import EVALUATED, evaluate_exits, evaluate_splits
from gristmill.scorer.heads.labels import Labels, floats
from gristmill.scorer.scoring.scorer import Scorer
from gristmill.scorer.tables import graded_with, read_parquet

FORM = "NAME=FILE.parquet:COLUMN"
WHOLE = "audit"  # the split as which labels without splits are evaluated, all of them


def evaluate_folder(
    heads_dir: Path,
    backbone_dir: Path,
    labels: pa.Table,
    scores: Sequence[str] = (),
    audit: Mapping[str, Any] | None = None,
    config: ScoringConfig | None = None,
) -> dict[str, Any]:
    """Metrics as in evaluation.py of a heads/ folder on a label table, all documents judged.

    Beside judge and probe stands `deployed`, the quality with the early exits of its calibration, where it has one. A
    table with a column split is evaluated on the splits select and audit, with baselines fitted on fit; one without is
    evaluated whole, without those baselines, unless the heads were trained on it: then by the splits of then. scores:
    of other systems, each as NAME=FILE.parquet:COLUMN, by column id.

    Raises:
        UsageError, DataError: see read_scores(); another backbone or rubric than the heads', or no document with both a
            grade and a score.
    """
    scorer = Scorer.load(heads_dir, backbone_dir, config)
    rubric, bundle = scorer.rubric, scorer.bundle
    labels = graded_with(labels, bundle.rubric)
    if "split" not in labels.column_names and not _taught(labels, bundle):
        labels = labels.append_column("split", pa.array([WHOLE] * len(labels)))
    graded = Labels.of(labels, bundle.rubric)
    used = graded.take(np.isin(graded.splits, ("fit", *EVALUATED)))
    others = read_scores(scores, used.ids)
    rows = np.flatnonzero(np.isin(used.splits, EVALUATED))
    own = used.take(rows)
    full = scorer.score(own.texts, early_exit=False)
    head = "judge" if bundle.judge is not None else "probe"
    predicted_ND = np.stack([floats(full, name) for name in rubric.names], axis=1)
    predictions: dict[str, np.ndarray] = {head: _spread(predicted_ND, rows, len(used))}
    if head == "judge":
        probe_N = floats(full, "probe")
        predictions["probe"] = _spread(probe_N, rows, len(used))
        if bundle.calibration is not None:
            exits = scorer.score(own.texts, own.sources)
            predictions["deployed"] = _spread(floats(exits, "quality"), rows, len(used))
    lengths_N = np.array([sum(len(row) - 1 for row in windows) for windows in scorer.tokens(used.texts)], dtype=float)
    splits = evaluate_splits(used, lengths_N, predictions, rubric, bundle.config, audit=audit, others=others)
    if not splits:
        raise DataError("labels: no document of split select or audit has both a grade and a score")
    exits = evaluate_exits(
        used, {name: predictions[name] for name in ("probe", "judge") if name in predictions}, rubric,
        bundle.config.chosen_taps, bundle.backbone.layers,
    )  # fmt: skip
    return {"labels_sha": used.sha(), "splits": splits, "exits": exits}


def _taught(labels: pa.Table, bundle: Bundle) -> bool:
    """Whether the heads were trained on these very labels, split by their ids."""
    return "id" in labels.column_names and Labels.of(labels, bundle.rubric).sha() == bundle.labels_sha


def read_scores(sources: Sequence[str], ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores [N] of the documents `ids` from tables given as NAME=FILE.parquet:COLUMN, by column id; NaN where missing.

    Raises:
        UsageError: not of that form, a name twice, or a column that the table lacks.
        DataError: the table has none of the documents.
    """
    found: dict[str, np.ndarray] = {}
    for one in sources:
        name, _, place = one.partition("=")
        path, _, column = place.rpartition(":")
        if not (name and path and column) or name in found:
            raise UsageError(f"--scores {one}: give {FORM}, each name once")
        table = read_parquet(Path(path))
        for needed in ("id", column):
            if needed not in table.column_names:
                raise UsageError(f"{path}: no column {needed!r}; columns are {', '.join(table.column_names)}")
        known = dict(zip(map(str, table["id"].to_pylist()), floats(table, column)))
        scores_N = np.array([known.get(identifier, np.nan) for identifier in ids])
        if not np.isfinite(scores_N).any():
            raise DataError(f"{path}: has a score for none of the {len(ids)} graded documents (by column id)")
        found[name] = scores_N
    return found


def _spread(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """`values` at `rows` of n documents, NaN elsewhere."""
    out = np.full((n, *values.shape[1:]), np.nan)
    out[rows] = values
    return out
