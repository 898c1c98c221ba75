"""Repeated lines, paragraphs and passages: the first of the corpus stays, every other goes, however the run is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gristmill.datapipe.dedup.substrings import SubstringConfig
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.stages.repeats import UnitConfig, line_nodes, paragraph_nodes, substring_nodes
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Stage, open_run


class Unique(Stage):
    """Stands for a selection: drops what begins with DROP."""

    name, folder, config = "unique", "unique", None

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"keep": [not text.startswith("DROP") for text in table["text"].to_pylist()]})


def run(folder: Path, texts: list[str], partition: int = 100, workers: int = 0) -> dict[str, pa.Table]:
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    unit = UnitConfig(min_words=3)
    nodes = [Unique(), *line_nodes(unit), *paragraph_nodes(unit), *substring_nodes(SubstringConfig(12, 6))]
    Runner(folder, Ingest((str(path),), IngestConfig(rows_per_partition=partition)), nodes, workers=workers).run()
    return {name: open_run(folder).table(name) for name in ("lines", "paragraphs", "substrings")}


def after(texts: list[str], table: pa.Table) -> list[str]:
    return spans.apply(pa.array(texts), [(table["cut"], "")]).to_pylist()


def test_a_line_stays_where_it_stands_first(tmp_path: Path) -> None:
    texts = [
        "One line of text.\nShare this page now!\nAnother line here.",
        "share  THIS page now!\r\nSomething else is here.\nshare this page now!",
        "DROP it, please.\nOnly here and later.",
        "Only here and later.\nno no\nno no\n",
    ]
    found = run(tmp_path / "run", texts)["lines"]
    assert after(texts, found) == [texts[0], "Something else is here.", texts[2], texts[3]]
    assert found["number"].to_pylist() == [0, 2, None, 0]  # what the rules drop is not looked at
    assert found["share"].to_pylist()[1] == pytest.approx(1 - len("Something else is here.") / len(texts[1]))


def test_paragraphs_are_whole_or_stay(tmp_path: Path) -> None:
    texts = [
        "First of all\nis this one.\n\nTail of first.",
        "Head of second.\n\nfirst of all is this one.\n\nEnd, it is.",
    ]
    assert after(texts, run(tmp_path / "run", texts)["paragraphs"]) == [texts[0], "Head of second.\n\nEnd, it is."]


def test_passages_are_cut_wherever_they_stand(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = [[f"w{n}" for n in generator.integers(0, 10_000, 40)] for _ in range(4)]
    words[1][5:25] = words[0][10:30]  # twenty words of the first
    words[2][0:11] = words[0][0:11]  # eleven are too few
    words[3][10:40] = ["again"] * 30  # itself, over and over
    texts = [" ".join(document) for document in words]
    found = run(tmp_path / "run", texts)["substrings"]
    cut = after(texts, found)
    assert found["number"].to_pylist() == [0, 1, 0, 1]
    assert cut[0] == texts[0] and cut[2] == texts[2]
    assert cut[1].split() == words[1][:5] + words[1][25:]
    assert cut[3].split() == words[3][:22]


def passages(texts: list[str], size: int) -> list[list[str]]:
    """By comparing every window with all before it, and cutting what later windows cover."""
    seen: dict[tuple[str, ...], tuple[int, int]] = {}
    left = []
    for number, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        cut = [False] * len(words)
        for at in range(len(words) - size + 1):
            key = tuple(words[at : at + size])
            if key not in seen:
                seen[key] = number, at
            else:
                begin = max(at, seen[key][1] + size) if seen[key][0] == number else at
                cut[begin : at + size] = [True] * max(0, at + size - begin)
        left.append([word for word, gone in zip(words, cut, strict=True) if not gone])
    return left


def test_the_cut_of_the_run_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    generator = np.random.default_rng(2)
    lines = [" ".join(f"w{n}" for n in generator.integers(0, 8, 6)) for _ in range(30)]
    texts = ["\n".join(lines[n] for n in generator.integers(0, 30, 8)) for _ in range(40)]
    whole = run(tmp_path / "whole", texts)
    for partition, workers in ((1, 0), (7, 2)):
        other = run(tmp_path / f"by-{partition}", texts, partition, workers)
        assert all(other[name] == whole[name] for name in whole)
    assert [text.split() for text in after(texts, whole["substrings"])] == passages(texts, 12)
    seen: set[str] = set()
    for text, left in zip(texts, after(texts, whole["lines"]), strict=True):
        fresh = [line for line in dict.fromkeys(text.split("\n")) if line not in seen]
        seen.update(fresh)
        assert left.split("\n") == (fresh or [""])
