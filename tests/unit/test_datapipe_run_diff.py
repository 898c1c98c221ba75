"""diff: whose fate changed between two runs, by which rule, and why; however partitions, rows and files have moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.datapipe import cli, run_diff, run_diff_documents
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.run_diff import KINDS, Diff, table
from gristmill.datapipe.select import Select
from gristmill.datapipe.workflow import buckets
from gristmill.datapipe.workflow.aligned import write_aligned
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Inputs, Node, Stage, Step, open_run

POLICY: dict[str, Any] = {
    "name": "test",
    "rule": [
        {"name": "short", "column": "heuristics.words", "min": 3, "sources": {"code": {"min": 1}}},
        {"name": "long", "column": "heuristics.words", "max": 8},
        {"name": "repeated", "column": "exact", "keep": "first"},
    ],
    "measure": {"heuristics": {"c4": {"terminal": True}}},
}
Documents = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the name of their file."""


class Words(Stage):
    name, folder = "heuristics", "annotations/heuristics"

    def __init__(self, extra: int = 0) -> None:
        self.config = {"extra": extra}

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        words = pc.add(pc.list_value_length(pc.utf8_split_whitespace(table["text"])), self.config["extra"])
        return pa.table({"words": pc.if_else(pc.equal(words, 7), 7, words)})


class Tokens(Stage):
    name, folder, config = "tokens", "annotations/tokens", None
    requires = ("heuristics",)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"count": pc.multiply(previous["heuristics"]["words"], 10).cast(pa.int32())})


class Exact(Step):
    name, folder, config = "exact", "annotations/exact", None
    requires = ("documents",)

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        texts = inputs.table("documents", ("text",))["text"].to_pylist()
        sizes, first = Counter(texts), {text: row for row, text in reversed(list(enumerate(texts)))}
        columns = {"cluster": [first[text] for text in texts], "size": [sizes[text] for text in texts]}
        write_aligned(inputs, "documents", out, columns)
        return {}


def document(id: str | None, words: int, source: str = "web", word: str = "w") -> dict[str, Any]:
    """Of so many words, other than those of any other id."""
    text = " ".join([f"{word}{id}", *["x"] * (words - 1)])
    return {**({} if id is None else {"id": id}), "text": text, "source": source}


def make(
    run: Path, documents: Documents, policy: Mapping[str, Any] = POLICY, rows: int = 3, words: Stage | None = None,
    more: Sequence[Node] = (),
) -> Path:  # fmt: skip
    """A run over these documents, read from a folder of its own."""
    folder = run.with_name(f"{run.name}-in")
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, lines in documents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    nodes = [words or Words(), *more, Tokens(), Exact(), Select(read_policy(policy, "test"))]
    Runner(run, Ingest((str(folder),), IngestConfig(rows_per_partition=rows)), nodes, workers=0).run()
    return run


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    policy = json.loads(json.dumps(POLICY))
    change(policy)
    return policy


def fates(run: Path, identity: tuple[str, ...]) -> dict[tuple[Any, ...], tuple[str, str | None, int]]:
    """By identity: source, the rule that dropped it, tokens."""
    inputs = open_run(run)
    rows = inputs.table("documents").to_pylist()
    chosen, tokens = inputs.table("selection").to_pylist(), inputs.table("tokens")["count"].to_pylist()
    return {
        tuple(row[name] for name in identity): (row["source"], choice["reason"], count)
        for row, choice, count in zip(rows, chosen, tokens, strict=True)
    }


