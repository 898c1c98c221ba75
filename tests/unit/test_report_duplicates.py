"""The page's duplicates: from the run's own report where there is one, else from annotations; hostile text as data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_report_page import HOSTILE, inlined, make_run, write_json, write_parts

from gristmill.report.page import build
from gristmill.report.run_folder import collect

SAMPLE = {"row": 3, "id": HOSTILE[3], "source": HOSTILE[1], "keep": False, "characters": 9, "excerpt": HOSTILE[0]}
REPORT: dict[str, Any] = {
    "annotation": "near",
    "documents": 3000,
    "clusters": 1,
    "members": 3,
    "duplicates": 2,
    "tokens": 5000,
    "duplicate_tokens": 40,
    "sizes": [
        {"from": 1, "to": 1, "clusters": 2997, "documents": 2997},
        {"from": 2, "to": 2, "clusters": 0, "documents": 0},
        {"from": 3, "to": 4, "clusters": 1, "documents": 3},
    ],
    "sources": [
        {"source": HOSTILE[1], "documents": 2000, "members": 2, "duplicates": 1},
        {"source": "web", "documents": 1000, "members": 1, "duplicates": 1},
    ],
    "pairs": [[2, 2], [1, 0]],
    "largest": [
        {
            "cluster": 3,
            "size": 3,
            "sources": {HOSTILE[1]: 2, "web": 1},
            "kept": 1,
            "dropped": {HOSTILE[2]: 2},
            "similarity": 0.71,
            "samples": [SAMPLE, SAMPLE | {"row": 5, "keep": True}],
            "difference": [" same", "-" + HOSTILE[0], "+" + HOSTILE[3], "@@"],
        }
    ],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def run(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "run")


def test_the_runs_own_report_is_shown_and_counts_nothing_again(run: Path) -> None:
    before = {stage["stage"]: stage for stage in collect(run).duplicates["stages"]}
    write_json(run / "duplicates/report.json", {"annotations": [REPORT]})
    stages = {stage["stage"]: stage for stage in collect(run).duplicates["stages"]}
    assert list(stages) == ["exact", "near"] and stages["exact"] == before["exact"]
    near = stages["near"]
    assert (near["examined"], near["redundant"], near["buckets"]) == (3000, 2, REPORT["sizes"])
    assert all(near[name] == REPORT[name] for name in ("tokens", "duplicate_tokens", "sources", "pairs"))
    assert near["largest"] == [REPORT["largest"][0] | {"members": []}]


def test_hostile_text_of_a_cluster_reaches_the_page_as_data_only(run: Path, tmp_path: Path) -> None:
    write_json(run / "duplicates/report.json", {"annotations": [REPORT]})
    page = build(run, tmp_path / "page.html").read_text(encoding="utf-8")
    near = inlined(page)["duplicates"]["stages"][1]
    assert near["largest"][0]["difference"][1] == "-" + HOSTILE[0]
    for raw in ("alert(1)</script>", "<img", "<!--", "\u2028", "\u202e", "\u200b", "\x1b"):
        assert raw not in page
    assert page.count("<script") == 2 and page.count("</script") == 2


def test_every_kind_of_duplicates_is_shown_without_a_report(run: Path) -> None:
    cluster = np.arange(3000)
    cluster[[7, 9, 1500]] = 7
    size = np.bincount(cluster)[cluster].astype(np.int32)
    for name in ("same_url", "semantic"):
        write_parts(run / "annotations" / name, pa.table({"cluster": cluster, "size": size}), 3)
    stages = collect(run).duplicates["stages"]
    assert [stage["stage"] for stage in stages] == ["exact", "same_url", "near", "semantic"]
    assert stages[3]["redundant"] == pytest.approx(2) and stages[3]["largest"][0]["members"] == [7, 9]
    documents = collect(run).samples["documents"]
    assert {"7", "9"} <= set(documents)  # their texts come along


@pytest.mark.parametrize("written", ["{", "[]", '{"annotations": {}}', '{"annotations": [{"annotation": "near"}]}'])
def test_a_broken_report_costs_only_its_panel(run: Path, written: str) -> None:
    (run / "duplicates").mkdir()
    (run / "duplicates/report.json").write_text(written, encoding="utf-8")
    data = json.loads(collect(run).to_json())
    assert data["duplicates"]["error"] and "views" in data["samples"]
