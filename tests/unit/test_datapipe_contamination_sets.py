"""Evaluation sets as files: fields that are found, files that are refused by name and line, an index without text."""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import canonical_json
from gristmill.datapipe import cli
from gristmill.datapipe.contamination import hashed
from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig, bundled_index, locate, read_items
from gristmill.datapipe.contamination.fields import FieldNames, item_of
from gristmill.datapipe.contamination.hashed import HashedSets, read_sets, write_index
from gristmill.datapipe.contamination.index import build
from gristmill.datapipe.contamination.search import ContaminationConfig, Searcher
from gristmill.datapipe.stages.contamination import Contamination

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = FieldNames()
LONG = "the quick brown fox jumps over a lazy dog while twelve grey owls look on from an old oak tree in silence"


def write_set(folder: Path, name: str, *rows: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path = folder / name
    path.write_bytes(gzip.compress(lines.encode(), mtime=0) if name.endswith(".gz") else lines.encode())
    return path


@pytest.mark.parametrize(
    ("row", "question", "answer", "passage"),
    [
        ({"prompt": "def f():", "canonical_solution": "return 1", "test": "x"}, "def f():", "return 1", ""),
        ({"question": "2 + 2?", "answer": "four\n#### 4"}, "2 + 2?", "four\n#### 4", ""),
        ({"question": "q", "choices": ["a", "b", "c"], "answer": 1}, "q", "b", ""),
        ({"ctx": "q", "endings": ["a", "b"], "label": "1", "activity_label": "x"}, "q", "b", ""),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "q", "y", ""),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}, "q", "x", ""),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}, "q", "y", ""),
        ({"question": "q", "options": ["x", "y"], "answer": "y"}, "q", "y", ""),
        ({"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [0, 1]}}, "q", "y", ""),
        ({"question": "q", "choices": ["x", "y"]}, "q", "x y", ""),
        ({"question": "q", "options": [], "answer": "forty two"}, "q", "forty two", ""),
        ({"question": "q", "options": ["", " "], "answer": "forty two"}, "q", "forty two", ""),
        ({"question": "q", "choices": {"text": [], "label": ["A"]}, "answer": "forty two"}, "q", "forty two", ""),
        ({"question": "q", "choices": {"text": None}, "options": ["x", "y"], "answer": 1}, "q", "y", ""),
        ({"question": "q", "mc1_targets": {"choices": [], "labels": [1]}, "best_answer": "a"}, "q", "a", ""),
        ({"question": "q", "choices": ["", "y"], "label": 0, "answer": None}, "q", "", ""),
        ({"question": "q", "choices": ["2", "3", "4", "5"], "answer": "3"}, "q", "3", ""),
        ({"question": "q", "choices": ["2", "3", "4", "5"], "answer": 3}, "q", "5", ""),
        ({"question": "q", "choices": ["2", "2", "4", "5"], "answer": "2"}, "q", "4", ""),
        ({"question": "q", "choices": ["B", "A"], "answer": "A"}, "q", "A", ""),
        ({"question": "q", "choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answerKey": "1"}, "q", "2", ""),
        ({"question": "q", "choices": ["x", "y"], "answer": "Z9"}, "q", "x y", ""),
        ({"question": "q", "context": "p", "answers": {"text": ["a", "b"], "answer_start": [3]}}, "q", "a", "p"),
        ({"question": "q", "answer": {"value": "a", "aliases": ["b"]}}, "q", "a", ""),
        ({"Problem": "p", "Solution": "s", "Answer": "7"}, "p", "s", ""),
        ({"input": "i", "target": 7}, "i", "7", ""),
        ({"prompt": [{"role": "user", "content": "ask"}], "answer": True}, "ask", "true", ""),
        ({"question": "", "problem": "p", "answer": None, "solution": "s"}, "p", "s", ""),
        ({"question": None, "text": "t"}, "t", "", ""),
        ({"question": "", "answer": "a"}, "", "a", ""),
        ({"question": "\ud800x", "answer": "a"}, "?x", "a", ""),
    ],
)
def test_fields_of_known_benchmarks_are_found(row: dict[str, Any], question: str, answer: str, passage: str) -> None:
    found = item_of(row, 3, "set", NAMES)
    assert (found.question, found.answer, found.passage) == (question, answer, passage)


