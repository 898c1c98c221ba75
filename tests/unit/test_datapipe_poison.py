"""A document that a stage cannot handle is set aside by name, counted and explained; all others are as ever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.poison import BAD, POLICY, Tokens, Words, documents, fates, hashes, make

from gristmill.base.errors import GristmillError, PartialError, UsageError
from gristmill.base.files import read_json
from gristmill.datapipe import cli
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.explain import explain
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.run_diff import run_diff
from gristmill.datapipe.run_diff import table as diff_table
from gristmill.datapipe.select import Select
from gristmill.datapipe.what_if import policy_of, what_if
from gristmill.datapipe.what_if import table as what_if_table
from gristmill.datapipe.workflow import quarantine, runner
from gristmill.datapipe.workflow.executor import InProcess
from gristmill.datapipe.workflow.gc import gc
from gristmill.datapipe.workflow.quarantine import marks_of
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step, open_run
from gristmill.datapipe.workflow.verify import verify

ONLY_SECOND = {"name": "test", "rule": [{"name": "double", "column": "second.double", "min": 0}]}


def test_every_document_is_kept_dropped_or_quarantined_by_id(tmp_path: Path) -> None:
    lines = [*documents(3, 17), "not JSON\n", {"id": "copy", "text": "v v v v v", "source": "code"}]
    run = make(tmp_path / "run", lines)
    found = fates(run)
    assert {name for name, fate in found.items() if fate == "quarantined"} == {"d3", "d17"}
    # Without their text, both are of no words, and duplicates of each other: no rule is asked about that.
    assert {name: fate for name, fate in found.items() if fate not in (None, "quarantined")} == {
        "d1": "short", "copy": "repeated",
    }  # fmt: skip
    record = read_json(run / "run.json")
    assert record["quarantine"] == {
        "total": 3, "documents": 41, "by_reason": {"not JSON": 1, "stage heuristics": 2},
    }  # fmt: skip
    nodes = {node["name"]: node["counts"] for node in record["nodes"]}
    assert nodes["heuristics"] == {"documents": 41, "quarantined": 2} and nodes["tokens"] == {"documents": 41}
    assert nodes["selection"]["kept"] + nodes["selection"]["quarantined"] + 2 == nodes["selection"]["documents"] == 41
    assert nodes["documents"] == {"documents": 41, "quarantined": 1}
    funnel = read_json(run / "selection" / "funnel.json")
    assert funnel["rules"] == ["quarantined", "short", "repeated", "no_tokens"]
    left = {
        name: sum(row["documents"] for row in funnel["rows"] if row["rule"] == name)
        for name in ("(all)", *funnel["rules"])
    }
    assert left == {"(all)": 41, "quarantined": 39, "short": 38, "repeated": 37, "no_tokens": 37}
    assert verify(run) > 0 and gc(run).freed == ()


def test_marks_are_content_and_an_undisturbed_run_has_none(tmp_path: Path) -> None:
    run, clean = make(tmp_path / "run", documents(3, 17)), make(tmp_path / "clean", documents(), Words(lambda _: False))
    parts = sorted((run / "annotations" / "heuristics").glob("*.parquet"))
    reason = "stage 'heuristics' raised ValueError: cannot handle <object object at 0x...>"
    assert [marks_of(part) for part in parts] == [{2: reason}, {6: reason}, {}, {}]
    for name in ("annotations/exact", "annotations/second", "selection"):  # what was made of a marked row
        assert [marks_of(run / name / part.name) for part in parts] == [{2: reason}, {6: reason}, {}, {}]
    assert not any(marks_of(part) for part in (run / "annotations" / "tokens").glob("*.parquet"))
    for name in ("heuristics", "exact", "second", "tokens"):  # the partitions without any are byte for byte the same
        for part in parts[2:]:
            theirs = clean / "annotations" / name / part.name
            assert (run / "annotations" / name / part.name).read_bytes() == theirs.read_bytes()
    assert all(not (pq.read_metadata(path).metadata or {}).get(quarantine.KEY) for path in clean.rglob("*.parquet"))
    assert not list((clean / "quarantine").rglob("part-*"))
    ours, theirs = (open_run(folder).table("heuristics").to_pylist() for folder in (run, clean))
    differ = [row for row, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    assert differ == [2, 16]


def test_people_read_who_where_and_why(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ["bad\n", *documents(3)])
    (line,) = (run / "quarantine" / "heuristics" / "part-00000-00000.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert list(told) == ["id", "source", "file", "row", "stage", "reason", "traceback"]
    assert (told["id"], told["source"], told["file"], told["row"], told["stage"]) == (
        "d3", "web", "web.jsonl", 4, "heuristics",
    )  # fmt: skip
    assert told["reason"].startswith("stage 'heuristics' raised ValueError: cannot handle")
    assert told["traceback"].splitlines()[-1] == told["reason"].removeprefix("stage 'heuristics' raised ")
    assert "support/poison.py" in told["traceback"] and "in annotate" in told["traceback"]


def test_too_many_by_one_stage_end_the_run_with_exit_4_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lines = tmp_path / "run", documents(3, 17)
    said = (
        r"2 of 40 rows of stage 'heuristics' \(5.00%\) were quarantined, more than --max-bad-fraction 0.04; reasons in"
    )
    monkeypatch.setattr(runner, "start", lambda *_args: InProcess())
    for workers in (0, 2, 0, 2):
        with pytest.raises(PartialError, match=said) as caught:
            make(run, lines, limit=0.04, workers=workers)
        assert caught.value.exit_code == 4
        record = read_json(run / "run.json")
        assert record["status"] == "failed" and record["quarantine"]["by_reason"] == {"stage heuristics": 2}
        status = {node["name"]: (node["status"], node["error"]) for node in record["nodes"]}
        assert status["heuristics"][0] == "failed" and "2 of 40 rows" in status["heuristics"][1]
        assert not (run / "selection").exists()
    assert "heuristics: 2 of 40 rows quarantined, done in" in capsys.readouterr().err
    make(run, lines, limit=0.05)  # what was done is kept
    assert {node["name"]: node["status"] for node in read_json(run / "run.json")["nodes"]}["heuristics"] == "cached"
    assert fates(run)["d3"] == "quarantined"


def test_a_stage_at_fault_fails_its_partition_by_a_document_s_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        r"heuristics, part-00000-00000\.parquet: StageFault: ValueError: cannot handle .* \(2 of 2 rows that were "
        r"tried alone raise, first document 'd3': it is the stage that is at fault\)"
    )
    with pytest.raises(GristmillError, match=said) as caught:
        make(tmp_path / "run", documents(3, 4, 17))
    assert caught.value.exit_code == 1
    assert 'raise self._kind(f"cannot handle {object()!r}' in capsys.readouterr().err  # the original traceback
    assert {path.stem for path in (tmp_path / "run" / "annotations" / "heuristics").iterdir()} == {
        "part-00000-00001", "part-00000-00002", "part-00000-00003",
    }  # fmt: skip
    make(tmp_path / "run", documents(3, 17))
    assert fates(tmp_path / "run")["d17"] == "quarantined"


class Mended(Words):
    version = 2

    def __init__(self) -> None:
        super().__init__(lambda _: False)


def test_a_stage_that_was_mended_ends_in_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    lines = documents(3, 17)
    run = make(tmp_path / "run", lines)
    stray = run / "quarantine" / "heuristics" / "mine.txt"
    stray.write_text("a note")
    clean = make(tmp_path / "clean", lines, Mended())
    assert hashes(run) != hashes(clean)
    make(run, lines, Mended())
    assert stray.read_text() == "a note"
    stray.unlink()
    assert hashes(run) == hashes(clean)
    assert read_json(run / "run.json")["quarantine"]["total"] == 0
    assert fates(run) == {f"d{n}": "short" if n == 1 else None for n in range(1, 41)}
    make(run, lines, Words())  # and back
    assert hashes(run) == hashes(make(tmp_path / "again", lines))


def test_inputs_may_move_and_the_listings_with_them(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "in"
    folder.mkdir()
    for name, lines in (("a", documents(count=5)), ("b", documents(3, count=12))):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({**line, "id": name + line["id"]}) + "\n" for line in lines)
        )
    words, listing = Words(), run / "quarantine" / "heuristics"

    def go(*names: str) -> list[str]:
        words.calls.clear()
        ingest = Ingest(
            tuple(str(folder / f"{name}.jsonl") for name in names), IngestConfig(rows_per_partition=10), 0.2
        )
        Runner(
            run, ingest, [words, Tokens(), Select(read_policy({**POLICY, "rule": POLICY["rule"][:1]}, "t"))], workers=0
        ).run()
        return [path.name for path in sorted(listing.iterdir())]

    assert go("b") == ["part-00000-00000.jsonl"] and words.calls
    text = (listing / "part-00000-00000.jsonl").read_text()
    assert go("a", "b") == ["part-00001-00000.jsonl"] and words.calls == [5]
    assert (listing / "part-00001-00000.jsonl").read_text() == text and fates(run)["bd3"] == "quarantined"
    assert go("a") == [] and not words.calls


def test_gc_takes_the_listings_of_a_stage_that_is_no_more(tmp_path: Path) -> None:
    class Gone(Words):
        name, folder = "gone", "annotations/gone"

    run = make(tmp_path / "run", documents(3), more=[Gone()])
    assert (run / "quarantine" / "gone").is_dir() and fates(run)["d3"] == "quarantined"
    make(run, documents(3))
    assert read_json(run / "run.json")["quarantine"]["by_reason"] == {"stage heuristics": 1}
    assert {item.path for item in gc(run).freed} == {"annotations/gone", "quarantine/gone", "ledger/gone"}
    assert (run / "quarantine" / "heuristics" / "part-00000-00000.jsonl").exists()


def test_only_what_the_selection_reads_sets_a_document_aside(tmp_path: Path) -> None:
    lines = [*documents(3), *documents(6, count=6, word="toxin")[5:]]
    lines[-1] = {**lines[-1], "id": "t6"}
    run = make(tmp_path / "run", lines)
    assert {name for name, fate in fates(run).items() if fate == "quarantined"} == {"d3", "t6"}
    inputs = open_run(run)
    for policy, aside in (
        (ONLY_SECOND, [2]),  # which is made of the annotation that failed
        ({"name": "x", "rule": [{"name": "t", "column": "tokens.count", "min": 0}]}, [40]),
        ({"name": "x", "rule": [{"name": "d", "column": "documents.row", "min": 0}]}, []),
        ({"name": "x", "edit": [{"column": "heuristics.cut"}]}, [2]),  # what should be cut is not known
    ):
        from gristmill.datapipe.select import apply

        chosen = read_policy(policy, "x")
        assert [row for row, at in enumerate(apply(chosen, inputs).reason) if at == len(chosen.rule)] == aside


def test_no_rule_may_be_called_quarantined() -> None:
    with pytest.raises(UsageError, match="rule 'quarantined': so are documents called that a stage cannot handle"):
        read_policy({"name": "x", "rule": [{"name": "quarantined", "column": "a.b", "min": 1}]}, "x")


class Drawn(Step):
    """Some texts for a stage that is not over documents."""

    name, folder, config = "drawn", "drawn", None
    requires = ("documents",)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        texts = inputs.table("documents", ("text", "source"))
        pq.write_table(texts, out / "part-00000.parquet")
        return {}


class Grades(Words):
    name, folder, over = "grades", "grades", "drawn"


def test_a_stage_over_a_sample_marks_rows_and_no_document(tmp_path: Path) -> None:
    run = make(tmp_path / "run", documents(3, count=9), Words(lambda _: False), more=[Drawn(), Grades()])
    assert "quarantined" not in fates(run).values()
    assert list(marks_of(run / "grades" / "part-00000.parquet")) == [2]
    told = json.loads((run / "quarantine" / "grades" / "part-00000.jsonl").read_text())
    assert (told["row"], told["source"], "id" in told) == (2, "web", False)
    with pytest.raises(PartialError, match=r"1 of 9 rows of stage 'grades' \(11.11%\)"):
        make(run, documents(3, count=9), Words(lambda _: False), more=[Drawn(), Grades()], limit=0.1)
    with pytest.raises(GristmillError, match="first row 2: it is the stage"):
        make(run, documents(3, 4, count=9), Words(lambda _: False), more=[Drawn(), Grades()])


class Marked(Stage):
    """As Words, and known by its module's name to workers in other processes."""

    name, folder, config = "heuristics", "annotations/heuristics", None

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        if any(BAD in text for text in table["text"].to_pylist()):
            raise ValueError(f"bad at {object()!r}")
        return pa.table({"words": pc.list_value_length(pc.utf8_split_whitespace(table["text"]))})


