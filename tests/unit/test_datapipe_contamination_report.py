"""The report of what matched what: counts by set and source, and both texts side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.base.errors import DataError, GristmillError
from gristmill.base.files import write_json
from gristmill.datapipe import cli
from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig, locate
from gristmill.datapipe.contamination.report import ContaminationReport, contamination_report, lines
from gristmill.datapipe.stages.contamination import Contamination
from gristmill.datapipe.workflow.stage import open_run

QUESTION = (
    "A miller grinds nine sacks of wheat before noon and twice as many after it; each sack gives forty loaves, and the "
    "baker's three daughters carry them to five villages along the river. How many loaves does each village get?"
)
ANSWER = "Nine and eighteen sacks are twenty seven, which give one thousand and eighty loaves: 216 for each village."
FILLER = " ".join(f"word{n}" for n in range(150))
TEXTS = [
    ("plain", FILLER, "web"),
    ("whole", f"{FILLER}\n{QUESTION}\n{ANSWER}\n{FILLER}", "web"),
    ("asked\x1b[31m", f"{FILLER} \x1b]0;evil\x07{QUESTION} 漢字 {FILLER}", "forum"),
    ("told", f"{ANSWER} {FILLER}", "forum"),
    ("code", "import this", "code"),
]


@pytest.fixture
def evals(tmp_path: Path) -> Path:
    folder = tmp_path / "evals"
    folder.mkdir()
    row = {"id": "mill\x1b-1", "question": QUESTION, "answer": ANSWER}
    (folder / "mills.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, evals: Path) -> Path:
    """A run of two partitions, as far as the report reads it."""
    folder = tmp_path / "run"
    stage = Contamination(EvalSetsConfig(sets=(str(evals),)))
    stage.setup({})
    for number, rows in enumerate((TEXTS[:2], TEXTS[2:])):
        documents = pa.table(dict(zip(("id", "text", "source"), map(list, zip(*rows)))))
        keep = pa.table({"keep": [row[0] != "whole" for row in rows]})
        for name, table in (("documents", documents), ("selection", keep)):
            write(folder / name, number, table)
        write(folder / "annotations" / "contamination", number, stage.annotate(documents, {}))
    names = {"documents": "documents", "contamination": "annotations/contamination", "selection": "selection"}
    write_json(folder / "ledger" / "outputs.json", names)
    return folder


def write(folder: Path, number: int, table: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"part-{number:05d}.parquet")


def test_a_run_keeps_the_report_where_the_sets_have_text(run: Path, evals: Path, tmp_path: Path) -> None:
    step = ContaminationReport(EvalSetsConfig(sets=(str(evals),)), limit=2)
    (tmp_path / "out").mkdir()
    assert step.has_texts and step.run(open_run(run), tmp_path / "out") == {"matched": 3}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == contamination_report(run, locate((str(evals),)), 2)
    assert written["matches"][0]["texts"]["question"] == QUESTION
    assert not ContaminationReport(EvalSetsConfig(sets=("bundled",))).has_texts


def test_counts_go_by_set_and_source(run: Path) -> None:
    report = contamination_report(run)
    assert report["documents"] == 5
    keys = ("name", "documents", "matched", "score_08", "ngram_13_any", "ngram_8_07", "kept")
    assert [tuple(row[key] for key in keys) for row in report["sets"]] == [("mills", 3, 3, 1, 3, 2, 2)]
    assert [tuple(row[key] for key in keys) for row in report["sources"]] == [
        ("web", 2, 1, 1, 1, 1, 0),
        ("forum", 2, 2, 0, 2, 1, 2),
        ("code", 1, 0, 0, 0, 0, 0),
    ]


def test_matches_come_strongest_first_with_both_texts(run: Path, evals: Path) -> None:
    report = contamination_report(run, locate([str(evals)]))
    assert [match["id"] for match in report["matches"]] == ["whole", "asked\x1b[31m", "told"]
    first, second, third = report["matches"]
    assert first["score"] == 1.0 and first["item"] == "mill\x1b-1" and not first["keep"] and second["keep"]
    assert first["texts"] == {"question": QUESTION, "answer": ANSWER, "passage": ""}
    assert [piece["matched"] for piece in first["excerpt"]] == [False, True, False]
    assert first["excerpt"][1]["text"].startswith("A miller") and first["excerpt"][0]["text"].endswith("word149\n")
    assert third["score"] == 0 and third["excerpt"][0] == {"text": ANSWER[:-1], "matched": True}
    assert [match["id"] for match in contamination_report(run, limit=1)["matches"]] == ["whole"]
    assert contamination_report(run, limit=0)["matches"] == []


def test_the_text_is_that_of_the_item_where_a_set_repeats_an_id(run: Path, evals: Path) -> None:
    row = {"id": "mill", "question": QUESTION, "answer": ANSWER}
    other = {"id": "mill", "question": f"{FILLER[::-1]}", "answer": "none"}
    (evals / "mills.jsonl").write_text(f"{json.dumps(other)}\n{json.dumps(row)}\n")
    stage = Contamination(EvalSetsConfig(sets=(str(evals),)))
    stage.setup({})
    for number in range(2):
        documents = pq.read_table(run / "documents" / f"part-{number:05d}.parquet")
        write(run / "annotations" / "contamination", number, stage.annotate(documents, {}))
    first = contamination_report(run, locate([str(evals)]))["matches"][0]
    assert first["item"] == "mill (line 2)" and first["texts"]["question"] == QUESTION


def test_terminals_see_no_control_characters_and_indexes_no_text(run: Path, evals: Path) -> None:
    told = "\n".join(lines(contamination_report(run, locate([str(evals)]))))
    assert "5 documents, 1 with a score of 0.8 or more" in told
    assert "\x1b" not in told and "\x07" not in told and "\\x1b]0;evil" in told
    assert f"question  {QUESTION}" in told and "[A miller" in told
    for sets in ((), locate(["bundled"])):
        told = "\n".join(lines(contamination_report(run, sets)))
        assert told.count("(no text: name its folder with --sets)") == 3


def test_a_run_without_selection_counts_nothing_as_kept(run: Path) -> None:
    write_json(
        run / "ledger" / "outputs.json", {"documents": "documents", "contamination": "annotations/contamination"}
    )
    report = contamination_report(run)
    assert all(row["kept"] is None for by in ("sets", "sources") for row in report[by])
    assert " -" in lines(report)[3]


def test_runs_that_do_not_fit_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="not a run folder"):
        contamination_report(tmp_path)
    write(run / "selection", 1, pa.table({"keep": [True]}))
    with pytest.raises(DataError, match="selection has 1 rows, contamination 3"):
        contamination_report(run)
    write_json(run / "ledger" / "outputs.json", {"documents": "documents"})
    with pytest.raises(GristmillError, match="contamination is not measured"):
        contamination_report(run)


def test_the_command_prints_text_or_json(
    run: Path, evals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["datapipe", "contamination", str(run), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    assert "web whole has mills mill\\x1b-1, dropped" in told("--limit", "1")
    assert json.loads(told("--sets", str(evals), "--json"))["matches"][0]["texts"]["answer"] == ANSWER
