"""The whole pipeline with a document that one of its stages cannot handle: it is set aside, and commands and
page tell so."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pytest
from tests.support.poison import BAD, Words, documents, fates, hashes, make

from gristmill.base.files import read_json
from gristmill.datapipe import cli
from gristmill.datapipe.explain import explain
from gristmill.datapipe.policy import Edit
from gristmill.datapipe.run_diff import run_diff
from gristmill.datapipe.stages.duplicates import Sketch
from gristmill.datapipe.stages.measure import Heuristics, Language, Url
from gristmill.datapipe.stages.tokens import Tokenise, TokenizerConfig, TrainTokenizer
from gristmill.datapipe.what_if import policy_of, what_if
from gristmill.datapipe.workflow.stage import Inputs, Stage, Step
from gristmill.datapipe.workflow.verify import verify

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))


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