def test_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where Ray's workers find this module's stages
    one, many = (make(tmp_path / f"by{n}", documents(3, 17), Marked(), workers=n) for n in (0, 2))
    reasons = ["stage 'heuristics' raised ValueError: bad at <object object at 0x...>"]
    assert [*marks_of(many / "annotations" / "heuristics" / "part-00000-00000.parquet").values()] == reasons
    assert hashes(one) == hashes(many)


# Commands ------------------------------------------------------------------------------------------------------------


def test_explain_says_that_and_why_and_what_ingest_could_not_read(tmp_path: Path) -> None:
    run = make(tmp_path / "run", ['{"id": "torn", "text": "x\n', *documents(3), {"id": "no", "text": 5}])
    lines = explain(run, "d3")
    assert lines[0] == "d3: quarantined" and "row 4" in lines[1]
    assert lines[2] == "  stage 'heuristics' raised ValueError: cannot handle <object object at 0x...>"
    assert lines[3].startswith("  traceback in ") and lines[3].endswith("quarantine/heuristics/part-00000-00000.jsonl")
    assert "no rule was asked" in lines[4] and len(lines) == 5
    assert explain(run, "d4")[0] == "d4: kept" and explain(run, "d1")[0] == "d1: dropped by rule 'short'"
    told = explain(run, "torn")
    assert told[0].startswith("torn: quarantined, not read: not JSON (") and told[1].startswith("  web.jsonl:1, in ")
    assert explain(run, "web.jsonl:1")[0].startswith("web.jsonl:1: quarantined, not read: not JSON")
    assert explain(run, "web.jsonl:42")[0].startswith("web.jsonl:42: quarantined, not read: no text")
    with pytest.raises(GristmillError, match="no document has the id 'nobody'"):
        explain(run, "nobody")


