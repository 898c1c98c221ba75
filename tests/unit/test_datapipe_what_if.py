"""what-if and explain: another policy over stored numbers, and one document's verdict, without measuring again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import sha256_folder, write_json
from gristmill.datapipe import cli
from gristmill.datapipe.explain import explain
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.what_if import LookedAt, policy_of, what_if
from gristmill.datapipe.workflow.stage import open_run

PARTS = ("part-00000-00000.parquet", "part-00000-00001.parquet")
POLICY = {
    "name": "test",
    "rule": [
        {"name": "words", "column": "heuristics.words", "min": 50, "sources": {"code": {"min": 10}}},
        {"name": "repetition", "column": "heuristics.repetition", "max": 0.2},
        {"name": "duplicate", "column": "exact", "keep": "first"},
    ],
    "edit": [{"column": "pii.email", "replace": "<EMAIL>", "sources": ["web"]}],
}
WORDS = [5, 60, 20, 200, 80, 70]
REPETITION = [0.0, 0.5, 0.1, 0.2, None, 0.1]  # a fifth in 32 bits is a fifth
CLUSTERS = [0, 1, 2, 3, 4, 3]
UNIQUE = [False, False, True, True, False, False]
UNIQUE_REASONS = ["words", "repetition", None, None, "repetition", "duplicate"]
"""What POLICY's rules keep; nothing else was looked at for paragraphs."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six documents in two partitions, with what the stages found, and the selection that POLICY makes of them."""
    folders = {"documents": "documents", "selection": "selection"}
    folders |= {name: f"annotations/{name}" for name in ("heuristics", "tokens", "exact", "pii", "paragraphs")}
    folders |= {"unique": "unique"}
    for folder in folders.values():
        (tmp_path / folder).mkdir(parents=True)
    for number, part in enumerate(PARTS):
        rows = slice(3 * number, 3 * number + 3)
        ids = [f"d{row}" for row in range(6)][rows]
        sources = ["web", "web", "code", "web", "web", "web"][rows]
        mails = [[5, 11] if number else [] for _ in ids]
        tables = {
            "documents": {
                "id": ids,
                "text": ["mail a@b.cd\x1b[0m now"] * 3,
                "source": sources,
                "file": ["f.jsonl"] * 3,
                "row": [1, 2, 3],
            },
            "heuristics": {"words": WORDS[rows], "repetition": pa.array(REPETITION[rows], pa.float32())},
            "tokens": {"count": pa.array([10, 20, 30], pa.int32())},
            "exact": {"cluster": CLUSTERS[rows], "size": [1, 1, 1] if not number else [2, 1, 2]},
            "pii": {"email": pa.array(mails, pa.list_(pa.int32()))},
            "unique": {"keep": UNIQUE[rows], "reason": UNIQUE_REASONS[rows]},
            "paragraphs": {
                "share": pa.array([0.5 if looked else None for looked in UNIQUE[rows]], pa.float32()),
                "cut": pa.array([[0, 5] if looked else None for looked in UNIQUE[rows]], pa.list_(pa.int32())),
            },
        }
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), tmp_path / folders[name] / part)
    write_json(tmp_path / "ledger" / "outputs.json", folders)
    Select(read_policy(POLICY, "test")).run(open_run(tmp_path), tmp_path / "selection")
    return tmp_path


def test_what_if_tells_who_changes_sides_and_writes_nothing(run: Path) -> None:
    before = sha256_folder(run)
    policy = policy_of(run, None, ["repetition.max=0.6", "words.sources.code.min = 100"], [])
    answer = what_if(run, policy)
    everything, code, web = answer.kept
    assert (everything.name, everything.documents, everything.documents_then) == ("(all)", 2, 2)
    assert (code.documents, code.documents_then) == (1, 0) and (web.documents, web.documents_then) == (1, 2)
    assert (web.tokens, web.tokens_then) == (10, 30)
    assert answer.newly_kept == ("d1",) and answer.newly_dropped == (("d2", "words"),)
    assert {row.name: row.documents_then - row.documents for row in answer.dropped} == {
        "words": 1, "repetition": -1, "duplicate": 0, "no_tokens": 0,
    }  # fmt: skip
    assert sha256_folder(run) == before


def test_the_run_s_own_policy_changes_nothing(run: Path) -> None:
    answer = what_if(run, policy_of(run, None, [], []))
    assert all(row.documents == row.documents_then for row in (*answer.kept, *answer.dropped))
    assert not answer.newly_kept and not answer.newly_dropped


