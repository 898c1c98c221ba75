"""A document that a stage cannot handle is set aside by name, counted and explained; all others are as ever."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError, PartialError, UsageError
from gristmill.base.files import read_json, sha256_folder
from gristmill.datapipe import cli
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.explain import explain
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy import Edit
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.run_diff import run_diff
from gristmill.datapipe.run_diff import table as diff_table
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.duplicates import Clusters, Groups, Keyed, Sketch
from gristmill.datapipe.stages.measure import Heuristics, Language, Url
from gristmill.datapipe.stages.tokens import Tokenise, TokenizerConfig, TrainTokenizer, edited
from gristmill.datapipe.what_if import policy_of, what_if
from gristmill.datapipe.what_if import table as what_if_table
from gristmill.datapipe.workflow import quarantine, runner
from gristmill.datapipe.workflow.executor import InProcess
from gristmill.datapipe.workflow.gc import gc
from gristmill.datapipe.workflow.quarantine import StageFault, annotate, marks_of, most
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Inputs, Node, Stage, Step, open_run
from gristmill.datapipe.workflow.verify import verify

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
BAD = "poison"


# One partition -------------------------------------------------------------------------------------------------------


class Words(Stage):
    """Row by row. Raises where any text holds one of the `refused`; counts the rows that it was given."""

    name, folder = "heuristics", "annotations/heuristics"
    columns = ("text", "source")

    def __init__(self, refused: Callable[[str], bool] = lambda text: BAD in text, kind: type = ValueError) -> None:
        self.config = None
        self._refused, self._kind = refused, kind
        self.calls: list[int] = []

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        self.calls.append(len(table))
        for text, source in zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True):
            assert source, "a source is no text"
            if self._refused(text):
                raise self._kind(f"cannot handle {object()!r}\nat all")
        words = pc.list_value_length(pc.utf8_split_whitespace(table["text"]))
        longest = [max(text.split(), key=len) if text.strip() else None for text in table["text"].to_pylist()]
        # A column of nulls alone is of no type, as a careless stage would have it.
        return pa.table(
            {"words": words.cast(pa.int32()), "characters": pc.utf8_length(table["text"]), "longest": longest}
        )


def rows(texts: Sequence[str]) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string()), "source": ["web"] * len(texts)})


def name_of(row: int) -> str:
    return f"document 'd{row}'"


@settings(max_examples=60)
@given(st.data(), st.integers(1, 350))
def test_rows_at_fault_are_found_and_the_others_are_as_ever(data: st.DataObject, count: int) -> None:
    bad = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=most(count) + 1)))
    texts = [f"{'word ' * (row % 7)}w{row}" for row in range(count)]
    for row in bad:
        texts[row] += f" {BAD}"
    stage, table = Words(), rows(texts)
    if len(bad) > most(count):
        with pytest.raises(StageFault, match=f"first document 'd{bad[0]}'"):
            annotate(stage, table, {}, name_of)
        return
    result, faults = annotate(stage, table, {}, name_of)
    assert list(faults) == bad
    undisturbed = Words(lambda _text: False).annotate(rows(["" if BAD in text else text for text in texts]), {})
    assert result.equals(undisturbed) and result.schema.equals(undisturbed.schema, check_metadata=True)
    assert sum(stage.calls) <= (4 + len(bad).bit_length()) * count  # one such row: four times the work


def test_a_reason_is_one_line_that_is_the_same_in_every_process_and_safe_to_print() -> None:
    class Loud(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fault(error: BaseException) -> str:
        class Raises(Words):
            def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
                if BAD in table["text"].to_pylist():
                    raise error
                return super().annotate(table, previous)

        return annotate(Raises(lambda _: False), rows(["a", BAD]), {}, name_of)[1][1].reason

    assert (
        fault(ValueError(f"at {object()!r}\nsecond"))
        == "stage 'heuristics' raised ValueError: at <object object at 0x...>"
    )
    assert fault(KeyError("\x1b[31m")) == r"stage 'heuristics' raised KeyError: '\x1b[31m'"
    assert fault(ValueError("\x1b[31m\u202e\ud800")) == r"stage 'heuristics' raised ValueError: \x1b[31m\u202e\ud800"
    assert fault(ValueError()) == "stage 'heuristics' raised ValueError"
    assert fault(Loud()) == "stage 'heuristics' raised Loud"
    assert len(fault(ValueError("x" * 10_000_000))) < 300


def test_a_full_disk_is_no_fault_of_a_row_but_a_name_that_is_too_long_is() -> None:
    class Disk(OSError):
        def __init__(self, message: str) -> None:
            super().__init__(errno.ENOSPC, message)

    with pytest.raises(Disk):
        annotate(Words(kind=Disk), rows(["a", BAD, "b"]), {}, name_of)
    assert list(annotate(Words(kind=OSError), rows(["a", BAD, "b"]), {}, name_of)[1]) == [1]


class PanicException(BaseException):
    """As libraries in Rust raise it."""


def test_a_panic_of_a_library_is_a_fault_of_its_row() -> None:
    assert list(annotate(Words(kind=PanicException), rows(["a", BAD, "b"]), {}, name_of)[1]) == [1]
    with pytest.raises(StageFault, match=r"PanicException: .* \(2 of 2 rows"):
        annotate(Words(kind=PanicException), rows([BAD] * 9), {}, name_of)
    always = Words(lambda text: True, PanicException)
    with pytest.raises(StageFault):
        annotate(always, rows(["a"]), {}, name_of)


def test_a_stage_that_raises_on_all_rows_costs_little_and_names_a_document() -> None:
    stage = Words(lambda text: bool(text))
    with pytest.raises(StageFault) as caught:
        annotate(stage, rows(["a"] * 4096), {}, name_of)
    assert "(42 of 42 rows that were tried alone raise, first document 'd0': it is the stage" in str(caught.value)
    assert str(caught.value).startswith("ValueError: cannot handle") and "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.__cause__.__traceback__ is not None
    assert sum(stage.calls) < 3 * 4096


@pytest.mark.parametrize(
    "kind", [GristmillError, UsageError, MemoryError, KeyboardInterrupt, ConnectionResetError, TimeoutError]
)
def test_refusals_and_what_the_machine_lacks_are_no_fault_of_a_row(kind: type) -> None:
    stage = Words(kind=kind)
    with pytest.raises(kind):
        annotate(stage, rows(["a", BAD, "b"]), {}, name_of)
    assert stage.calls == [3]


def test_what_no_single_row_explains_fails_as_it_did() -> None:
    class Crowded(Words):
        """Raises on many rows at once, on any of them."""

        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            if len(table) > 2:
                raise ValueError("too many at once")
            return super().annotate(table, previous)

    with pytest.raises(ValueError, match="too many at once"):
        annotate(Crowded(), rows(["a"] * 8), {}, name_of)
    with pytest.raises(ValueError, match="too many at once"):
        annotate(Crowded(), rows(["a"] * 7 + [BAD]), {}, name_of)
    empty_too = Words(lambda text: BAD in text or not text)
    with pytest.raises(ValueError, match="cannot handle") as caught:
        annotate(empty_too, rows(["a", BAD]), {}, name_of)
    assert caught.traceback[-1].name == "annotate" and empty_too.calls[0] == 2
    with pytest.raises(ValueError, match="cannot handle"):
        annotate(Words(lambda _text: True), rows(["x"]), {}, name_of)

    class Never(Words):
        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            raise IndexError(len(table))

    with pytest.raises(IndexError, match=r"^0$"):
        annotate(Never(), rows([]), {}, name_of)


def test_a_stage_that_loses_rows_is_refused_as_ever() -> None:
    class Loses(Words):
        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            return super().annotate(table, previous).slice(1)

    with pytest.raises(GristmillError, match="returned 1 rows for 2"):
        annotate(Loses(), rows(["a", "b"]), {}, name_of)


def test_spans_that_point_into_the_text_go_with_it() -> None:
    class Edits(Stage):
        name, folder, config = "edits", "annotations/edits", None
        requires = ("pii",)

        def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
            if any(BAD in text for text in table["text"].to_pylist()):
                raise ValueError("bad")
            return pa.table({"text": edited(table, previous, [Edit("pii.email", "<EMAIL>")])})

    spans = pa.array([[0, 1], [2, 4], None, [1, 3]], pa.list_(pa.int32()))
    signature = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.uint32()), 2)
    previous = {"pii": pa.table({"email": spans, "signature": signature, "n": [1, 2, 3, 4]})}
    result, faults = annotate(Edits(), rows(["abc", f"xy{BAD}", "def", "ghij"]), previous, name_of)
    assert result["text"].to_pylist() == ["<EMAIL>bc", "", "def", "g<EMAIL>j"] and list(faults) == [1]


# A run ---------------------------------------------------------------------------------------------------------------


def _key(table: pa.Table) -> Any:
    import numpy as np

    words = table["words"].to_numpy().astype(np.uint64)
    return np.stack([words << np.uint64(54), words], axis=1), np.ones(len(words), bool)


LENGTHS = Keyed("exact", "heuristics", ("words",), _key)
"""Documents of as many words are duplicates: those without text are, of each other."""


class Second(Stage):
    """Made of an annotation alone: it has no text to leave out."""

    name, folder, config = "second", "annotations/second", None
    columns, requires = (), ("heuristics",)

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"double": pc.multiply(previous["heuristics"]["words"], 2)})


class Tokens(Stage):
    name, folder, config = "tokens", "annotations/tokens", None
    refused: ClassVar[str] = "toxin"

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        if any(self.refused in text for text in table["text"].to_pylist()):
            raise KeyError("no such token")
        count = pc.list_value_length(pc.utf8_split_whitespace(table["text"]))
        return pa.table({"count": pc.if_else(pc.equal(table["text"], ""), 0, count).cast(pa.int32())})


POLICY: dict[str, Any] = {
    "name": "test",
    "rule": [
        {"name": "short", "column": "heuristics.words", "min": 2},
        {"name": "repeated", "column": "exact", "keep": "first"},
    ],
}
ONLY_SECOND = {"name": "test", "rule": [{"name": "double", "column": "second.double", "min": 0}]}


def documents(*bad: int, count: int = 40, word: str = BAD) -> list[dict[str, str]]:
    """Of as many words as their number; those in `bad` hold the word that a stage cannot handle."""
    return [
        {"id": f"d{n}", "text": " ".join(["w"] * (n - (n in bad)) + [word] * (n in bad)), "source": "web"}
        for n in range(1, count + 1)
    ]


def make(
    run: Path, lines: Sequence[Any], words: Stage | None = None, policy: Mapping[str, Any] = POLICY, limit: float = 0.2,
    per_partition: int = 10, workers: int = 0, more: Sequence[Node] = (),
) -> Path:  # fmt: skip
    folder = run.with_name(f"{run.name}-in")
    folder.mkdir(exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "web.jsonl").write_text(text)
    ingest = Ingest((str(folder / "web.jsonl"),), IngestConfig(rows_per_partition=per_partition), limit)
    nodes = [words or Words(), Groups(LENGTHS), Clusters(LENGTHS), Second(), Tokens(), *more]
    nodes.append(Select(read_policy(policy, "test")))
    Runner(run, ingest, nodes, workers=workers).run()
    return run


def fates(run: Path) -> dict[str, str | None]:
    inputs = open_run(run)
    ids, chosen = inputs.table("documents", ("id",))["id"].to_pylist(), inputs.table("selection").to_pylist()
    assert len(set(ids)) == len(ids) == len(chosen)
    assert all(choice["keep"] == (choice["reason"] is None) == (choice["weight"] == 1) for choice in chosen)
    return dict(zip(ids, (choice["reason"] for choice in chosen), strict=True))


OUTPUTS = ("documents", "annotations", "selection", "quarantine")


def hashes(run: Path, names: Sequence[str] = OUTPUTS) -> dict[str, str]:
    return {name: sha256_folder(run / name) for name in names}


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
    assert "test_datapipe_poison.py" in told["traceback"] and "in annotate" in told["traceback"]


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


# The pipeline --------------------------------------------------------------------------------------------------------

STAGES: dict[type[Stage], str] = {Language: "text", Url: "url", Heuristics: "text", Sketch: "text", Tokenise: "text"}


def raising(original: Any, column: str, marker: str) -> Any:
    def annotate(self: Stage, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        if any(marker in (text or "") for text in table[column].to_pylist()):
            raise ValueError(f"\x1b[31mcannot handle it at {object()!r}")
        return original(self, table, previous)

    return annotate


def marker(stage: type[Stage]) -> str:
    return f"poison{stage.__name__.lower()}"


def filtered(output: Path, corpus: Path) -> Path:
    import filter_olmo3  # pyright: ignore[reportMissingImports]

    arguments = ["--input", str(corpus), "--output", str(output), "--workers", "0", "--max-bad-fraction", "0.2"]
    assert filter_olmo3.main([*arguments, "--ingest.rows-per-partition", "24", "--bpe.vocabulary", "300"]) == 0
    return output


WHOLE = ("documents", "annotations", "unique", "selection", "tokenizer", "shards", "published", "quarantine")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Path]]:
    """(undisturbed run, disturbed run, the same after the stages were mended) of one corpus."""
    folder = tmp_path_factory.mktemp("pipeline")
    texts = [text for text in topics.values() if len(text) > 600]
    rows = [{"id": f"topic-{n}", "text": text, "source": "web"} for n, text in enumerate(texts[5:50])]
    for stage, text in zip(STAGES, texts, strict=False):
        address = f"https://example.com/{marker(stage)}"
        rows.append({"id": marker(stage), "text": f"{text}\n{marker(stage)}", "source": "web", "url": address})
    rows.insert(3, {"id": "copy", "text": texts[6].replace(" ", "  "), "source": "web"})
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    clean, hurt, mended = folder / "clean", folder / "hurt", folder / "mended"
    filtered(clean, folder / "web.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        for stage, column in STAGES.items():
            patch.setattr(stage, "annotate", raising(stage.annotate, column, marker(stage)))
        filtered(hurt, folder / "web.jsonl")
    shutil.copytree(hurt, mended)
    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:
            patch.setattr(stage, "version", stage.version + 1)
        filtered(mended, folder / "web.jsonl")
    yield clean, hurt, mended


def test_whichever_stage_it_was_the_document_is_set_aside_and_no_other(runs: tuple[Path, Path, Path]) -> None:
    clean, hurt, _ = runs
    before, after = fates(clean), fates(hurt)
    assert not {fate for fate in before.values() if fate == "quarantined"} and before["topic-1"] != before["copy"]
    assert {name for name, fate in after.items() if fate == "quarantined"} == {marker(stage) for stage in STAGES}
    assert {name: fate for name, fate in after.items() if fate != "quarantined"} == {
        name: fate for name, fate in before.items() if after[name] != "quarantined"
    }
    record = read_json(hurt / "run.json")
    assert record["status"] == "done" and record["quarantine"]["total"] == 6
    assert record["quarantine"]["by_reason"] == {
        "not JSON": 1, "stage heuristics": 1, "stage language": 1, "stage sketch": 1, "stage tokens": 1, "stage url": 1,
    }  # fmt: skip
    kept = sum(fate is None for fate in after.values())
    (counts,) = (node["counts"] for node in record["nodes"] if node["name"] == "shards_filtered")
    assert counts["documents"] == kept and kept + sum(fate is not None for fate in after.values()) == len(after)


def test_mended_it_ends_in_the_bytes_of_the_undisturbed_run(runs: tuple[Path, Path, Path]) -> None:
    clean, hurt, mended = runs
    assert hashes(mended, WHOLE) == hashes(clean, WHOLE) != hashes(hurt, WHOLE)
    assert verify(mended) == verify(clean)


def test_commands_and_the_page_tell_it(runs: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    clean, hurt, _ = runs
    for stage in STAGES:
        lines = explain(hurt, marker(stage))
        name = "tokens" if stage is Tokenise else stage.name
        assert lines[0] == f"{marker(stage)}: quarantined"
        assert lines[2] == rf"  stage '{name}' raised ValueError: \x1b[31mcannot handle it at <object object at 0x...>"
        assert lines[3] == f"  traceback in {next((hurt / 'quarantine' / name).iterdir())}"
    diff = run_diff(clean, hurt)
    assert {change.kind for change in diff.changes} == {"newly quarantined"}
    assert diff.groups["newly quarantined"].count.documents == len(STAGES)
    answer = what_if(hurt, policy_of(hurt, None, [], []))
    assert answer.quarantined.documents == answer.quarantined.documents_then == len(STAGES)
    assert not answer.newly_kept and not answer.newly_dropped
    cli.status(hurt)
    assert "quarantined: 6 (not JSON 1, stage heuristics 1" in capsys.readouterr().out
    from gristmill.report.run_folder import collect

    page = json.loads(collect(hurt).to_json())
    reasons = {found["reason"]: found for found in page["quarantine"]["reasons"]}
    assert page["quarantine"]["unhandled"] == len(STAGES) and page["overview"]["unhandled"] == len(STAGES)
    assert reasons["stage sketch"]["examples"][0]["detail"].startswith("poisonsketch: stage 'sketch' raised")
    second = page["funnel"]["rules"][1]
    assert (second["rule"], second["dropped_documents"]) == ("quarantined", len(STAGES))
    assert page["overview"]["documents_kept"] == sum(fate is None for fate in fates(hurt).values())
    (view,) = (view for view in page["samples"]["views"] if view["name"] == "quarantined")
    assert view["about"].startswith("Set aside: a stage could not handle them")
    measured = next(column for column in page["measures"]["columns"] if column["column"] == "olmo3_words")
    assert measured["measured"] == 1


class Look(Step):
    """What a step is shown of the marks."""

    name, folder, config = "look", "look", None
    requires = ("documents", "pii")

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        texts = TrainTokenizer(TokenizerConfig(), [Edit("pii.words")])._texts(inputs)
        (out / "texts.json").write_text(json.dumps([text for batch in texts for text in batch]))
        return {}


class Pii(Words):
    name, folder = "pii", "annotations/pii"

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        super().annotate(table, previous)
        return pa.table({"words": pa.array([[0, 1]] * len(table), pa.list_(pa.int32()))})


def test_a_text_whose_edits_are_not_known_teaches_no_tokenizer(tmp_path: Path) -> None:
    run = make(tmp_path / "run", documents(3, count=5), words=Words(lambda _: False), more=[Pii(), Look()])
    learned = read_json(run / "look" / "texts.json")
    assert len(learned) == 4 and not any(BAD in text for text in learned)