def test_diff_tells_quarantine_from_rules(tmp_path: Path) -> None:
    lines = documents(1, 7, 17)
    a = make(tmp_path / "a", lines, Mended(), per_partition=5)
    b = make(tmp_path / "b", lines, per_partition=5)
    diff = run_diff(a, b)
    counts = {kind: group.count.documents for kind, group in diff.groups.items() if group.count.documents}
    assert counts == {"kept in both": 37, "newly quarantined": 3}
    assert {(change.kind, change.rule_a, change.rule_b): change.group.count.documents for change in diff.changes} == {
        ("newly quarantined", None, "quarantined"): 2, ("newly quarantined", "short", "quarantined"): 1,
    }  # fmt: skip
    text = "\n".join(diff_table(diff))
    assert "  newly quarantined, quarantined in B: 2 documents" in text
    assert "  newly quarantined, dropped by short in A, quarantined in B: 1 documents" in text
    assert "      quarantined: none -> stage 'heuristics' raised ValueError: cannot handle" in text
    assert "no longer" not in text and "quarantined in both" not in text
    back, same = run_diff(b, a), run_diff(b, b)
    assert back.groups["no longer quarantined"].count.documents == 3
    assert same.groups["quarantined in both"].count.documents == 3 and not same.changes
    assert "quarantined" not in "\n".join(diff_table(run_diff(a, a)))
    without = make(tmp_path / "c", lines[:6] + lines[8:], per_partition=5)
    change = next(change for change in run_diff(b, without).changes if change.rule_a == "quarantined")
    assert change.kind == "only in A" and change.samples[0].values[0].a and change.samples[0].values[0].b is None


