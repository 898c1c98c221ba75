"""Runs that are damaged, half made, or of several versions: each fault costs its own panel, and no number is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_report_page import make_run

from gristmill.base.errors import DataError
from gristmill.report import questions, runs
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import open_rows
from gristmill.report.desk import policy
from gristmill.report.desk.answers import index_of
from gristmill.report.live_run import LiveFolder, LiveRun
from gristmill.report.page import render
from gristmill.report.reading import rules
from gristmill.report.reading.catalogue import catalogue
from gristmill.report.run_folder import as_json, report_of
from gristmill.report.training.log import reading

DEEP = "[" * 5_000 + "]" * 5_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run", documents=300, text_words=20)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def panels(run: Path) -> dict[str, Any]:
    data = report_of(LiveRun(run))[0]
    render(data).encode()
    return json.loads(as_json(dataclasses.asdict(data)))


def ask(run: Path, question: str, **asked: Any) -> dict[str, Any]:
    values = {name: str(value) for name, value in asked.items()}
    return json.loads(as_json(questions.answer(question, LiveRun(run), Asked(values))))


def change(path: Path, made: Callable[[pa.Table], pa.Table]) -> None:
    table = made(pq.read_table(path))
    path.unlink()
    pq.write_table(table, path)


@pytest.mark.parametrize(
    "text",
    ["[]", "7", DEEP, '{"name": "\\ud800", "nodes": []}', '{"nodes": [{"name": "a", "seconds": "x"}]}', '{"nodes": 3}'],
)
def test_a_strange_run_json_costs_what_it_tells(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    told = panels(run)
    assert "error" not in told["measures"] and told["overview"]["documents"] == 300 and told["overview"]["name"]


def test_json_that_is_too_deep_costs_its_panel(run: Path) -> None:
    (run / "comparison/comparison.json").write_text(DEEP)
    (run / "shards/raw/manifest.json").write_text(DEEP)
    told = panels(run)
    assert told["comparison"]["error"] and told["artifacts"]["error"] and "error" not in told["funnel"]
    assert "error" in ask(run, "shard_facts", dataset="shards/raw")


def test_names_of_files_may_be_no_text(run: Path) -> None:
    with open(os.fsencode(run) + b"/documents/\xff", "w"):  # noqa: PTH123 - a Path would do, a name of it would not
        assert "error" not in panels(run)["measures"]
    odd = run.with_name(os.fsdecode(b"\xff"))
    run.rename(odd)
    (odd / "run.json").unlink()
    assert panels(odd)["overview"]["name"]


def test_a_partition_of_another_version_of_a_stage_counts_as_not_measured(run: Path) -> None:
    change(run / "annotations/heuristics/part-00001.parquet", lambda table: table.drop_columns(["words"]))
    row = next(one for one in panels(run)["measures"]["columns"] if one["column"] == "words")
    assert row["measured"] == pytest.approx(200 / 300)
    told = ask(run, "documents", sort="heuristics.words", at=190, limit=20)["documents"]
    assert [one["value"] is None for one in told] == [False] * 10 + [True] * 10


def test_values_of_other_documents_are_not_told_of_these(run: Path) -> None:
    change(run / "annotations/heuristics/part-00001.parquet", lambda table: table.slice(10))
    assert "90 rows beside 100 documents" in ask(run, "document", row=150)["error"]
    assert ask(run, "document", row=50)["id"]


def test_what_nobody_decided_about_is_neither_kept_nor_dropped(run: Path) -> None:
    (run / "selection/part-00001.parquet").unlink()
    part = {"missing": "selection/part-00001.parquet", "made_by": "the select stage"}
    assert panels(run)["samples"] == part and ask(run, "desk") == part
    assert [one["name"] for one in ask(run, "choices")["outcomes"]] == ["all"]
    assert "missing" in ask(run, "funnel_by_language")


def test_a_run_without_documents_says_so(run: Path) -> None:
    for path in [*run.glob("documents/*"), *run.glob("annotations/*/*"), *run.glob("selection/part*")]:
        change(path, lambda table: table.slice(0, 0))
    assert not [name for name, panel in panels(run).items() if "error" in panel]
    for question in ("document", "cluster", "choices", "documents", "desk", "difference"):
        assert ask(run, question)["missing"] == "a document", question


@pytest.mark.parametrize("text", ['{"rules": [], "policy": {"name": "x"}}', '{"rules": [{}]}', '{"rules": [3]}'])
def test_a_policy_without_rules_is_told_in_one_line(run: Path, text: str) -> None:
    (run / "selection/policy.json").write_text(text)
    with pytest.raises(DataError, match="not as the select stage writes it"):
        policy.written(run)
    assert "make it again" in ask(run, "desk")["error"] or "made again" in ask(run, "desk")["error"]


def test_numbers_too_large_to_be_any_are_refused(run: Path) -> None:
    with pytest.raises(AskedWrong, match="is no number"):
        ask(run, "desk_moved", changes=json.dumps({"length": {"min": 10**400}}))


def test_changes_of_thirty_rules_in_eight_sources_can_be_asked() -> None:
    bounds = {"min": -12345.67, "max": 98765.43}
    changes = {f"a_rule_of_some_name_{n}": {"sources": {f"source{k}": bounds for k in range(8)}} for n in range(30)}
    assert Asked({"changes": json.dumps(changes, separators=(",", ":"))}).text("changes")


def test_tau_drop_is_one_even_at_zero_and_none_of_a_source_that_calibration_never_saw(run: Path) -> None:
    """As scorer.scoring.decide.thresholds: nothing is known of what exits would cost there."""
    calibration = {"web": {"tau_drop": 0.0, "tau_keep": 0.5}, "(all)": {"tau_drop": 0.3, "tau_keep": 0.4}}
    rows = open_rows(run)
    found = rules.checks({}, calibration, ["web", "code"], rows)
    assert found[-1]["name"] == "tau_drop" and found[-1]["sources"] == {"web": {"min": 0.0}}
    drop, keep = rules.thresholds({}, calibration, rows)
    assert (drop["default"], drop["sources"]) == (None, {"web": 0.0})
    assert (keep["default"], keep["sources"]) == (0.4, {"web": 0.5})


def test_where_calibration_found_no_threshold_a_document_has_to_be_measured_all_the_same(run: Path) -> None:
    """As datapipe.policy decides: no number is refused there, but what has none is dropped."""
    nothing = {"min": None, "max": None, "allowed": []}
    rule = {"name": "q", "column": "scores.quality", "keep": None, "missing": "drop"}
    written = {"name": "p", "rule": [rule | {"min": "@tau_keep", "sources": {"code": {}}}]}
    applied = [rule | {"sources": dict.fromkeys(("web", "code", "papers"), nothing)}]
    (run / "selection/policy.json").write_text(json.dumps({"name": "p", "rules": applied, "policy": written}))
    rows = open_rows(run)
    unscored = np.isnan(rows.numbers("annotations/scores", "quality"))
    codes, names = rows.labels("documents", "source")
    expected = unscored & (codes != names.index("code"))
    assert ask(run, "documents", rule="q", how="any")["of"] == expected.sum() > 0
    row = int(np.flatnonzero(expected)[0])
    assert "q" in ask(run, "document", row=row)["outside"]
    assert "q" not in ask(run, "document", row=int(np.flatnonzero(~unscored)[0]))["outside"]


def test_the_desk_and_the_reader_understand_a_policy_alike(run: Path) -> None:
    rule = {"keep": None, "missing": "drop"}
    asked = [
        rule
        | {"name": "words", "column": "heuristics.words", "min": 20, "sources": {"code": {}, "web": {"max": 200.5}}},
        rule | {"name": "label", "column": "language.label", "allowed": ["en", "xx"], "sources": {"web": {}}},
        rule | {"name": "bigram", "column": "heuristics.top_bigram_fraction", "max": 0.1},
        rule | {"name": "judged", "column": "scores.judge", "min": "@tau_drop"},
        rule | {"name": "scored", "column": "scores.quality", "min": "@tau_keep", "missing": "keep"},
        rule | {"name": "exit", "column": "scores.exit", "max": 0},
    ]
    groups = {"web": {"tau_drop": None, "tau_keep": 0.5}, "(all)": {"tau_drop": 0.25, "tau_keep": None}}
    (run / "thresholds/calibration.json").write_text(json.dumps({"groups": groups}))

    def applied(one: dict[str, Any], source: str) -> dict[str, Any]:
        """As the select stage writes it."""
        own, group = one.get("sources", {}).get(source, one), groups.get(source, groups["(all)"])
        low, high = (group[it[1:]] if isinstance(it, str) else it for it in (own.get("min"), own.get("max")))
        return {"min": low, "max": high, "allowed": own.get("allowed", [])}

    told = [rule | one | {"sources": {name: applied(one, name) for name in ("web", "code", "papers")}} for one in asked]
    told = [{key: one[key] for key in ("name", "column", "keep", "missing", "sources")} for one in told]
    policy_json = {"name": "p", "rules": told, "policy": {"name": "p", "rule": asked}}
    (run / "selection/policy.json").write_text(json.dumps(policy_json))
    index, held = index_of(LiveRun(run)), catalogue(LiveRun(run))
    checks = {check["name"]: check for check in held.rules}
    for one in index.written.rules:
        refused = rules.failing(checks[one.name], held.rows, held.source, held.reason)
        assert np.array_equal(refused, index.fails(one)), one.name
        assert one.name == "exit" or 0 < refused.sum() < 300, one.name


def test_one_damaged_run_hides_no_other(run: Path) -> None:
    (run.parent / "other").mkdir()
    (run.parent / "other/run.json").write_text(DEEP)
    told = questions.FOLDER_QUESTIONS["runs"](LiveFolder(run.parent), Asked())["runs"]
    assert [(one["key"], bool(one["error"])) for one in told] == [("other", True), ("run", False)]


def test_whole_numbers_are_not_rounded() -> None:
    told = json.loads(
        as_json({"step": 1_234_567.0, "tokens": np.array([123_456_789.0]), "loss": 1.23456789, "far": 1e300})
    )
    assert told == {"step": 1_234_567, "tokens": [123_456_789], "loss": 1.23457, "far": 1e300}


def test_lists_in_a_log_are_of_layers_and_have_an_end(tmp_path: Path) -> None:
    step = {
        "type": "step",
        "loss": 1.0,
        "norms": {"a": [1, 2]},
        "router": {"entropy": [0.0] * 100_000, "busiest": [1.0]},
    }
    (tmp_path / "events.jsonl").write_text(
        json.dumps(step | {"step": 1}) + "\n" + json.dumps(step | {"step": 2}) + "\n"
    )
    with reading(tmp_path) as log:
        assert log.steps.names("norms/") == [] and log.steps.names("router/") == ["router/busiest"]


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    real = Path.is_file

    def refused(path: Path) -> bool:
        if "theirs" in path.parts:
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert [run.key for run in runs.find(tmp_path)] == ["mine"]


def test_only_what_changed_is_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, read = LiveRun(run), list[str]()
    before = report_of(live)[0]
    real = live.kept
    monkeypatch.setattr(
        live, "kept", lambda name, folders, make: real(name, folders, lambda: read.append(name) or make())
    )
    (run / "quarantine/more.jsonl").write_text('{"reason": "torn", "rows": 5, "file": "a"}\n')
    after = report_of(live)[0]
    assert read == ["quarantine"] and after.heads is before.heads and after.artifacts is before.artifacts
