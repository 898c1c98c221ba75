"""The report's numbers against the run folder's own columns: funnel, medians, samples, scores, duplicates, curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report_page import RULES, make_run, write_json

from gristmill.report.measures import spearman
from gristmill.report.run_folder import collect


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
    assert not [stage for stage, _ in columns if stage == "sketch"]  # hashes beyond 2**63, not measurements
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
    assert taus == {"web": (0.22, 0.5), "code": (0.22, 0.45), "papers": (None, 0.35)}  # papers: those of (all)
    near = data.duplicates["stages"][1]
    cluster = column(run, "annotations/near", "cluster").to_numpy()
    assert round(near["redundant"]) == 3000 - len(np.unique(cluster))
    assert sum(bucket["documents"] for bucket in near["buckets"]) == 3000
    assert near["largest"][0]["size"] == np.unique(cluster, return_counts=True)[1].max()
    assert data.oracle["agreement"]["documents"] <= 450 and data.oracle["agreement"]["spearman"] > 0.6
    assert [d["name"] for d in data.oracle["dimensions"]][-2:] == ["originality", "quality"]  # mass is no dimension


def test_the_score_axis_covers_the_data_and_every_threshold(run: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "run"
    shutil.copytree(run, narrow)
    draw = np.random.default_rng(1)
    for path in sorted((narrow / "annotations/scores").glob("*.parquet")):
        table = pq.read_table(path)
        scores = draw.normal(0.45, 0.01, table.num_rows).astype(np.float32)
        scores[0] = 0.99  # one straggler must not squeeze the rest into two bars
        index = table.column_names.index("quality")
        pq.write_table(table.set_column(index, "quality", pa.array(scores)), path)
    quality = collect(narrow).scores["heads"][0]
    assert 0.3 < quality["low"] < 0.35 and 0.5 < quality["high"] < 0.51  # tau_keep: 0.35 of papers, 0.5 of web
    assert quality["beyond"] >= 3 and sum(quality["groups"][0]["documents"]) == 3000
    calibration = narrow / "thresholds/calibration.json"
    calibration.unlink()
    quality = collect(narrow).scores["heads"][0]
    assert 0.41 < quality["low"] < 0.43 and 0.47 < quality["high"] < 0.49
    assert np.count_nonzero(quality["groups"][0]["documents"]) > 30


def test_the_values_that_a_rule_asked_for_tell_why_a_document_was_dropped(run: Path) -> None:
    data = collect(run).samples
    rules = {rule["name"]: rule for rule in data["rules"]}
    assert list(rules) == [*RULES, "tau_drop"]  # the policy's order; the probe is bounded by the calibration alone
    assert rules["repetition"]["sources"]["code"] == {"max": 0.3} and rules["repetition"]["sources"]["web"] == {
        "max": 0.2
    }
    assert rules["language"]["sources"]["web"] == {"allowed": ["en"]} and rules["near_duplicate"]["keep"] == "first"
    assert set(rules["tau_drop"]["sources"]) == {"web", "code"}
    for document in data["documents"].values():
        assert not [key for key in document["values"] if "sketch" in key]
        if document["keep"]:
            assert set(document["outside"]) <= {"tau_drop"}
        elif not document["reason"].endswith("duplicate"):
            asked = list(rules)[: list(rules).index(document["reason"]) + 1]
            assert [name for name in document["outside"] if name in asked] == [document["reason"]]


def test_a_bound_that_a_source_lifts_is_not_asked_of_it(run: Path, tmp_path: Path) -> None:
    lifted = tmp_path / "run"
    shutil.copytree(run, lifted)
    own = {"web": {"min": 20.0, "max": None, "allowed": []}, "code": {"min": None, "max": None, "allowed": []}}
    rule = {"name": "length", "column": "heuristics.words", "keep": None, "missing": "drop", "sources": own}
    write_json(lifted / "selection/policy.json", {"name": "demo", "rules": [rule]})
    data = collect(lifted).samples
    assert data["rules"][0]["sources"] == {"web": {"min": 20.0}}
    view = next(view for view in data["views"] if view["name"] == "length: heuristics.words min")
    shown = [data["documents"][str(row)] for row in (*view["kept"], *view["dropped"])]
    assert shown and {document["source"] for document in shown} == {"web"}


def test_the_comparison_says_what_happened_set_by_set(run: Path) -> None:
    data = collect(run)
    assert data.overview["verdict"] == {
        "a": "filtered",
        "b": "raw",
        "first": {"name": "all", "documents": 400, "winner": None, "clear": False},
        "others": [
            {"winner": "filtered", "clear": True, "sets": ["kept by the policy", "web"]},
            {"winner": "raw", "clear": True, "sets": ["code"]},
            {"winner": None, "clear": True, "sets": ["papers"]},  # too few documents
        ],
    }
    papers = data.comparison["sets"][-1]
    assert papers["winner"] is None and papers["clear"]  # the interval alone would have called it


def test_a_comparison_that_cannot_be_understood_says_where(run: Path, tmp_path: Path) -> None:
    written = {"a": "filtered", "b": "raw", "sets": [{"name": "all", "verdict": "better"}]}
    write_json(tmp_path / "comparison/comparison.json", written)
    assert "sets[0] has no documents, a_bits_per_byte" in collect(tmp_path).comparison["error"]
    row = dict.fromkeys(("name", "documents", "a_bits_per_byte", "b_bits_per_byte", "difference"), 1)
    written["sets"] = [{**row, "ci95": [0, 1], "verdict": "superb"}]
    write_json(tmp_path / "comparison/comparison.json", written)
    assert "'superb' is none of better" in collect(tmp_path).comparison["error"]


def test_heads_are_told_by_bundle_and_split_with_the_numbers_of_metrics_json(run: Path) -> None:
    heads = collect(run).heads
    assert [bundle["name"] for bundle in heads["bundles"]] == ["general", "code"]
    for bundle in heads["bundles"]:
        written = json.loads((run / "heads" / bundle["name"] / "metrics.json").read_text())
        assert bundle["training"]["judge_shipped"] and bundle["training"]["reason"].startswith(
            "judge (encoder) - probe"
        )
        assert [split["name"] for split in bundle["splits"]] == ["audit", "select"]
        split, source = bundle["splits"][0], written["splits"]["audit"]
        rows = {row["name"]: row for row in split["predictors"]}
        assert list(rows) == list(source["predictors"]) and rows["judge"]["head"] and not rows["fasttext"]["head"]
        for name, row in rows.items():
            quality = source["predictors"][name]["quality"]
            assert (row["spearman"], row["mae_ci95"]) == (quality["spearman"], quality["mae_ci95"])
            assert row["auroc"] == source["decision"][name]["auroc"]
        assert split["head"] == "judge" and {one["name"] for one in split["against"]} >= {"log length", "fasttext"}
        assert [row["name"] for row in split["dimensions"]] == ["clear", "deep", "factual"]
        assert split["dimensions"][0]["ceiling"] == source["ceiling"]["clear"]["ceiling"]
        assert {row["by"] for row in split["slices"]} == {"source", "language", "length"}
        assert [one["head"] for one in split["reliability"]] == ["judge", "probe"]
        assert len(split["chances"]) == 3 and split["chances"][0]["levels"][0]["level"] == "1"
        curve = bundle["exits"]["splits"][0]
        assert curve["saved_full"] == written["exits"]["splits"]["audit"]["saved_full"] and curve["n_good"] > 50


def test_thresholds_stand_with_their_bundle_and_as_applied_with_the_scores(run: Path) -> None:
    data = collect(run)
    general, code = (bundle["calibration"] for bundle in data.heads["bundles"])
    assert [group["name"] for group in general["groups"]] == ["papers", "web", "(all)"]
    assert [group["name"] for group in code["groups"]] == ["code", "(all)"]
    assert general["certificate"]["mode"] == "certified" and "deciles" not in general["groups"][0]
    assert general["groups"][0]["drop_parent"] is None and general["groups"][0]["oracle"]["upper"] <= 0.05
    drift = {row["source"]: row["drifted"] for row in data.heads["drift"]["sources"]}
    assert set(drift) == {"web", "papers", "code"} and drift["code"]


def test_a_bundle_without_thresholds_or_drift_says_what_makes_them(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial)
    (partial / "heads/code/calibration.json").unlink()
    shutil.rmtree(partial / "drift")
    heads = collect(partial).heads
    missing = {"missing": "heads/code/calibration.json", "made_by": "scorer calibrate"}
    assert "groups" in heads["bundles"][0]["calibration"] and heads["bundles"][1]["calibration"] == missing
    assert heads["drift"] == {"missing": "drift/drift.json", "made_by": "the drift step"}


def test_published_shards_are_counted_as_their_manifests_do(run: Path) -> None:
    raw = next(artifact for artifact in collect(run).artifacts["artifacts"] if artifact["name"] == "raw")
    web = raw["sources"][0]
    assert (web["documents"], web["tokens"], web["shards"]) == (21, 3000, 3)  # 10, 10 of which one goes on, 2 held out
    assert (web["valid_documents"], web["valid_tokens"], web["vocabulary"]) == (2, 1000, 4096)
    assert raw["mixtures"] == ["web40_code20"]
    published = {artifact["name"]: artifact["published"] for artifact in collect(run).artifacts["artifacts"]}
    assert published == {"raw": False, "filtered": True}


def test_quarantine_counts_every_row_of_a_torn_file(tmp_path: Path) -> None:
    lines = [
        {"file": "a.gz", "row": 3, "reason": "not JSON", "detail": "column 12", "sample": "{", "rows": 1},
        {"file": "b.gz", "row": None, "reason": "torn file", "detail": "gzip ends early", "sample": "", "rows": 120},
    ]
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine/00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = collect(tmp_path).quarantine
    assert data["total"] == 121
    torn, bad = data["reasons"]
    assert (torn["reason"], torn["count"], bad["count"]) == ("torn file", 120, 1)
    assert torn["examples"][0] == {
        "file": "b.gz",
        "row": None,
        "rows": 120,
        "detail": "gzip ends early",
        "sample": None,
    }


def test_spearman_gives_ties_their_mean_rank() -> None:
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([10.0, 20, 20, 30])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486833)
    assert spearman(np.ones(4), np.arange(4.0)) is None