def expected(a: Path, b: Path, identity: tuple[str, ...] = ("id", "source")) -> dict[str, dict[str, list[int]]]:
    """By kind and source: documents, tokens in A, tokens in B."""
    one, other = fates(a, identity), fates(b, identity)
    found: dict[str, dict[str, list[int]]] = {kind: {} for kind in KINDS}
    for key in {*one, *other}:
        in_a, in_b = one.get(key), other.get(key)
        if in_a is None or in_b is None:
            kind = "only in B" if in_a is None else "only in A"
        elif in_a[1] == in_b[1]:
            kind = "kept in both" if in_a[1] is None else "dropped in both, same rule"
        elif in_a[1] is None or in_b[1] is None:
            kind = "newly dropped" if in_a[1] is None else "newly kept"
        else:
            kind = "dropped in both, another rule"
        source = (in_b or in_a or ("",))[0]
        total = found[kind].setdefault(source, [0, 0, 0])
        for at, number in enumerate((1, in_a[2] if in_a else 0, in_b[2] if in_b else 0)):
            total[at] += number
    return found


def counted(diff: Diff) -> dict[str, dict[str, list[int]]]:
    for group in diff.groups.values():
        sums = np.sum([list(asdict(count).values()) for count in group.sources.values()] or [[0, 0, 0]], axis=0)
        assert list(asdict(group.count).values()) == sums.tolist()
    return {
        kind: {source: list(asdict(count).values()) for source, count in group.sources.items()}
        for kind, group in diff.groups.items()
    }


def changes(diff: Diff) -> dict[tuple[str, str | None, str | None], int]:
    return {(change.kind, change.rule_a, change.rule_b): change.group.count.documents for change in diff.changes}


def policy_changes(diff: Diff) -> list[tuple[Any, ...]]:
    return [(change.what, change.sources, change.a, change.b) for change in diff.policy]


MIXED = {
    "web": [document(f"w{n}", n) for n in range(1, 12)] + [document("w1", 5, word="copy of w2")],
    "code": [document(f"c{n}", n, "code") for n in (1, 2, 9, 10)],
}


def test_runs_of_the_same_documents_are_compared_in_place(tmp_path: Path) -> None:
    documents = {**MIXED, "web": MIXED["web"][:-1]}
    a = make(tmp_path / "a", documents)

    def stricter(policy: dict[str, Any]) -> None:
        policy["rule"][0]["min"] = 5
        policy["rule"][1]["max"] = 10

    b = make(tmp_path / "b", documents, changed(stricter))
    diff = run_diff.run_diff(a, b)
    assert (diff.in_place, diff.by, diff.matched, diff.not_by) == (15, (), 0, ())
    assert counted(diff) == expected(a, b)
    assert changes(diff) == {("newly kept", "long", None): 4, ("newly dropped", None, "short"): 2}
    kept, dropped = diff.changes
    assert {sample.id for sample in dropped.samples} == {"w3", "w4"} and len(kept.samples) == 3
    sample = next(sample for sample in dropped.samples if sample.id == "w4")
    (value,) = sample.values
    assert (value.rule, value.column, value.a, value.bounds_a, value.b, value.bounds_b) == (
        "short", "heuristics.words", 4, {"min": 3.0}, 4, {"min": 5.0},
    )  # fmt: skip
    assert policy_changes(diff) == [("short.min", ("web",), 3.0, 5.0), ("long.max", ("code", "web"), 8.0, 10.0)]
    assert diff.measures == () and diff.versions == {} and diff.notes == ()
    assert json.loads(json.dumps(asdict(diff), allow_nan=False))["groups"]["newly kept"]["count"]["documents"] == 4


def test_a_run_equals_itself(tmp_path: Path) -> None:
    a = make(tmp_path / "a", MIXED)
    diff = run_diff.run_diff(a, a)
    assert diff.in_place == 16 and not diff.changes and not diff.policy and not diff.measures
    assert diff.groups["kept in both"].count.tokens_a == diff.groups["kept in both"].count.tokens_b > 0


