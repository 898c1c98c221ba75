"""The duplicate report: numbers counted by hand and by brute force, samples that fit in memory, text that is safe."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.datapipe import cli
from gristmill.datapipe.duplicate_report import MOST_SOURCES, DuplicateReport, duplicate_report, duplicate_reports
from gristmill.datapipe.duplicate_samples import DIFF_LINES, EXCERPT, READ, choose, difference
from gristmill.datapipe.workflow.stage import Inputs, open_run

PARTS = (4, 0, 7)


def write(folder: Path, columns: dict[str, Any], parts: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    table, start = pa.table(columns), 0
    for number, rows in enumerate(parts):
        pq.write_table(table.slice(start, rows), folder / f"part-{number:05d}.parquet")
        start += rows


def make_run(run: Path, parts: Sequence[int] = PARTS, **annotations: dict[str, Any]) -> Path:
    rows = sum(parts)
    nodes = {"documents": "documents", "selection": "selection"}
    nodes |= {name: f"annotations/{name}" for name in annotations}
    folders = {"documents": annotations.pop("documents"), "selection": annotations.pop("selection"), **annotations}
    assert all(len(values) == rows for columns in folders.values() for values in columns.values())
    for name, columns in folders.items():
        write(run / (name if name in ("documents", "selection") else f"annotations/{name}"), columns, parts)
    (run / "ledger").mkdir()
    (run / "ledger/outputs.json").write_text(json.dumps(nodes | {"documents": "documents", "selection": "selection"}))
    return run


def texts(*texts: str) -> dict[str, Any]:
    return {"id": [f"d{row}" for row in range(len(texts))], "text": list(texts)}


LINES = [f"This is sentence {number} of the licence." for number in range(60)]
LICENCE = " ".join(LINES)
CHANGED = " ".join([*LINES[:40], "Here a mirror says \x1b[31mhello\u202e.", *LINES[41:]])
#          0  1  2  3 | 4  5  6  7  8  9  10
SOURCES = ["a", "a", "b", "c", "a", "b", "b", "c", "a", "a", "b"]
CLUSTERS = [0, 1, 0, 3, 1, 0, 6, 3, 0, 9, 0]  # {0, 2, 5, 8, 10} {1, 4} {3, 7}
KEEP = [False, True, False, False, False, True, True, False, True, False, False]
REASONS = ["words", None, "near", "near", "near", None, None, "near", None, "words", "near"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = texts(LICENCE, "one", LICENCE, "", "one", LICENCE, "alone", "", CHANGED, "same", LICENCE)
    near: dict[str, Any] = {
        "cluster": CLUSTERS,
        "size": np.array([CLUSTERS.count(cluster) for cluster in CLUSTERS], np.int32),
        "similarity": pa.array([1, 0.9, 1, None, 0.9, 1, None, None, 0.75, None, 1], pa.float32()),
    }
    return make_run(
        tmp_path_factory.mktemp("duplicates") / "run",
        documents=documents | {"source": SOURCES},
        selection={"keep": KEEP, "reason": pa.array(REASONS, pa.string())},
        tokens={"count": np.array([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110], np.int32)},
        near=near,
        exact={name: near[name] for name in ("cluster", "size")},
    )


def test_numbers_counted_by_hand(run: Path) -> None:
    report = duplicate_report(open_run(run), "near")
    assert (report["documents"], report["clusters"], report["members"], report["duplicates"]) == (11, 3, 9, 6)
    # 5 stays of the first cluster (kept, and before 8), 1 of the second, 3 of the third, of which none is kept.
    assert report["duplicate_tokens"] == (10 + 30 + 90 + 110) + 50 + 80 and report["tokens"] == 660
    assert report["sizes"] == [
        {"from": 1, "to": 1, "clusters": 2, "documents": 2},
        {"from": 2, "to": 2, "clusters": 2, "documents": 4},
        {"from": 3, "to": 4, "clusters": 0, "documents": 0},
        {"from": 5, "to": 8, "clusters": 1, "documents": 5},
    ]
    assert [tuple(source.values()) for source in report["sources"]] == [("a", 5, 4, 3), ("b", 4, 3, 2), ("c", 2, 2, 1)]
    # a: 0 and 8 have each other and 2, 5, 10 of b; 1 and 4 each other. c: 3 and 7 only each other.
    assert report["pairs"] == [[4, 2, 0], [3, 3, 0], [0, 0, 2]]


def test_the_largest_clusters_and_their_samples(run: Path) -> None:
    first, second, third = duplicate_report(open_run(run), "near")["largest"]
    assert [cluster["cluster"] for cluster in (first, second, third)] == [0, 1, 3]  # of equal size, the earlier
    assert first["sources"] == {"b": 3, "a": 2} and (first["size"], first["kept"]) == (5, 2)
    assert first["dropped"] == {"near": 2, "words": 1} and first["similarity"] == 0.75
    assert [sample["row"] for sample in first["samples"]] == [0, 5, 8]  # first, first kept, least alike
    assert [sample["keep"] for sample in first["samples"]] == [False, True, True]
    assert first["samples"][2] == {
        "id": "d8", "source": "a", "characters": len(CHANGED), "row": 8, "keep": True, "excerpt": CHANGED[:EXCERPT],
    }  # fmt: skip
    assert f"-{LINES[40]}" in first["difference"] and "+Here a mirror says \x1b[31mhello\u202e." in first["difference"]
    assert f" {LINES[39]}" in first["difference"] and not any(LINES[3] in line for line in first["difference"])
    assert second["difference"] is None and third["similarity"] is None
    assert [sample["excerpt"] for sample in third["samples"]] == ["", ""]
    assert len(duplicate_report(open_run(run), "near", 1)["largest"]) == 1
    assert duplicate_report(open_run(run), "near", 0)["largest"] == []


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 40))
def test_source_pairs_equal_brute_force(seed: int, rows: int, sources: int) -> None:
    import tempfile

    draw = np.random.default_rng(seed)
    groups = draw.integers(0, max(1, rows // 3), rows)
    cluster = np.array([np.flatnonzero(groups == group)[0] for group in groups])
    source = [f"s{number}" for number in draw.integers(0, sources, rows)]
    keep, tokens = draw.random(rows) < 0.5, draw.integers(0, 100, rows)
    parts = np.bincount(draw.integers(0, 3, rows), minlength=3).tolist()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(
            Path(folder) / "run",
            parts,
            documents=texts(*["text"] * rows) | {"source": source},
            selection={"keep": keep, "reason": pa.nulls(rows, pa.string())},
            tokens={"count": tokens.astype(np.int32)},
            exact={"cluster": cluster, "size": np.bincount(cluster)[cluster].astype(np.int32)},
        )
        report = duplicate_report(open_run(run), "exact")
    names = [one["source"] for one in report["sources"]]
    known = names if len(names) <= MOST_SOURCES else names[:-1]
    told = [name if name in known else names[-1] for name in source]
    expected = [
        [
            sum(
                told[row] == one
                and any(cluster[row] == cluster[j] and told[j] == other for j in range(rows) if j != row)
                for row in range(rows)
            )
            for other in names
        ]
        for one in names
    ]
    assert report["pairs"] == expected
    assert len(names) <= MOST_SOURCES + 1 and sum(one["documents"] for one in report["sources"]) == rows
    stays = [min((not keep[row], row) for row in np.flatnonzero(cluster == name))[1] for name in np.unique(cluster)]
    assert report["duplicate_tokens"] == tokens.sum() - tokens[stays].sum()
    assert report["duplicates"] == rows - len(stays) == sum(one["duplicates"] for one in report["sources"])
    assert report["members"] == sum(size["documents"] for size in report["sizes"][1:])


def test_the_step_and_the_command_tell_the_same(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = open_run(run)
    step = DuplicateReport(("exact", "near"), limit=2)
    assert step.dependencies == ("documents", "tokens", "selection", "exact", "near")
    given = Inputs({name: inputs.folders[name] for name in step.requires}, inputs.parts)
    assert step.run(given, tmp_path) == {"exact_duplicates": 6, "near_duplicates": 6}
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written == {"annotations": duplicate_reports(run, limit=2)}
    cli.duplicates(run, limit=2, json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed) == written and printed.isascii()


def test_hostile_text_cannot_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202eevil\nnext\u2028\x00"
    run = make_run(
        tmp_path / "run",
        (3,),
        documents={"id": [hostile] * 3, "text": [hostile] * 3, "source": [hostile, hostile, "漢字"]},
        selection={"keep": [True, False, True], "reason": [None, hostile, None]},
        same_url={"cluster": [0, 0, 2], "size": np.array([2, 2, 1], np.int32)},
    )
    cli.duplicates(run, of="same_url")
    printed = capsys.readouterr().out
    assert "66.7%" not in printed and "33.3%" in printed and "100.0%" in printed and "漢字" in printed
    assert not set("\x1b\u202e\u2028\x00") & set(printed) and "\\x1b[2J" in printed
    assert "tokens" not in printed  # the run has not counted them
    cli.duplicates(run, of="same_url", json=True)
    assert json.loads(capsys.readouterr().out)["annotations"][0]["largest"][0]["samples"][0]["id"] == hostile


def test_what_is_missing_or_does_not_fit_is_told(run: Path, tmp_path: Path) -> None:
    documents = texts("a", "b", "c") | {"source": ["x"] * 3}
    selection = {"keep": [True] * 3, "reason": pa.nulls(3, pa.string())}
    whole = {"cluster": pa.array([0, None, 0]), "size": np.ones(3, np.int32)}
    broken = make_run(
        tmp_path / "run", (3,), documents=documents, selection=selection, exact=whole, near=whole, semantic=whole
    )
    report = duplicate_report(open_run(broken), "exact")
    assert (report["clusters"], report["duplicates"], report["tokens"]) == (1, 1, None)  # without a cluster: alone
    with pytest.raises(GristmillError, match="no column 'similarity'"):
        duplicate_report(open_run(broken), "near")
    with pytest.raises(GristmillError, match=r"no 'same_url' yet .*exact, near, semantic"):
        duplicate_report(open_run(broken), "same_url")
    with pytest.raises(UsageError, match="limit"):
        duplicate_report(open_run(broken), "exact", -1)
    write(tmp_path / "a", {"cluster": [0, 0], "size": [2, 2]}, (2,))
    write(tmp_path / "b", {"cluster": [0, 7, 0], "size": [2, 1, 2]}, (3,))
    for folder, message in (("a", "2 rows beside 3 documents"), ("b", "named by a row")):
        inputs = open_run(broken)
        other = Inputs({**inputs.folders, "exact": tmp_path / folder}, inputs.parts)
        with pytest.raises(DataError, match=message):
            duplicate_report(other, "exact")
    with pytest.raises(GristmillError, match="not a run folder"):
        duplicate_reports(tmp_path)
    no_rows = make_run(
        tmp_path / "empty",
        (0,),
        documents={
            "id": pa.array([], pa.string()),
            "text": pa.array([], pa.string()),
            "source": pa.array([], pa.string()),
        },
        selection={"keep": pa.array([], pa.bool_()), "reason": pa.array([], pa.string())},
        exact={"cluster": pa.array([], pa.int64())},
    )
    report = duplicate_report(open_run(no_rows), "exact")
    assert report["documents"] == report["duplicates"] == 0 and report["largest"] == report["sources"] == []


def test_a_huge_document_is_shown_in_part(tmp_path: Path) -> None:
    huge = "word " * 2_000_000
    run = make_run(
        tmp_path / "run",
        (3,),
        documents=texts(huge, huge + "end", "x" + huge) | {"source": ["a"] * 3},
        selection={"keep": [True] * 3, "reason": pa.nulls(3, pa.string())},
        exact={"cluster": [0, 0, 0], "size": np.full(3, 3, np.int32)},
    )
    started = time.process_time()
    (cluster,) = duplicate_report(open_run(run), "exact")["largest"]
    assert time.process_time() - started < 5
    assert [sample["characters"] for sample in cluster["samples"]] == [len(huge), len(huge) + 3, len(huge) + 1]
    assert all(len(sample["excerpt"]) == EXCERPT for sample in cluster["samples"])
    assert 0 < len(cluster["difference"]) <= DIFF_LINES + 1


def test_differences_are_short_whatever_the_texts() -> None:
    started = time.process_time()
    same = "x" * READ
    cases = [
        (same, "y" * READ),
        ("a.\n" * 30_000, "b.\n" * 30_000),
        ("a.\n" * 30_000, "a.\nb.\n" * 20_000),
        ("!" * READ, "! " * 40_000),
        (" " * READ, "\n" * READ),
        ("", same),
        ("a b", "a  b"),
    ]
    for one, other in cases:
        lines = difference(one, other)
        assert len(lines) <= DIFF_LINES + 1 and all(len(line) <= 161 and "\n" not in line for line in lines)
        assert {line[0] for line in lines} <= set(" +-@")
    assert time.process_time() - started < 5
    assert difference("One. Two. Three.", "One. 2. Three.") == [" One.", "-Two.", "+2.", " Three."]
    assert difference("-- a\n++ b\n@@ c", "-- a\n++ x\n@@ c") == [" -- a", "-++ b", "+++ x", " @@ c"]
    late = [f"Sentence {number}." for number in range(2000)]
    lines = difference(" ".join(late), " ".join([*late[:1500], "Other.", *late[1501:]]))
    assert "-Sentence 1500." in lines and "+Other." in lines


def test_samples_are_the_first_the_kept_and_the_least_alike() -> None:
    keep, similarity = np.zeros(9, bool), np.full(9, np.nan, np.float32)
    assert choose(np.array([2, 4]), keep, similarity) == [2, 4]
    assert choose(np.arange(9), keep, similarity) == [0, 4, 8]
    keep[5], similarity[:] = True, 0.9
    similarity[3] = 0.7
    assert choose(np.arange(9), keep, similarity) == [0, 5, 3]
    similarity[0] = 0.1
    assert choose(np.arange(9), keep, similarity) == [0, 5, 8]