def test_a_rule_left_out_or_changed_by_word_and_a_policy_from_a_file(run: Path, tmp_path: Path) -> None:
    assert {*what_if(run, policy_of(run, None, [], ["duplicate"])).newly_kept} == {"d5"}
    assert what_if(run, policy_of(run, None, ["repetition.missing=keep"], [])).newly_kept == ("d4",)
    file = tmp_path / "other.toml"
    file.write_text('[[rule]]\nname = "long"\ncolumn = "heuristics.words"\nmin = 100\n')
    answer = what_if(run, policy_of(run, file, [], []))
    assert answer.kept[0].documents_then == 1
    assert [row.name for row in answer.dropped] == ["long", "no_tokens", "duplicate", "repetition", "words"]


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        (["wrods.min=3"], [], "did you mean 'words'"),
        (["words=3"], [], "RULE.KEY=VALUE"),
        (["words.mni=3"], [], "did you mean 'min'"),
        (["words.min.x=3"], [], "no further keys"),
        ([], ["word"], "did you mean 'words'"),
    ],
)
def test_a_wrong_change_is_refused(run: Path, changes: list[str], without: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        policy_of(run, None, changes, without)
    assert message in str(caught.value)


def test_a_policy_that_measures_or_edits_otherwise_is_told_apart(run: Path) -> None:
    with pytest.raises(GristmillError, match="measures heuristics in another way"):
        what_if(run, read_policy({**POLICY, "measure": {"heuristics": {"c4": {"terminal": False}}}}, "x"))
    answer = what_if(run, read_policy({**POLICY, "edit": []}, "x"))
    assert answer.edited_otherwise and not what_if(run, policy_of(run, None, [], [])).edited_otherwise


SHARE = {"name": "share", "column": "paragraphs.share", "max": 0.9}


@pytest.mark.parametrize("reads", [{"rule": [*POLICY["rule"], SHARE]}, {"edit": [{"column": "paragraphs.cut"}]}])
def test_documents_that_were_never_looked_at_are_told(run: Path, reads: dict, capsys: pytest.CaptureFixture) -> None:
    Select(read_policy({**POLICY, **reads}, "test")).run(open_run(run), run / "selection")
    answer = what_if(run, policy_of(run, None, ["words.min=1", "repetition.max=0.1"], []))
    assert answer.looked_otherwise == (LookedAt("paragraphs", 2, 1),)  # d0 and, for d3, its copy d5; d3
    cli.what_if(run, set=("words.min=1",))
    assert "paragraphs would be looked for in 1 documents that the run did not look at" in capsys.readouterr().out
    for same in ([], ["words.min=51"], ["repetition.missing=drop"]):  # the same documents, by whatever rules
        assert not what_if(run, policy_of(run, None, same, [])).looked_otherwise
    assert not what_if(run, read_policy({**POLICY, "rule": [], "edit": []}, "x")).looked_otherwise  # reads none


def test_explain_tells_what_was_not_measured_and_why(run: Path) -> None:
    reads = {"rule": [SHARE, *POLICY["rule"]], "edit": [{"column": "paragraphs.cut"}]}
    Select(read_policy({**POLICY, **reads}, "test")).run(open_run(run), run / "selection")
    told = "not measured, as rule 'duplicate' drops the document before"
    lines = explain(run, "d5")
    assert lines[2] == f"  drops  share: paragraphs.share = {told} (max 0.9)"
    assert lines[-1] == f"  edit   paragraphs.cut: {told}"
    assert explain(run, "d2")[2] == "  ok     share: paragraphs.share = 0.5 (max 0.9)"


def test_a_change_for_one_source_keeps_the_rule_s_other_bound(run: Path) -> None:
    policy = policy_of(run, None, ["words.max=100", "words.sources.web.min=1"], [])
    assert (policy.rule[0].sources["web"].min, policy.rule[0].sources["web"].max) == (1, 100)
    policy = policy_of(run, None, ["words.min=0", "words.sources.web.max=100"], [])
    assert (policy.rule[0].sources["web"].min, policy.rule[0].sources["web"].max) == (0, 100)


def test_a_policy_on_what_was_never_measured_is_refused(run: Path) -> None:
    unknown = {"name": "x", "rule": [{"name": "t", "column": "toxicity.score", "max": 0.5}]}
    with pytest.raises(GristmillError, match="measured no toxicity"):
        what_if(run, read_policy(unknown, "x"))
    with pytest.raises(GristmillError, match="not a run folder"):
        open_run(run / "documents")


def test_explain_has_every_rule_and_what_is_edited(run: Path) -> None:
    assert explain(run, "d0")[0] == "d0: dropped by rule 'words'"
    assert [line.split()[0] for line in explain(run, "d0")[2:]] == ["drops", "ok", "ok", "ok"]
    assert explain(run, "d2")[0] == "d2: kept"
    assert any("min 10" in line for line in explain(run, "d2"))  # its source's own bound
    assert [line.split()[0] for line in explain(run, "d3")[2:5]] == ["ok", "ok", "ok"]  # at the bound
    lines = explain(run, "d5")
    assert "drops" in lines[4] and "cluster 3 of 2" in lines[4]
    assert "replaced by '<EMAIL>'" in lines[6] and lines[7].strip() == "5-11 a@b.cd"
    assert any("= no value (" in line and line.split()[0] == "drops" for line in explain(run, "d4"))
    with pytest.raises(GristmillError, match="no document has the id 'nobody'"):
        explain(run, "nobody")


def test_the_command_prints_a_table_or_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.what_if(run, set=("words.min=1",), json=True)
    assert json.loads(capsys.readouterr().out)["newly_kept"] == ["d0"]
    cli.what_if(run, set=("words.min=1",))
    out = capsys.readouterr().out
    assert "would keep  d0" in out and "(all)" in out