def test_an_input_that_grew_and_other_partitions_are_matched_by_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {"web": [document(f"w{n}", n % 12 + 1) for n in range(40)], "code": MIXED["code"]}
    grown = {
        "a-new": [document("n1", 2), document("n2", 4, "new")],
        "web": [document("w3", 9), *documents["web"][5:][::-1]],  # rows moved, one has another text, four are gone
        "code": MIXED["code"],
    }
    a = make(tmp_path / "a", documents)
    b = make(tmp_path / "b", grown, changed(lambda policy: policy["rule"][0].update(min=4)))
    diff = run_diff.run_diff(a, b)
    assert diff.in_place == 4 and diff.by == ("id", "source")  # code's partitions, whatever their numbers are now
    assert (diff.matched, diff.other_text) == (36, 1)
    assert counted(diff) == expected(a, b)
    assert ("only in B", None, "short") in changes(diff) and ("only in A", None, None) in changes(diff)
    (new,) = next(change for change in diff.changes if change.kind == "only in B" and change.rule_b).samples
    assert new.values[0].a == "not in this run" and new.values[0].b == 2
    for rows in (1, 7, 100):
        other = make(tmp_path / f"by{rows}", grown, changed(lambda policy: policy["rule"][0].update(min=4)), rows)
        assert counted(run_diff.run_diff(a, other)) == counted(diff)
    with monkeypatch.context() as patch:  # many files and buckets, the same answer
        patch.setattr(run_diff_documents, "SPOOLED", 4)
        patch.setattr(buckets, "SMALL", 64)
        assert run_diff.run_diff(a, b) == diff


def test_ids_that_repeat_make_rows_count_and_renamed_files_texts(tmp_path: Path) -> None:
    a = make(tmp_path / "a", MIXED)
    b = make(tmp_path / "b", MIXED, changed(lambda policy: policy["rule"][0].update(min=5)), rows=5)
    diff = run_diff.run_diff(a, b)
    assert diff.by == ("file", "row") and diff.not_by == (
        f"id and source: 1 documents of {a} share theirs with another",
    )
    assert (diff.matched, diff.other_text) == (16, 0) and counted(diff) == expected(a, b, ("file", "row"))
    assert diff.in_place == 0 and "cannot tell which stages measured otherwise" in diff.notes[0]
    renamed = {f"{name}2": rows for name, rows in MIXED.items()}
    renamed["web2"] = [document("w0", 4), *renamed["web2"]]
    c = make(tmp_path / "c", renamed, rows=4)
    diff = run_diff.run_diff(a, c)
    assert (
        diff.by == ("text", "source") and diff.not_by[1] == "file and row: no input file has the same name in both runs"
    )
    assert diff.matched == 16 and counted(diff) == expected(a, c, ("text", "source"))
    assert changes(diff) == {("only in B", None, None): 1}


def test_what_identifies_documents_may_be_chosen(tmp_path: Path) -> None:
    without = {"web": [document(None, n, word=f"{n}") for n in range(1, 9)]}  # their ids are file and row
    a, b = make(tmp_path / "a", without), make(tmp_path / "b", {"web": [document(None, 2), *without["web"]]})
    diff = run_diff.run_diff(a, b)
    assert diff.by == ("id", "source") and diff.other_text == 8  # every row has moved on
    assert any("8 of them with another text" in line for line in table(diff))
    diff = run_diff.run_diff(a, b, by="text")
    assert (diff.matched, diff.other_text) == (8, 0) and changes(diff) == {("only in B", None, "short"): 1}
    c = make(tmp_path / "c", {"other": MIXED["web"]}, rows=2)
    with pytest.raises(UsageError, match=r"--by id: id and source: 1 documents of .*; leave --by out"):
        run_diff.run_diff(a, c, by="id")
    with pytest.raises(UsageError, match="--by row: file and row: no input file has the same name"):
        run_diff.run_diff(a, c, by="row")


def test_of_equal_texts_the_n_th_is_the_n_th(tmp_path: Path) -> None:
    copies = {"web": [{"text": "one two three", "source": "s"}] * 6 + [{"text": "four five six seven", "source": "s"}]}
    a, b = make(tmp_path / "a", copies), make(tmp_path / "b", {"moved": copies["web"][1:]}, rows=2)
    diff = run_diff.run_diff(a, b, by="text")
    assert changes(diff) == {("only in A", "repeated", None): 1} and diff.matched == 6
    (sample, *_) = diff.changes[0].samples
    assert sample.values[0].a == 6 and sample.values[0].bounds_a == {"keep": "first"}


