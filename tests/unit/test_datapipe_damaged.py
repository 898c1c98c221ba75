"""Run folders whose JSON files a crash or a hand has damaged: one line that names the file, and no traceback."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.byte_tokenizer import byte_tokenizer

from gristmill.base.errors import DataError
from gristmill.datapipe import cli
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.dedup.minhash import MinHashConfig
from gristmill.datapipe.duplicate_report import DuplicateReport
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.duplicates import Sketch, exact_nodes
from gristmill.datapipe.stages.tokens import CopyTokenizer, Tokenise
from gristmill.datapipe.workflow.lock import RunLock
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Node, Stage

COMMANDS = {
    "status": ["status", "RUN"],
    "gc": ["gc", "RUN", "--dry-run", "--shuffles"],
    "diff": ["diff", "RUN", "PRISTINE"],
    "diff, as the second": ["diff", "PRISTINE", "RUN"],
    "verify": ["verify", "RUN"],
    "explain": ["explain", "RUN", "d3"],
    "what-if": ["what-if", "RUN", "--set", "words.min=10"],
    "duplicates": ["duplicates", "RUN", "--limit", "2"],
}
POLICY: dict[str, Any] = {
    "name": "test",
    "rule": [
        {"name": "words", "column": "heuristics.words", "min": 3},
        {"name": "repeated", "column": "exact", "keep": "first"},
    ],
}


class Words(Stage):
    name, folder, config = "heuristics", "annotations/heuristics", None

    def annotate(self, table: pa.Table, previous: Mapping[str, pa.Table]) -> pa.Table:
        return pa.table({"words": pc.list_value_length(pc.utf8_split_whitespace(table["text"]))})


def run(folder: Path) -> None:
    """A small run of real nodes, up to the selection."""
    tokenizer = byte_tokenizer(folder.parent / "tokenizer.json")
    nodes: list[Node] = [Words(), Sketch(MinHashConfig()), *exact_nodes(), CopyTokenizer(tokenizer), Tokenise(())]
    nodes += [Select(read_policy(POLICY, "test")), DuplicateReport(["exact"])]
    ingest = Ingest((str(folder.parent / "web.jsonl"),), IngestConfig(rows_per_partition=4))
    Runner(folder, ingest, nodes, workers=0).run()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    rows = [{"id": f"d{number}", "text": "word " * (1 + number % 5) + str(number % 6)} for number in range(7)]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(folder / "pristine")
    return folder / "pristine"


@pytest.fixture(scope="module")
def damaged(pristine: Path) -> Path:
    """A copy of it, of which each test damages one file, and mends it."""
    return Path(shutil.copytree(pristine, pristine.parent / "damaged"))


def datapipe(words: list[str], run: Path, pristine: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    places = {"RUN": str(run), "PRISTINE": str(pristine)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["datapipe", *(places.get(word, word) for word in words)])
        cli.main()
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


OPEN = ("former.json", "hashes.json", "inputs.json")
"""Any key may be there, or not."""


def damages(path: Path, text: str) -> Iterator[tuple[str, str]]:
    yield "empty", ""
    yield "cut", text[: len(text) // 2]
    yield "no UTF-8", "\udcff" + text
    value = json.loads(text)
    yield "another kind", "[]" if isinstance(value, dict) else "{}"
    yield "a number", "3"
    if isinstance(value, dict) and path.name not in OPEN:
        yield "no keys", "{}"
        yield "null values", json.dumps(dict.fromkeys(value))
        for key in ("documents",) if path.name == "outputs.json" else value:
            yield f"no {key}", json.dumps({other: value[other] for other in value if other != key})


def files(run: Path) -> list[Path]:
    """Every JSON file of the runner, the selection and the report; of ledger entries, one of each kind of node."""
    entries = [
        next(iter(sorted((run / "ledger" / node).glob("*.json"))))
        for node in ("documents", "heuristics", "exact_groups", "selection")
    ]
    found = [path for folder in (run, run / "ledger", run / "selection") for path in sorted(folder.glob("*.json"))]
    return [*found, *entries, run / "duplicates" / "report.json"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_damaged_is_told_in_one_line_that_names_it(
    command: str, pristine: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, whole, _ = datapipe(COMMANDS[command], damaged, pristine, capsys)
    assert code == 0 and whole
    wrong: list[str] = []
    for path in files(damaged):
        text = path.read_text()
        for damage, content in damages(path, text):
            path.write_bytes(content.encode(errors="surrogateescape"))
            case = f"{path.relative_to(damaged)}, {damage}"
            try:
                code, out, error = datapipe(COMMANDS[command], damaged, pristine, capsys)
            except Exception as bug:  # noqa: BLE001 - all of them are told together
                where = traceback.extract_tb(bug.__traceback__)[-1]
                wrong.append(f"{case}: {type(bug).__name__}: {bug}, in {where.filename}, line {where.lineno}")
                continue
            if code == 0 and out != whole:
                wrong.append(f"{case}: another answer, without a word")
            one_line = len(error.splitlines()) == 1 and not out
            named = path.name in error or (command == "verify" and f"/{path.parent.name}: is not what was" in error)
            if code and not (code in (1, 3) and one_line and named):
                wrong.append(f"{case}: exit {code}, {out!r}, {error!r}")
        path.write_text(text)
    assert not wrong, "\n".join([f"{len(wrong)} of them:", *wrong])


def test_the_pipeline_itself_says_what_is_damaged_and_goes_on_once_it_is_gone(pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copy(pristine.parent / "web.jsonl", tmp_path)
    shutil.copytree(pristine, folder)
    whole = {path.relative_to(pristine): path.read_bytes() for path in pristine.rglob("*.parquet")}
    for path in files(folder):
        if path.parent.name in ("selection", "duplicates"):
            continue  # outputs: verify tells
        text = path.read_text()
        for _, content in damages(path, text):
            path.write_bytes(content.encode(errors="surrogateescape"))
            try:
                run(folder)
            except DataError as error:
                assert path.name in str(error) and "delete it" in str(error)
                path.unlink()
                run(folder)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")} == whole


@pytest.mark.parametrize("text", ["", "[]", "3", '{"host"'])
def test_a_damaged_lease_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lease").write_text(text)
    with RunLock(tmp_path):
        pass
