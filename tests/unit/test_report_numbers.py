"""The report's numbers against the run folder's own columns: funnel, medians, samples, scores, duplicates, curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report_page import RULES, make_run, write_json

from gristmill.report.measures import spearman
from gristmill.report.run_folder import collect
from gristmill.report.training import smooth


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


def column(run: Path, folder: str, name: str) -> pa.ChunkedArray:
    parts = sorted((run / folder).glob("part-*.parquet"))
    return pa.concat_tables(pq.read_table(path, columns=[name]) for path in parts).column(name)


def test_the_funnel_agrees_with_the_selection(run: Path) -> None:
    data = collect(run)
    reasons, kept = column(run, "selection", "reason").to_pylist(), column(run, "selection", "keep").to_numpy()
    rules = data.funnel["rules"]
    assert rules[0]["documents"] == 3000 and rules[0]["dropped_documents"] == 0
    for rule in rules[1:]:
        assert rule["dropped_documents"] == reasons.count(rule["rule"]) > 0
    assert rules[-1]["documents"] == kept.sum() == data.overview["documents_kept"]
    assert data.overview["tokens_kept"] == column(run, "annotations/tokens", "count").to_numpy()[kept].sum()


def test_a_source_that_a_rule_empties_has_nothing_left(run: Path, tmp_path: Path) -> None:
    write_json(
        tmp_path / "selection/funnel.json",
        {
            "rules": ["length"],
            "rows": [
                {"rule": "(all)", "source": "web", "documents": 10, "tokens": 100},
                {"rule": "(all)", "source": "code", "documents": 5, "tokens": 50},
                {"rule": "length", "source": "web", "documents": 4, "tokens": 60},
            ],
        },
    )
    last = collect(tmp_path).funnel["rules"][-1]
    assert (last["documents"], last["dropped_documents"], last["dropped_tokens"]) == (4, 11, 90)


def test_medians_of_kept_and_dropped(run: Path) -> None:
    columns = {(row["stage"], row["column"]): row for row in collect(run).measures["columns"]}
    words = column(run, "annotations/heuristics", "words").to_numpy()
    keep = column(run, "selection", "keep").to_numpy()
    row = columns["heuristics", "words"]
    assert row["kept"][1] == np.median(words[keep]) and row["dropped"][1] == np.median(words[~keep])
    assert ("near", "cluster") not in columns and ("tokens", "tokens") not in columns
    assert 0 < columns["scores", "quality"]["measured"] < 1


def test_samples_lie_on_their_side_of_the_threshold(run: Path) -> None:
    data = collect(run).samples
    views = {view["name"]: view for view in data["views"]}
    assert set(RULES) <= set(views)
    assert all(data["documents"][str(row)]["reason"] == "length" for row in views["length"]["dropped"])
    view = views["quality: scores.quality min"]
    limits = {"web": 0.45, "code": 0.4, "papers": 0.35}
    for side, sign in (("kept", 1), ("dropped", -1)):
        assert len(view[side]) == 4
        for row in view[side]:
            document = data["documents"][str(row)]
            margin = document["values"]["annotations/scores/quality"] - limits[document["source"]]
            assert document["keep"] == (side == "kept") and 0 <= margin * sign < 0.02
    assert "tau_drop: scores.probe" in views and "tau_keep: scores.quality" not in views  # the policy bounds it already
    assert collect(run).samples == data and collect(run, seed=1).samples != data


def test_scores_and_duplicates_add_up(run: Path) -> None:
    data = collect(run)
    quality = next(head for head in data.scores["heads"] if head["head"] == "quality")
    everything, *groups = quality["groups"]
    assert sum(everything["documents"]) == quality["scored"] == sum(sum(group["documents"]) for group in groups)
    taus = {group["source"]: (group["tau_drop"], group["tau_keep"]) for group in groups}
    assert taus == {"web": (0.22, 0.5), "code": (0.22, 0.45), "papers": (None, 0.35)}
    near = data.duplicates["stages"][1]
    cluster = column(run, "annotations/near", "cluster").to_numpy()
    assert round(near["redundant"]) == 3000 - len(np.unique(cluster))
    assert sum(bucket["documents"] for bucket in near["buckets"]) == 3000
    assert near["largest"][0]["size"] == np.unique(cluster, return_counts=True)[1].max()
    assert data.oracle["agreement"]["documents"] <= 450 and data.oracle["agreement"]["spearman"] > 0.6


def test_training_curves_leave_out_the_unfinished_line(run: Path) -> None:
    filtered, raw = collect(run).training["runs"]
    assert filtered["steps"]["last_step"] == 240 and filtered["steps"]["last_tokens"] == 240 * 8192
    assert filtered["validation"]["tokens"][-1] == 240 * 8192
    assert np.allclose(np.sum(filtered["router"]["load"], axis=1), 1)
    assert filtered["router"]["starved"] == 0 and raw["router"]["starved"] == 1


def test_spearman_gives_ties_their_mean_rank() -> None:
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([10.0, 20, 20, 30])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486833)
    assert spearman(np.ones(4), np.arange(4.0)) is None


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth(np.array([5.0, 1.0, 1.0]), 4)[0] == 5.0
    assert np.allclose(smooth(np.full(50, 3.0), 10), 3.0)
