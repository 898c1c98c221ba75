"""The reader's answers against what pyarrow, numpy and datapipe itself say of the same run."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.reading_runs import POLICY, SOURCES, make, table

from gristmill.datapipe.policy import decide
from gristmill.datapipe.text import spans
from gristmill.report import questions
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import rules, texts
from gristmill.report.reading.catalogue import catalogue
from gristmill.report.run_folder import as_json, collect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("reading") / "run")


@pytest.fixture(scope="module")
def run(folder: Path) -> LiveRun:
    return LiveRun(folder)


def ask(run: LiveRun, question: str, **asked: Any) -> dict[str, Any]:
    answered = questions.answer(question, run, Asked({name: str(value) for name, value in asked.items()}))
    assert "error" not in answered, answered
    as_json(answered)
    return answered


def every(run: LiveRun, **asked: Any) -> list[int]:
    """Rows of all pages."""
    rows, at = [], 0
    while at is not None:
        page = ask(run, "documents", at=at, **asked)
        rows, at = rows + [one["row"] for one in page["documents"]], page["next"]
    return rows


def test_filters_leave_the_documents_that_the_selection_says(folder: Path, run: LiveRun) -> None:
    selection, documents = table(folder, "selection"), table(folder, "documents")
    keep, reason = selection["keep"].to_pylist(), selection["reason"].to_pylist()
    source, label = documents["source"].to_pylist(), table(folder, "annotations/language")["label"].to_pylist()
    rows = range(len(keep))
    assert every(run, outcome="kept") == [row for row in rows if keep[row]]
    assert every(run, outcome="dropped") == [row for row in rows if not keep[row]]
    for rule in {*reason} - {None}:
        assert every(run, rule=rule, limit=7) == [row for row in rows if reason[row] == rule]
        order = [one.name for one in POLICY.rule]
        left = [row for row in rows if keep[row] or order.index(reason[row]) > order.index(rule)]
        assert every(run, rule=rule, how="left") == left
    both = [row for row in rows if source[row] == "code" and label[row] == "fr" and not keep[row]]
    assert every(run, source="code", language="fr", outcome="dropped") == both and both
    assert every(run, language="(none)") == [row for row in rows if label[row] is None]
    counted = ask(run, "choices")
    assert {one["name"]: one["documents"] for one in counted["sources"]} == Counter(source)
    assert {one["name"]: one["documents"] for one in counted["outcomes"]}["kept"] == sum(keep)


def test_all_rules_that_a_document_fails_are_those_that_datapipe_says(folder: Path, run: LiveRun) -> None:
    source = table(folder, "documents")["source"].to_numpy().astype(str)
    held = catalogue(run)
    alone: dict[str, np.ndarray] = {}
    for rule in POLICY.rule:
        if rule.keep is None:  # asked first, each rule drops whatever fails it

            def column(annotation: str, name: str) -> pa.ChunkedArray:
                return table(folder, f"annotations/{annotation}")[name]

            asked = type(POLICY)("one", (rule,))
            alone[rule.name] = decide(asked, source, column, lambda name, source: None).reason == 0
    checks = {rule["name"]: rule for rule in held.rules}
    assert list(checks) == [rule.name for rule in POLICY.rule]
    for name, failed in alone.items():
        assert rules.failing(checks[name], held.rows, held.source, held.reason).tolist() == failed.tolist()
        assert every(run, rule=name, how="any", limit=50) == np.flatnonzero(failed).tolist()
    assert alone["share"].any() and not alone["share"][source == "papers"].any()
    for row in range(0, len(source), 11):
        told = ask(run, "document", row=row)
        assert set(told["outside"]) == {name for name, failed in alone.items() if failed[row]}
        assert (
            told["values"]["annotations/heuristics/words"]
            == table(folder, "annotations/heuristics")["words"][row].as_py()
        )
    share = table(folder, "annotations/heuristics")["share"].to_numpy()
    held_at_bound = (share == np.float32(0.2)) & (source == "web")  # a fifth in 32 bits is more than one in 64
    assert held_at_bound.any() and not alone["share"][held_at_bound].any()


def test_sorted_pages_are_stable_and_hold_every_document_once(folder: Path, run: LiveRun) -> None:
    values = table(folder, "annotations/scores")["quality"].to_numpy()
    rising = np.argsort(values, kind="stable").tolist()  # those without a value are last
    assert every(run, sort="scores.quality", limit=13) == rising
    down = every(run, sort="scores.quality", order="falling")
    known = np.isfinite(values[down])
    assert (np.diff(values[down][known]) <= 0).all() and not known[known.sum() :].any()
    near = every(run, sort="scores.quality", order="nearest", outcome="kept")
    assert (np.diff(np.abs(values[near] - np.float32(0.4))) >= -1e-7).all()
    nearest = every(run, sort="heuristics.share", order="nearest")
    limit = np.array(
        [{"web": 0.2, "code": 0.3}.get(name, np.nan) for name in table(folder, "documents")["source"].to_pylist()]
    )
    distance = np.abs(table(folder, "annotations/heuristics")["share"].to_numpy() - limit.astype(np.float32))[nearest]
    assert (np.diff(distance[np.isfinite(distance)]) >= -1e-7).all() and np.isnan(distance[-1])


@pytest.mark.parametrize(
    ("wanted", "fold"),
    [
        ("number 1", "yes"), ("Number 1", "no"), ("number 1", "no"), ("漢🌾", "no"), ("Ñ", "yes"), ("(.*", "no"),
        ("\0", "yes"),
    ],
)  # fmt: skip
def test_a_search_finds_what_a_search_in_python_does(folder: Path, run: LiveRun, wanted: str, fold: str) -> None:
    written = table(folder, "documents")["text"].to_pylist()
    fits = [(wanted.lower() in text.lower()) if fold == "yes" else (wanted in text) for text in written]
    assert every(run, text=wanted, fold=fold, limit=9) == np.flatnonzero(fits).tolist()
    source = table(folder, "documents")["source"].to_pylist()
    mine = [row for row in np.flatnonzero(fits).tolist() if source[row] == "web"]
    assert every(run, text=wanted, fold=fold, source="web") == mine
    page = ask(run, "documents", text=wanted, fold=fold)
    for one in page["documents"]:
        found = "".join(text for text, _, hit in one["pieces"] if hit)
        assert wanted.lower() in found.lower()


def test_a_search_stops_after_a_bounded_amount_and_goes_on(run: LiveRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from gristmill.report.reading import browse

    whole = every(run, text="Number 29", limit=50)
    monkeypatch.setattr(browse, "LOOK", 1)
    monkeypatch.setattr(browse, "BATCH", 16)
    first = ask(run, "documents", text="Number 29")
    assert first["documents"][:1] == [] and first["looked"] == 16 and first["next"] == 16 and first["of"] == 300
    assert every(run, text="Number 29") == whole == [29, *range(290, 300)]


def test_ids_are_found_whole_or_by_their_beginning(run: LiveRun) -> None:
    assert every(run, id="doc-0012") == list(range(120, 130)) and every(run, id="doc-0012", exact="yes") == []
    assert every(run, id="doc-00123", exact="yes") == [123] and every(run, id="doc-00123", text="Number 124") == []


def test_cut_spans_are_marked_where_datapipe_cuts(folder: Path, run: LiveRun) -> None:
    documents = table(folder, "documents")
    email, cut = table(folder, "annotations/pii")["email"], table(folder, "annotations/paragraphs")["cut"]
    seen = 0
    for row in range(0, 300, 3):
        told = ask(run, "document", row=row)
        web = told["source"] == "web"
        titles = [one["title"] for one in told["spans"]]
        made = {title for one, title in zip(told["spans"], titles) if one["made"]}
        assert made <= {"pii.email: replaced by <EMAIL>", "paragraphs.cut: cut"} and (
            web or "paragraphs.cut: cut" not in made
        )
        pieces = told["text"]["pieces"]
        assert "".join(text for text, *_ in pieces) == documents["text"][row].as_py()
        covering = [(email.slice(row, 1), "")] + ([(cut.slice(row, 1), "")] if web else [])
        left = spans.apply(documents["text"].slice(row, 1), covering)[0].as_py()
        assert "".join(text for text, covers, _ in pieces if not {titles[at] for at in covers} & made) == left
        seen += bool(made)
    assert seen > 20
    shown = [one for one in collect(folder).samples["documents"].values() if "pieces" in one]
    assert shown and all("".join(piece[0] for piece in one["pieces"]) == one["text"] for one in shown)


def test_a_long_document_is_read_in_parts_that_join(folder: Path, tmp_path: Path) -> None:
    long = "é漢🌾 " * 9_000 + "needle in the HAY " + "x" * 30_000 + " Hay"
    run = LiveRun(make(tmp_path / "run", 30, 1, texts=[long]))
    read, at = "", 0
    while True:
        part = ask(run, "document", row=0, at=at)["text"]
        assert part["from"] == len(read.encode()) and part["to"] - part["from"] <= texts.PART + 4
        read += "".join(piece[0] for piece in part["pieces"])
        if part["part"] == part["parts"]:
            break
        at = part["part"] * texts.PART
    assert read == long
    first = ask(run, "document", row=0, find="hay")["text"]
    assert first["from"] <= long.encode().index(b"HAY") < first["to"] and [p[0] for p in first["pieces"] if p[2]] == [
        "HAY"
    ]
    after = ask(run, "document", row=0, find="hay", at=first["next_hit"])["text"]
    assert after["next_hit"] is None and [p[0] for p in after["pieces"] if p[2]] == ["Hay"]
    assert len(as_json(ask(run, "documents"))) < 40_000


def test_the_funnel_by_language_adds_up(folder: Path, run: LiveRun) -> None:
    told = ask(run, "funnel_by_language")
    label = [name or "(none)" for name in table(folder, "annotations/language")["label"].to_pylist()]
    reason = table(folder, "selection")["reason"].to_pylist()
    tokens = table(folder, "annotations/tokens")["count"].to_numpy()
    by_source = {row["rule"]: row for row in collect(folder).funnel["rules"]}
    assert set(told["groups"]) == set(label)
    for row in told["rules"]:
        assert sum(row["documents"]) == by_source[row["rule"]]["documents"]
        assert sum(row["tokens"]) == by_source[row["rule"]]["tokens"]
        for at, name in enumerate(told["groups"]):
            mine = np.array([one == row["rule"] and mine == name for one, mine in zip(reason, label)])
            assert (row["dropped_documents"][at], row["dropped_tokens"][at]) == (mine.sum(), tokens[mine].sum())


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("documents", {"outcome": "lost"}), ("documents", {"rule": "none such"}), ("documents", {"source": "moon"}),
        ("documents", {"language": "xx"}), ("documents", {"sort": "language.label"}), ("documents", {"sort": "x"}),
        ("documents", {"sort": "tokens.count", "order": "nearest"}), ("documents", {"at": "-1"}),
        ("documents", {"limit": "51"}), ("documents", {"how": "maybe"}), ("documents", {"text": "x" * 20_001}),
        ("document", {"row": "300"}), ("document", {"row": "x"}), ("document", {"row": "0", "at": "99999999"}),
        ("clusters", {"stage": "../near"}), ("clusters", {"from": "1"}), ("cluster", {"stage": "near", "row": "1e3"}),
        ("difference", {"row": "0", "other": "300"}), ("contamination_matches", {"set": "none"}),
        ("contamination_matches", {"which": "all"}),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(run: LiveRun, question: str, asked: dict[str, str]) -> None:
    with pytest.raises(AskedWrong):
        questions.answer(question, run, Asked(asked))


def test_without_a_selection_documents_can_be_read_already(folder: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(partial / "selection")
    run = LiveRun(partial)
    assert every(run, source="papers") and ask(run, "document", row=3)["keep"] is None
    assert ask(run, "choices")["outcomes"] == [{"name": "all", "documents": 300}]
    assert ask(run, "documents", outcome="kept") == {"missing": "selection/", "made_by": "the select stage"}
    assert ask(run, "funnel_by_language")["missing"] == "selection/" and ask(run, "clusters", stage="near")["clusters"]


def test_what_is_held_follows_the_files(folder: Path, tmp_path: Path) -> None:
    partial = shutil.copytree(folder, tmp_path / "run")
    run = LiveRun(partial)
    before = ask(run, "documents", outcome="kept")["of"]
    for path in sorted((partial / "selection").glob("part-*.parquet")):
        old = pq.read_table(path)
        pq.write_table(old.set_column(0, "keep", pa.array([False] * len(old))), path)
    assert before > 0 and ask(run, "documents", outcome="kept")["of"] == 0
    assert set(SOURCES) == {one["name"] for one in ask(run, "choices")["sources"]}