def test_another_rule_may_drop_what_is_dropped_anyway(tmp_path: Path) -> None:
    a = make(tmp_path / "a", MIXED)

    def reorder(policy: dict[str, Any]) -> None:
        short, long, repeated = policy["rule"]
        repeated["keep"] = "newest"
        tiny = {"name": "tiny", "column": "heuristics.words", "min": 2, "missing": "keep"}
        policy["rule"] = [long, tiny, {**short, "missing": "keep"}]
        policy["edit"] = [{"column": "pii.email", "replace": "<EMAIL>"}]
        policy["measure"] = {"heuristics": {"c4": {"terminal": False, "javascript": True}}}

    b = make(tmp_path / "b", MIXED, changed(reorder))
    diff = run_diff.run_diff(a, b, samples=1)
    assert changes(diff)["dropped in both, another rule", "short", "tiny"] == 1
    change = next(change for change in diff.changes if change.rule_b == "tiny" and change.rule_a)
    assert [(value.rule, value.bounds_a, value.bounds_b) for value in change.samples[0].values] == [
        ("short", {"min": 3.0}, {"min": 3.0}), ("tiny", None, {"min": 2.0}),
    ]  # fmt: skip
    told = policy_changes(diff)
    assert [what for what, *_ in told] == [
        "rule repeated", "rule tiny", "short.missing", "place of long", "edit pii.email",
        "measure.heuristics.c4.javascript", "measure.heuristics.c4.terminal",
    ]  # fmt: skip
    assert told[3][2:] == (2, 1) and told[-1][2:] == (True, False) and told[-2][2:] == (None, True)
    other = make(tmp_path / "c", MIXED, changed(lambda policy: policy["rule"][0]["sources"].update(books={"min": 7})))
    ((what, _, before, after),) = policy_changes(run_diff.run_diff(a, other))
    assert what == "short, as written" and "books" not in before["sources"] and "books" in after["sources"]


class Toxicity(Stage):
    name, folder, config = "toxicity", "annotations/toxicity", None

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"score": pa.array([float("nan")] * len(table), pa.float32())})


def test_what_was_measured_otherwise_is_told_from_what_came_of_it(tmp_path: Path) -> None:
    documents = {"web": [document(f"w{n}", 7 if n < 6 else n) for n in range(9)]}
    a = make(tmp_path / "a", documents)
    toxic = {"name": "toxic", "column": "toxicity.score", "max": 0.5}
    policy = changed(lambda policy: policy["rule"].insert(0, toxic))
    b = make(tmp_path / "b", documents, policy, words=Words(0), more=[Toxicity()])
    c = make(tmp_path / "c", documents, words=Words(1))
    told = {m.node: (m.compared, m.different, m.why) for m in run_diff.run_diff(a, b).measures}
    assert told == {"toxicity": (0, 0, "only in B")}
    told = {m.node: (m.compared, m.different, m.why) for m in run_diff.run_diff(a, c).measures}
    assert told == {
        "heuristics": (3, 3, "its own version, settings, model files or libraries"),
        "tokens": (3, 3, "what it reads: heuristics"),
    }
    change = next(change for change in run_diff.run_diff(a, b).changes if change.rule_b == "toxic")
    (value,) = change.samples[0].values
    assert (value.a, value.bounds_a, value.b) == ("not measured", None, "nan")
    grown = make(tmp_path / "d", {**documents, "more": [document("m", 5)]}, words=Words(1))
    told = {m.node: (m.compared, m.different, m.why) for m in run_diff.run_diff(a, grown).measures}
    assert told["heuristics"] == (3, 3, "its own version, settings, model files or libraries")
    assert told["exact"] == (1, 1, "what it reads: documents")


