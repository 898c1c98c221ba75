"""Documents that attack: every answer stays data, bounded and readable, whatever the bytes, ids and names are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report_page import inlined
from test_report_reading import ask, every
from tests.support.reading_runs import ATTACKS, BROKEN, make_hostile

from gristmill.report.live_run import LiveRun
from gristmill.report.page import build
from gristmill.report.reading import texts
from gristmill.report.run_folder import as_json, collect


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    return LiveRun(make_hostile(tmp_path_factory.mktemp("hostile") / "run"))


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("choices", {}), ("documents", {"limit": 50}), ("documents", {"at": 50}), ("funnel_by_language", {}),
        ("documents", {"text": "<b>x"}), ("documents", {"text": "\x00", "fold": "no"}), ("clusters", {"stage": "near"}),
        ("contamination", {}), ("contamination_matches", {"limit": 20}), ("difference", {"row": 0, "other": 26}),
    ],
)  # fmt: skip
def test_every_answer_is_bounded_json(run: LiveRun, question: str, asked: dict[str, Any]) -> None:
    text = as_json(ask(run, question, **asked))
    assert text.isascii() and len(text) < 400_000
    json.loads(text)


def test_every_document_can_be_read_whatever_its_bytes(run: LiveRun) -> None:
    for row in range(60):
        told = ask(run, "document", row=row, find="<b>")
        assert len(as_json(told)) < 400_000 and told["id"] is not None
        assert told["text"]["to"] - told["text"]["from"] <= texts.PART + 4
    broken = ask(run, "document", row=60 - len(BROKEN))
    assert "".join(piece[0] for piece in broken["text"]["pieces"]).startswith("half a pair \ufffd")
    assert ask(run, "document", row=0)["text"]["pieces"][0][0].startswith("</script><script>")


def test_a_line_of_ten_megabytes_is_searched_and_read_in_parts(run: LiveRun) -> None:
    last = ask(run, "document", row=26, at=9_999_999)["text"]
    assert last["bytes"] == 10_000_000 and last["part"] == last["parts"] == 417 and last["to"] == 10_000_000
    assert len(ask(run, "documents", text="<b>x", at=26)["documents"][0]["pieces"]) < 1_000
    assert 26 in every(run, text="<B>X<b>")


def test_names_of_hostile_sources_languages_and_rules_are_only_names(run: LiveRun) -> None:
    counted = ask(run, "choices")
    assert {one["name"] for one in counted["sources"]} == set(ATTACKS)
    for name in ATTACKS:
        if name:  # an empty one is the filter that is none
            assert all(row % len(ATTACKS) == ATTACKS.index(name) for row in every(run, source=name))
            assert every(run, language=name) == every(run, source=name) != []
            assert every(run, id=name, exact="yes") == [ATTACKS.index(name)]
    for name in ATTACKS[:4]:
        assert every(run, rule=name) and isinstance(every(run, rule=name, how="any"), list)
    column = f"<img src=x onerror=alert(1)>.{ATTACKS[1]}"
    assert every(run, sort=column, order="falling")[:2] == [29, 59]


def test_the_static_page_holds_hostile_documents_as_data(run: LiveRun, tmp_path: Path) -> None:
    page = build(run.folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and page.count("</script") == 2 and len(page) < 4_000_000
    for raw in ("<img", "<iframe", "<!--", "<style>body", "\u2028", "\u202e", "\u200b", "\x1b", "\x00"):
        assert raw not in page
    data = inlined(page)
    assert not [name for name, panel in data.items() if "error" in panel]
    assert data["samples"]["documents"] and collect(run.folder).duplicates["stages"]
