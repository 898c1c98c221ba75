"""Clusters, differences and matches as the reader tells them, against numpy and datapipe over the same run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_report_reading import ask
from tests.support.reading_runs import POLICY, make, table

from gristmill.datapipe.contamination.report import _counts
from gristmill.datapipe.duplicate_report import _by_source, _codes, _limited, _pairs
from gristmill.report import duplicates
from gristmill.report.columns import open_rows
from gristmill.report.live_run import LiveRun
from gristmill.report.reading.clusters import parted
from gristmill.report.run_folder import collect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("reading") / "run", 400)


@pytest.fixture(scope="module")
def run(folder: Path) -> LiveRun:
    return LiveRun(folder)


@pytest.mark.parametrize("stage", ["exact", "near"])
def test_which_source_repeats_which_is_what_datapipe_counts(folder: Path, stage: str) -> None:
    class Inputs:
        def __init__(self) -> None:
            self.parts = {"documents": sorted(path.name for path in (folder / "documents").glob("*.parquet"))}

        def part(self, node: str, part: str, columns: tuple[str, ...]) -> pa.Table:
            import pyarrow.parquet as pq

            return pq.read_table(folder / node / part, columns=list(columns))

    source = _limited(_codes(Inputs(), "documents", "source"))  # pyright: ignore[reportArgumentType]
    cluster = table(folder, f"annotations/{stage}")["cluster"].to_numpy()
    count = np.bincount(cluster, minlength=len(cluster))
    rows = np.flatnonzero(count[cluster] > 1)
    rows = rows[np.argsort(cluster[rows], kind="stable")]
    group = np.unique(cluster[rows], return_inverse=True)[1]
    told = duplicates.clusters(open_rows(folder), stage, open_rows(folder).labels("documents", "source"))
    assert told["pairs"] == _pairs(source, rows, group).tolist() and np.sum(told["pairs"]) > 20
    theirs = _by_source(source, rows, rows[:0])
    assert [(one["source"], one["documents"], one["members"]) for one in told["sources"]] == [
        (one["source"], one["documents"], one["members"]) for one in theirs
    ]


def test_clusters_come_largest_first_with_the_one_that_stays(folder: Path, run: LiveRun) -> None:
    cluster = table(folder, "annotations/near")["cluster"].to_numpy()
    selection = table(folder, "selection")
    keep, reason = selection["keep"].to_pylist(), selection["reason"].to_pylist()
    order = [rule.name for rule in POLICY.rule]
    sizes = Counter(cluster.tolist())
    many = sorted((size for size in sizes.values() if size > 1), reverse=True)
    pages, at = [], 0
    while at is not None:
        page = ask(run, "clusters", stage="near", at=at, limit=3)
        pages, at = pages + page["page"], page["next"]
    assert [one["size"] for one in pages] == many and page["documents"] == sum(many)
    for one in pages:
        members, place = [], 0
        while place is not None:
            told = ask(run, "cluster", stage="near", row=one["stays"], at=place, limit=2)
            members, place = members + [line["row"] for line in told["members"]], told["next"]
        assert members == np.flatnonzero(cluster == cluster[one["stays"]]).tolist() and told["stays"] == one["stays"]
        asked = [row for row in members if keep[row] or order.index(reason[row]) >= order.index("near_duplicate")]
        survived = [row for row in asked if keep[row] or reason[row] != "near_duplicate"]
        assert len(survived) == bool(asked) and one["stays"] == (survived or members)[0]
    few = ask(run, "clusters", stage="near", **{"from": 2, "to": 2})
    assert few["clusters"] == many.count(2) and all(one["size"] == 2 for one in few["page"])
    row = next(one["stays"] for one in pages)
    assert {"stage": "near", "size": many[0], "stays": row} in ask(run, "document", row=row)["clusters"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b c d", "a x c d"), ("", "new words"), ("same\n\n text ", "same\n\n text "), ("  lead", "lead"),
        ("x " * 3_000 + "end", "x " * 2_999 + "y end"), ("a " * 4_000, "b " * 4_000), ("漢字 🌾", "漢字 🌾\u202e"),
    ],
)  # fmt: skip
def test_a_difference_holds_both_texts_as_far_as_it_goes(one: str, other: str) -> None:
    pieces, whole = parted(one, other)
    if not any(sign == "@" for sign, _ in pieces) and whole:
        assert "".join(text for sign, text in pieces if sign != "+") == one
        assert "".join(text for sign, text in pieces if sign != "-") == other
    assert sum(len(text) for _, text in pieces) < 20_000
    assert whole or max(len(one.split()), len(other.split())) > 1_500
    assert (one == other) == all(sign in "=@" for sign, _ in pieces)


def test_a_difference_is_of_the_documents_asked_for(folder: Path, run: LiveRun) -> None:
    written = table(folder, "documents")["text"].to_pylist()
    told = ask(run, "difference", row=3, other=8)
    assert "".join(text for sign, text in told["pieces"] if sign in "=-") == written[3]
    assert not told["same"] and told["whole"] and told["bytes"] == [len(written[row].encode()) for row in (3, 8)]
    assert ask(run, "difference", row=3, other=3)["same"]


def test_repeated_paragraphs_are_counted_by_source_and_share(folder: Path) -> None:
    told = collect(folder).duplicates["repeats"]
    assert [one["stage"] for one in told] == ["paragraphs"]
    cut, source = table(folder, "annotations/paragraphs"), np.array(table(folder, "documents")["source"].to_pylist())
    share, number = cut["share"].to_numpy(), cut["number"].to_numpy()
    repeated = np.nan_to_num(share) > 0
    assert (told[0]["looked"], told[0]["documents"]) == (np.isfinite(share).sum(), repeated.sum())
    assert told[0]["units"] == number.sum() and sum(bar["documents"] for bar in told[0]["bars"]) == repeated.sum()
    for one in told[0]["sources"]:
        mine = source == one["source"]
        assert (one["documents"], one["units"]) == ((repeated & mine).sum(), number[mine].sum())


def test_contamination_counts_what_datapipe_counts(folder: Path, run: LiveRun) -> None:
    found = table(folder, "annotations/contamination")
    score, thirteen = found["score"].to_numpy(), found["ngram_13"].to_numpy()
    called = {
        "score_08": score >= np.float32(0.8),
        "ngram_13_any": thirteen > 0,
        "ngram_8_07": found["ngram_8"].to_numpy() >= np.float32(0.7),
    }
    matched = (found["items"].to_numpy() > 0) | called["ngram_13_any"] | called["ngram_8_07"]
    columns = {**called, "matched": matched, "source": table(folder, "documents")["source"]}
    theirs = _counts(pa.table({**columns, "set": found["set"], "keep": table(folder, "selection")["keep"]}), "source")
    told = ask(run, "contamination")
    mine = {one["name"]: one for one in told["sources"]}
    for one in theirs:
        assert one.items() <= mine[one["name"]].items()
    assert told["matched"] == matched.sum() > 10 and told["touched"] == (score > 0).sum()
    assert sum(sum(one["bins"]) for one in told["sets"]) == told["touched"]
    assert [rule["name"] for rule in told["rules"]] == ["contaminated"] and not told["texts"]


def test_matches_are_the_strongest_first_with_what_stands_around_them(folder: Path, run: LiveRun) -> None:
    score = table(folder, "annotations/contamination")["score"].to_numpy()
    found, at = [], 0
    while at is not None:
        page = ask(run, "contamination_matches", at=at)
        found, at = found + page["matches"], page["next"]
    assert [one["row"] for one in found] == sorted(np.flatnonzero(score >= 0.5), key=lambda row: (-score[row], row))
    for one in found[:5]:
        assert [text for text, covers, _ in one["pieces"] if covers] == [f"{one['row']} "[:2]]  # bytes 7 to 9
        assert one["texts"] is None and one["item"] == f"item/{one['row']}"
    row = found[0]["row"]
    texts = {"question": "What <b>is</b> it?", "answer": "</script>", "passage": ""}
    (folder / "contamination").mkdir()
    report: dict[str, Any] = {"matches": [{"set": f"set{row % 2}", "item": f"item/{row}", "texts": texts}]}
    (folder / "contamination/report.json").write_text(json.dumps(report))
    first, second = ask(run, "contamination_matches")["matches"][:2]
    assert first["texts"] == {"question": texts["question"], "answer": texts["answer"]} and second["texts"] is None
    assert ask(run, "contamination")["texts"]
    only = ask(run, "contamination_matches", set="set1", which="touched")
    assert only["of"] == (score[1::2] > 0).sum() and {one["set"] for one in only["matches"]} == {"set1"}
