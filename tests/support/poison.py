"""Stages that cannot handle a document with a certain word in it, and runs of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from gristmill.base.files import sha256_folder
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.duplicates import Clusters, Groups, Keyed
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Node, Stage, open_run

BAD = "poison"


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


def _key(table: pa.Table) -> Any:
    import numpy as np

    words = table["words"].to_numpy().astype(np.uint64)
    return np.stack([words << np.uint64(54), words], axis=1), np.ones(len(words), bool)


LENGTHS = Keyed("exact", "heuristics", ("words",), _key)


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