def test_a_run_without_a_whole_selection_is_refused(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", MIXED), make(tmp_path / "b", MIXED)
    for bad in (tmp_path, tmp_path / "nowhere", a / "documents"):
        with pytest.raises(GristmillError, match="not a run folder"):
            run_diff.run_diff(a, bad)
    part = sorted((b / "selection").glob("*.parquet"))[1]
    part.unlink()
    with pytest.raises(GristmillError, match="no selection of all its documents yet"):
        run_diff.run_diff(a, b)
    part.write_bytes((b / "selection" / "part-00001-00000.parquet").read_bytes()[:0])
    (b / "selection" / "part-00000-00000.parquet").rename(part)
    (b / "selection" / "part-00001-00003.parquet").rename(b / "selection" / "part-00000-00000.parquet")
    part.with_name("part-00001-00003.parquet").write_bytes(part.read_bytes())
    with pytest.raises(DataError, match="not as many rows in every folder"):
        run_diff.run_diff(a, b)
    for wrong in (-1, 1001):
        with pytest.raises(UsageError, match=f"samples: {wrong}"):
            run_diff.run_diff(a, a, samples=wrong)
    record = json.loads((a / "run.json").read_text())
    (a / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    assert run_diff.run_diff(a, a).notes[0] == "A: its last run is failed: what stands there is compared"


def full(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_samples_are_the_same_every_time_and_as_many_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = {"web": [document(f"w{n}", 4) for n in range(50)]}
    a = make(tmp_path / "a", documents)
    b = make(tmp_path / "b", documents, changed(lambda policy: policy["rule"][0].update(min=5)))
    few = run_diff.run_diff(a, b, samples=4)
    assert few == run_diff.run_diff(a, b, samples=4) and len({sample.id for sample in few.changes[0].samples}) == 4
    assert not run_diff.run_diff(a, b, samples=0).changes[0].samples
    with monkeypatch.context() as patch, pytest.raises(GristmillError, match="No space left on device; give TMPDIR"):
        patch.setattr(buckets, "write", full)
        run_diff.run_diff(a, make(tmp_path / "c", documents, rows=7))
    every = run_diff.run_diff(a, b, samples=100).changes[0].samples
    assert {sample.id for sample in every} == {f"w{n}" for n in range(50)} and every[:4] == few.changes[0].samples


def test_the_command_prints_a_table_or_json_and_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = {"web": [{**document(f"w{n}", n), "id": f"w\x1b[31m\n{n}"} for n in range(1, 9)]}
    a = make(tmp_path / "a", documents)
    b = make(tmp_path / "b", documents, changed(lambda policy: policy["rule"][0].update(min=5)))
    cli.diff(a, b)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "w\\x1b[31m\\n4 (web)" in out
    assert "  newly dropped, dropped by short in B: 2 documents, 70 tokens (web 2)" in out
    assert "      short: heuristics.words 4 (min 3) -> 4 (min 5)" in out
    assert "  short.min (web): 3 -> 5" in out and "what was measured otherwise: none" in out
    cli.diff(a, b, samples=0, json=True)
    assert json.loads(capsys.readouterr().out)["changes"][0]["rule_b"] == "short"


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(0, 6), max_size=30))
def test_equal_keys_meet_in_their_order_and_nobody_is_lost(a: list[int], b: list[int]) -> None:
    rows_a, rows_b = run_diff_documents._joined(np.array(a, np.uint64), np.array(b, np.uint64))  # pyright: ignore[reportPrivateUsage]
    nth_a = [(key, a[:at].count(key)) for at, key in enumerate(a)]
    nth_b = [(key, b[:at].count(key)) for at, key in enumerate(b)]
    want = {(at, nth_b.index(key) if key in nth_b else -1) for at, key in enumerate(nth_a)}
    want |= {(-1, at) for at, key in enumerate(nth_b) if key not in nth_a}
    pairs = list(zip(rows_a.tolist(), rows_b.tolist(), strict=True))
    assert set(pairs) == want and len(pairs) == len(want)