def test_what_if_neither_keeps_nor_drops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", documents(3, 17))
    answer = what_if(run, policy_of(run, None, ["short.min=0"], []))
    assert (answer.kept[0].documents, answer.kept[0].documents_then) == (37, 38)
    assert (answer.quarantined.documents, answer.quarantined.documents_then) == (2, 2)
    assert {row.name: row.documents_then for row in answer.dropped} == {"short": 0, "repeated": 0, "no_tokens": 0}
    assert answer.newly_kept == ("d1",) and not answer.newly_dropped
    assert any(line.startswith("quarantined") and " 2 " in line for line in what_if_table(answer))
    file = tmp_path / "tokens.toml"
    file.write_text('[[rule]]\nname = "few"\ncolumn = "tokens.count"\nmin = 4\n')
    answer = what_if(run, policy_of(run, file, [], []))  # reads nothing that they are marked in
    assert (answer.quarantined.documents, answer.quarantined.documents_then) == (2, 0)
    assert set(answer.newly_kept) == {"d17"} and dict(answer.newly_dropped) == {"d2": "few"}
    cli.what_if(run, set=("short.min=0",), json=True)
    assert json.loads(capsys.readouterr().out)["quarantined"]["documents"] == 2
    clean = make(tmp_path / "clean", documents())
    assert "quarantined" not in "\n".join(what_if_table(what_if(clean, policy_of(clean, None, [], []))))
