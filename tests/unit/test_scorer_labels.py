"""Labels that would make heads of no numbers, or measure them on what taught them, are told by row and column."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.support.tiny_heads import rubric, texts

from gristmill.base.errors import DataError
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads.comparison import evaluate_folder
from gristmill.scorer.heads.distil import train_bundle
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.sampling import split_of

RUBRIC = rubric()
INF, NAN = math.inf, math.nan


def table(n: int = 3, /, **more: list) -> pa.Table:
    grades = np.random.default_rng(0).uniform(0, 4, (len(RUBRIC.names), n))
    columns = {"id": [f"d{i}" for i in range(n)], "text": texts(n), **dict(zip(RUBRIC.names, grades)), **more}
    return pa.table({name: pa.array(values, from_pandas=False) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("weight", [1.0, NAN, NAN], "weight of 'd1' is nan, and weights are positive numbers; 2 such rows"),
        ("weight", [1.0, 1.0, None], "weight of 'd2' is nan"),
        ("weight", [0.0, 1.0, 1.0], "weight of 'd0' is 0,"),
        ("weight", [-2.0, 1.0, 1.0], "weight of 'd0' is -2,"),
        ("weight", [1.0, INF, 1.0], "weight of 'd1' is inf"),
        ("noise", [1.0, INF, 1.0], "noise of 'd1' is inf, and grades go from 0 to 4; 1 such rows"),
        ("noise", [None, NAN, 1.0], "noise of 'd1' is nan"),
        ("vowels", [77.0, 4.0, 78.0], "vowels of 'd0' is 77, and grades go from 0 to 4; 2 such rows"),
        ("vowels", [0.0, -1.0, 4.0], "vowels of 'd1' is -1"),
        ("overall", [7.0, None, -INF], "overall of 'd2' is -inf"),
    ],
)
def test_weights_and_grades_that_are_none_are_refused_by_row_and_column(column: str, values: list, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Labels.of(table(**{column: values}), RUBRIC)


def test_grades_that_failed_are_missing_and_ends_of_the_scale_are_on_it() -> None:
    means = [None, np.float32(4.00000048), 0.0]
    labels = Labels.of(table(noise=[None if one is None else float(one) for one in means], weight=[1, 2, 3]), RUBRIC)
    assert np.isnan(labels.scores_ND[0, 1]) and np.isfinite(labels.scores_ND[1:]).all()


def test_labels_that_taught_the_heads_are_measured_by_the_splits_of_then(tmp_path: Path) -> None:
    backbone = write_tiny(tmp_path / "model", "llama")
    labels = table(120, flagged=[i == 7 for i in range(120)])
    config = TrainConfig(taps=(2, 4), window_tokens=64, dtype="float32", judge=False, epochs=1)
    bundle = train_bundle(labels, RUBRIC, backbone, tmp_path / "heads", config)
    held_out = {name: [split_of(f"d{i}") for i in range(120)].count(name) for name in ("select", "audit")}
    found = evaluate_folder(tmp_path / "heads", backbone, labels)["splits"]
    assert {name: one["documents"] for name, one in found.items()} == held_out
    assert bundle.labels_sha != replace(Labels.of(labels, RUBRIC), texts=["x"] * 120).sha()
    others = table(60, noise=[1.0, 2.0] * 30)
    assert evaluate_folder(tmp_path / "heads", backbone, others)["splits"]["audit"]["documents"] == 60