def test_named_fields_come_first_and_ids_are_what_names_the_row() -> None:
    row = {"id": 7, "question": "q", "stem": "s", "answer": "a", "why": "because", "notes": ["n", "m"]}
    found = item_of(row, 3, "set", FieldNames(("stem",), ("none", "why"), ("Notes",)))
    assert (found.id, found.question, found.answer, found.passage) == ("7", "s", "because", "n m")
    assert item_of({"question": "q", "id": None}, 3, "set", NAMES).id == "line 3"
    assert item_of({"question": "q", "task_id": "HumanEval/0"}, 3, "set", NAMES).id == "HumanEval/0"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question": "q"}', "{"], r"set\.jsonl line 2: not JSON"),
        (['{"question": "q"}', "", "[1]"], r"line 3: not a JSON object \(a list\)"),
        (['{"statement": "q", "why": "a"}'], r"line 1: no field holds a question \(fields: statement, why\)"),
        (['{"question": 5}'], r"line 1: field 'question' should hold text, not 5"),
        (['{"question": null}'], r"line 1: no field holds a question"),
        (["{}"], r"fields: none"),
        ([], r"set\.jsonl: an evaluation set without items"),
        (['{"question": ' + "[" * 5000 + "]" * 5000 + "}"], r"line 1: not JSON"),
        (['{"question": "q"}'], r"no item has 16 words"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_set(tmp_path, "set.jsonl", *lines)
    with pytest.raises(GristmillError, match=message):
        read_sets([path], NAMES)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = write_set(tmp_path, "set.jsonl.gz", *({"question": f"{LONG} {n}"} for n in range(500)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(GristmillError, match=r"set\.jsonl\.gz line \d+: corrupt compressed stream"):
        list(read_items(path, NAMES))


def test_sets_are_found_or_refused(tmp_path: Path) -> None:
    one = write_set(tmp_path / "a", "one.jsonl", {"question": LONG})
    two = write_set(tmp_path / "a", "two.jsonl.gz", {"question": LONG})
    write_set(tmp_path / "a", ".hidden.jsonl", "")
    (tmp_path / "a" / "README.md").write_text("x")
    again = write_set(tmp_path / "b", "one.jsonl.gz", {"question": LONG})
    (tmp_path / "empty").mkdir()
    assert locate([str(tmp_path / "a")]) == (one, two) == locate([str(tmp_path / "a"), str(one)])
    assert locate(["bundled"])[0].is_file()
    with pytest.raises(UsageError, match="hold sets of one name; rename one"):
        locate([str(one), str(again)])
    for wrong in ("empty", "missing", "a/README.md"):
        with pytest.raises(UsageError, match="no evaluation sets; give a folder"):
            locate([str(tmp_path / wrong)])


def test_an_index_finds_what_its_folder_would_and_holds_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "evals"
    write_set(
        folder, "owls.jsonl", *({"id": f"o{n}", "question": f"{LONG} {n} {n + 1}", "answer": n} for n in range(9))
    )
    write_set(folder, "notes.jsonl.gz", {"question": LONG[::-1], "answer": "ab cd ef gh", "context": LONG})
    read = read_sets(locate([str(folder)]), NAMES)
    write_index(read, tmp_path / "evals.parquet")
    write_index(read_sets(locate([str(folder)]), NAMES), tmp_path / "again.parquet")
    data = (tmp_path / "evals.parquet").read_bytes()
    assert data == (tmp_path / "again.parquet").read_bytes()
    assert b"quick" not in data
    kinds = {field.name: field.type for field in pq.read_schema(tmp_path / "evals.parquet")}
    assert [name for name, kind in kinds.items() if pa.types.is_string(kind)] == ["set", "id"]
    loaded = read_sets(locate([str(tmp_path / "evals.parquet")]), NAMES)
    assert loaded.table.equals(read.table) and loaded.counts == read.counts
    texts = pa.array([f"so {LONG} 3 4 answer 3", LONG, f"{LONG} {LONG[::-1]} ab cd ef gh", ""])
    found = [pa.table(Searcher(build(sets.table)).measure(texts)) for sets in (read, loaded)]
    assert found[0] == found[1]
    assert found[0]["item"].to_pylist()[::2] == ["o3", "line 1"] and found[0]["score"].to_pylist()[2] == 1.0


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "owls.jsonl", {"question": LONG, "answer": "an owl"})
    read = read_sets(locate([str(tmp_path)]), NAMES)
    path = tmp_path / "evals.parquet"
    for make in (
        lambda: path.write_bytes(b"PAR1 no"),
        lambda: pq.write_table(pa.table({"question": [LONG]}), path),
        lambda: write_index(_with(read, "question_words", pa.array([-5], pa.int32())), path),
        lambda: write_index(_with(read, "answer_words", pa.array([0], pa.int32())), path),
        lambda: write_index(_with(read, "id", pa.array([None], pa.string())), path),
    ):
        make()
        with pytest.raises(GristmillError, match=r"evals\.parquet: no index of evaluation sets"):
            read_sets([path], NAMES)


def test_a_damaged_index_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path, rng = bundled_index().read_bytes(), tmp_path / "evals.parquet", random.Random(4)
    whole = read_sets([bundled_index()], NAMES).table
    for size in (1, 64, 4096):
        for _ in range(8):
            damaged = bytearray(data)
            at = rng.randrange(4, len(data) - size - 20_000)
            damaged[at : at + size] = bytes(size) if size > 1 else bytes([damaged[at] ^ 4])
            path.write_bytes(damaged)
            try:  # what stands unread between pages does no harm
                assert read_sets([path], NAMES).table.equals(whole)
            except GristmillError as error:
                assert re.match(
                    r".*evals\.parquet: (a damaged|no) index of .*; `datapipe index-evals FOLDER", str(error)
                )
    monkeypatch.setattr(hashed, "_digest", lambda table: "0")
    write_index(HashedSets(whole), path)
    monkeypatch.undo()
    with pytest.raises(GristmillError, match=r"evals\.parquet: a damaged index of evaluation sets; `datapipe index-"):
        read_sets([path], NAMES)
    monkeypatch.setattr(hashed, "bundled_index", lambda: path)
    for content in (path.read_bytes(), data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(GristmillError, match=r"evals\.parquet: the bundled .* install gristmill-datapipe again"):
            read_sets([path], NAMES)


def test_an_index_of_other_unicode_tables_or_an_older_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, path = read_sets([bundled_index()], NAMES), tmp_path / "evals.parquet"
    here = unicodedata.unidata_version
    with monkeypatch.context() as patch:
        patch.setattr(hashed.unicodedata, "unidata_version", "3.2.0")
        write_index(read, path)
    message = (
        rf"evals\.parquet: an index made by Unicode '3\.2\.0', while this Python has {re.escape(here)}; make it again"
    )
    with pytest.raises(GristmillError, match=message):
        read_sets([path], NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(hashed, "_VERSION", 1)
        write_index(read, path)
    with pytest.raises(GristmillError, match=r"evals\.parquet: an index of version 1, not 2; `datapipe index-evals"):
        read_sets([path], NAMES)


def test_an_id_that_a_set_repeats_gets_its_line(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "a (line 5)", "a", None, "line 6"]
    rows = [{"id": own, "question": f"{LONG} {n}"} for n, own in enumerate(ids)]
    path = write_set(tmp_path, "owls.jsonl", *rows)
    wanted = ["a", "b", "a (line 3)", "a (line 5)", "a (line 5) (line 5)", "line 6", "line 6 (line 7)"]
    assert [item.id for item in read_items(path, NAMES)] == wanted
    assert read_sets([path], NAMES).table["id"].to_pylist() == wanted


def _with(read: HashedSets, name: str, column: pa.Array) -> HashedSets:
    return HashedSets(read.table.set_column(read.table.schema.get_field_index(name), name, column))


def test_the_stage_measures_alike_in_any_partitions(tmp_path: Path) -> None:
    write_set(tmp_path, "owls.jsonl", {"question": LONG, "answer": "they fly away"})
    stage = Contamination(EvalSetsConfig(sets=(str(tmp_path),)))
    stage.setup({})
    texts = [LONG, "", f"{LONG}. They fly away!", "nothing", f"no. {LONG}"] * 7
    table = pa.table({"text": texts})
    whole = stage.annotate(table, {})
    assert whole.schema == stage.writes() == stage.annotate(table.slice(0, 0), {}).schema
    parts = [stage.annotate(table.slice(start, 4), {}) for start in range(0, len(table), 4)]
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()
    assert whole["score"].to_pylist()[2] == 1.0 and whole["set"].to_pylist()[:2] == ["owls", None]


def test_the_fingerprint_holds_names_and_settings_but_no_folder(tmp_path: Path) -> None:
    one = write_set(tmp_path / "a", "one.jsonl", {"question": LONG})
    here, there = (Contamination(EvalSetsConfig(sets=sets)) for sets in ((str(tmp_path / "a"),), (str(one),)))
    assert canonical_json(here.config) == canonical_json(there.config) and str(tmp_path) not in canonical_json(
        here.config
    )
    assert here.files() == (one,)
    write_set(tmp_path / "b", "two.jsonl", {"question": LONG})
    renamed = Contamination(EvalSetsConfig(sets=(str(tmp_path / "b"),)))
    other = Contamination(EvalSetsConfig(sets=(str(one),)), ContaminationConfig(0.8))
    assert len({canonical_json(stage.config) for stage in (here, renamed, other)}) == 3
    with pytest.raises(UsageError, match="matched: 2 is not from 0 to 1"):
        ContaminationConfig(2)


def test_a_policy_that_reads_contamination_needs_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PIPELINES))
    measures: Any = pytest.importorskip("measures")
    from gristmill.datapipe.policy_file import load_policy

    policy = load_policy(PIPELINES / "policies" / "decontaminate.toml")
    with pytest.raises(UsageError, match=r"give --contamination\.sets FOLDER"):
        measures.measuring_stages(policy, measures.ModelConfigs())
    made = measures.measuring_stages(policy, measures.ModelConfigs(contamination=EvalSetsConfig(sets=("bundled",))))
    assert [stage.name for stage in made] == ["language", "heuristics", "contamination"]


def test_index_evals_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": LONG, "why": "no"}, {"question": LONG, "why": "no"}, {"question": "short"}]
    write_set(tmp_path / "evals", "owls.jsonl", *rows)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["datapipe", "index-evals", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out + told.err

    code, told = run(str(tmp_path / "evals"), "--output", str(tmp_path / "x.parquet"), "--answer", "why")
    assert code == 0 and "owls: 1 items, 1 too short (under 16 words), 1 repeated" in told
    assert pq.read_table(tmp_path / "x.parquet")["answer_words"].to_pylist() == [1]
    assert run(str(tmp_path / "evals"), "--output", str(tmp_path / "x.bin"))[0] == 2
    assert run(str(tmp_path / "none"), "--output", str(tmp_path / "x.parquet"))[0] == 2
