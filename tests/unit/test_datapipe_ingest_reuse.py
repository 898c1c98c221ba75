"""Inputs come and go before, between and after others: only what is new is read, and all is as in a first run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError
from gristmill.base.files import sha256_folder
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.ingest import reuse
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig, IngestJob
from gristmill.datapipe.ingest.splitting import Piece
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Stage
from gristmill.datapipe.workflow.verify import verify


class Length(Stage):
    name, folder, version = "length", "annotations/length", 1
    config = None
    calls: ClassVar[list[str]] = []

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        self.calls.append(table["text"][0].as_py())
        return pa.table({"length": pc.utf8_length(table["text"])})


NAMES = ("a", "b", "c", "d", "e")
READ: list[str] = []


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    READ.clear()
    Length.calls.clear()
    call = IngestJob.__call__

    def watched(self: IngestJob, piece: Piece) -> object:
        READ.append(piece.file.name)
        return call(self, piece)

    monkeypatch.setattr(IngestJob, "__call__", watched)


def write(folder: Path) -> None:
    """b is large enough for pieces, c has a bad line, d nothing but bad lines."""
    for name in NAMES:
        lines = [json.dumps({"text": f"{name}{index}"}) for index in range(40 if name == "b" else 5)]
        lines[-1:] = ["bad"] if name == "c" else lines[-1:]
        (folder / f"{name}.jsonl").write_text("\n".join(["bad"] if name == "d" else lines) + "\n")


def run(folder: Path, inputs: Path, names: str) -> None:
    READ.clear()
    Length.calls.clear()
    config = IngestConfig(rows_per_partition=3, piece_bytes=200)
    Runner(folder, Ingest(tuple(str(inputs / f"{n}.jsonl") for n in names), config, 1.0), [Length()], workers=0).run()


def same(folder: Path, other: Path) -> bool:
    names = ("documents", "quarantine", "annotations")
    told = json.loads((folder / "inputs.json").read_text()) == json.loads((other / "inputs.json").read_text())
    return told and all(sha256_folder(folder / name) == sha256_folder(other / name) for name in names)


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("bc", "abc", "a"), ("abc", "bc", ""), ("bde", "abcde", "ac"), ("abcde", "edcba", ""), ("ab", "ba", ""),
        ("bc", "cab", "a"), ("abcde", "de", ""),
    ],
)  # fmt: skip
def test_only_new_inputs_are_read_and_the_rest_keeps_its_annotations(
    tmp_path: Path, before: str, after: str, new: str
) -> None:
    write(tmp_path)
    run(tmp_path / "run", tmp_path, before)
    run(tmp_path / "run", tmp_path, after)
    assert {name[0] for name in READ} == set(new) and {text[0] for text in Length.calls} == set(new)
    run(tmp_path / "fresh", tmp_path, after)
    assert same(tmp_path / "run", tmp_path / "fresh") and verify(tmp_path / "run") == verify(tmp_path / "fresh")
    run(tmp_path / "run", tmp_path, after)
    assert not READ and not Length.calls
    assert not (tmp_path / "run" / ".work" / "renamed").exists()


def test_a_changed_file_is_read_whatever_its_place(tmp_path: Path) -> None:
    write(tmp_path)
    run(tmp_path / "run", tmp_path, "bc")
    (tmp_path / "b.jsonl").write_text('{"text": "b other"}\n')
    run(tmp_path / "run", tmp_path, "acb")
    assert set(READ) == {"a.jsonl", "b.jsonl"} and set(Length.calls) == {"a0", "a3", "b other"}


class Killed(BaseException):
    pass


def dying(survived: int) -> Callable[[Path, Path], Path]:
    """Path.replace() that works for so many renames and no longer."""
    left, replace = [survived], Path.replace

    def renamed(path: Path, target: Path) -> Path:
        if ".work/renamed" in f"{path}{target}":
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return replace(path, target)

    return renamed


# d alone has no document, which a run refuses.
some = st.tuples(st.permutations(NAMES), st.integers(1, 5)).map(lambda drawn: "".join(drawn[0][: drawn[1]]))


@given(steps=st.lists(st.tuples(some.filter(lambda names: names != "d"), st.integers(0, 60)), min_size=1, max_size=3))
@example(steps=[("acb", 1), ("ab", 0)])  # killed when what is in quarantine had left, and then all back to its place
@example(steps=[("abc", 0), ("bca", 1), ("abc", 0)])  # killed on the way to places that now are those of others
@example(steps=[("abc", 0), ("bca", 9), ("abc", 0)])
@settings(max_examples=30)
def test_killed_anywhere_while_renaming_the_next_run_mends_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("reuse")
    write(folder)
    run(folder / "run", folder, "abcde")
    for names, survived in steps:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reuse.Path, "replace", dying(survived))
            try:
                run(folder / "run", folder, names)
            except Killed:
                pass
    run(folder / "run", folder, steps[-1][0])
    run(folder / "fresh", folder, steps[-1][0])
    assert same(folder / "run", folder / "fresh") and verify(folder / "run") == verify(folder / "fresh")


def test_a_run_without_any_document_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(GristmillError, match=r"no documents: all 1 input rows are in .*quarantine"):
        run(tmp_path / "run", tmp_path, "d")
