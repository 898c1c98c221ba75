"""Grading as a stage of the DAG: rubrics by source, answers kept beside the outputs, no holes without an answer."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support import oracle_server
from tests.support.oracle_server import Oracle

from gristmill.base.errors import GristmillError, PartialError, UsageError
from gristmill.base.files import fingerprint, read_json, sha256_folder
from gristmill.datapipe.workflow.cluster import refuse_infeasible
from gristmill.datapipe.workflow.stage import Inputs
from gristmill.scorer.heads.evaluation import retest_reliabilities
from gristmill.scorer.oracle.engine import Reply
from gristmill.scorer.oracle.prompt import Prompt
from gristmill.scorer.oracle.tokens import RoughTokenizer
from gristmill.scorer.rubric import load_rubric
from gristmill.scorer.sampling import REPEATED
from gristmill.scorer.tables import graded_with, read_parquet

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
nodes: Any = pytest.importorskip("nodes")
dag: Any = pytest.importorskip("dag")
GENERAL, MATH = (load_rubric(PIPELINES / "rubrics" / f"{name}.toml") for name in ("general", "math"))
IDS = [f"d{n}" for n in range(6)]
ONCE = {"repeats": [1] * 6, "temperature": [0.0] * 6}
TABLE = pa.table({"id": IDS, "text": [f"Text {n}." for n in range(6)], "source": ["web", "proofs"] * 3, **ONCE})


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def stage(oracle: Oracle, replies: Path, **config: Any) -> Any:
    grade = nodes.Grade(f"{oracle.url}#stub", {"": GENERAL, "proofs": MATH}, nodes.GradeConfig(**config), replies)
    grade.setup({})
    return grade


def test_a_budget_ends_the_grading_and_decides_no_answer(oracle: Oracle, tmp_path: Path) -> None:
    about = f"{oracle.url}#stub", {"": GENERAL}, nodes.GradeConfig(), tmp_path / "replies"
    frugal, rich = nodes.Grade(*about, 10), nodes.Grade(*about, 10**6)
    assert frugal.config == rich.config == nodes.Grade(*about).config
    frugal.setup({})
    with pytest.raises(PartialError, match="the budget of 10 tokens is used up: 0 tokens"):
        frugal.annotate(TABLE, {})
    rich.setup({})
    assert set(rich.annotate(TABLE, {})["status"].to_pylist()) == {"ok"}


def test_a_partition_comes_out_the_same_and_is_not_asked_about_again(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = tmp_path / "labels" / ".replies"
    first = stage(oracle, replies).annotate(TABLE, {})
    assert first["rubric"].to_pylist() == ["general", "math"] * 3 and "seconds" not in first.column_names
    assert len(list(replies.iterdir())) == 1
    monkeypatch.setattr(oracle_server._Handler, "do_POST", lambda self: self.send_error(500))
    second = stage(oracle, replies).annotate(TABLE, {})
    assert second.equals(first)
    one_source = stage(oracle, replies).annotate(TABLE.filter(pa.array([True, False] * 3)), {})
    assert one_source.schema.equals(first.schema), "partitions of one output have the same columns"
    assert sha256_folder(tmp_path / "labels") == sha256_folder(tmp_path / "empty"), "kept answers are no output"


def test_a_partition_without_an_answer_fails_instead_of_being_done(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade = stage(oracle, tmp_path, settings={"attempts": 1, "concurrency": 1})
    answer = oracle_server._Handler.do_POST
    seen: list[int] = []

    def sometimes(self: Any) -> None:
        seen.append(1)
        self.send_error(500) if len(seen) == 3 else answer(self)

    monkeypatch.setattr(oracle_server._Handler, "do_POST", sometimes)
    with pytest.raises(GristmillError, match="1 documents got no answer, as: coherence: request failed: HTTP 500"):
        grade.annotate(TABLE, {})
    assert set(grade.annotate(TABLE, {})["status"].to_pylist()) == {"ok"}
    assert len(seen) == 3 * 5 + 3 * 4 + 1, "the second time only what had failed"


def test_what_changes_the_answers_changes_the_identity_and_where_they_are_kept_does_not(tmp_path: Path) -> None:
    def identity(rubrics: dict, replies: Path = tmp_path, **config: Any) -> str:
        return fingerprint(nodes.Grade("http://o/v1#m", rubrics, nodes.GradeConfig(**config), replies).config)

    plain = identity({"": GENERAL})
    assert plain == identity({"": GENERAL}, tmp_path / "elsewhere")
    others = [
        identity({"": MATH}), identity({"": GENERAL, "proofs": MATH}), identity({"": GENERAL}, form="json"),
        identity({"": GENERAL}, windows="spread"), identity({"": GENERAL}, max_document_tokens=99),
    ]  # fmt: skip
    assert len({plain, *others}) == 6


def test_settings_of_the_engine_are_checked_and_gpus_asked_of_ray(oracle: Oracle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'concurrency'"):
        stage(oracle, tmp_path, settings={"concurency": 3})
    large = nodes.Grade("models/large", {"": GENERAL}, nodes.GradeConfig(gpus=4), tmp_path).resources
    refuse_infeasible(large, [{"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}])
    with pytest.raises(
        GristmillError, match=r"a worker that needs GPU 4 \(largest node has 2\): lower it, or add a node"
    ):
        refuse_infeasible(large, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}])
    config = tmp_path / "oracle.toml"
    config.write_text("max_model_len = 8192\n")
    pipeline = dag.PipelineConfig(
        oracle="models/large", oracle_config=config, oracle_gpus=8, oracle_form="json", oracle_reason=200, workers=4
    )
    grading = dag._grading(pipeline)
    assert (grading.settings, grading.gpus, grading.form, grading.reason) == ({"max_model_len": 8192}, 8, "json", 200)


class Moody:
    """Likes a document for what it is and a little for its mood at each repeat; notes what it was asked."""

    name, style, tokenizer = "moody", "completion", RoughTokenizer()
    asked: ClassVar[list[Prompt]] = []

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        self.asked.extend(prompts)
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: Prompt) -> Reply:
        liking, mood = (
            hashlib.sha256(f"{prompt.document}{more}".encode()).digest()[0] / 255 for more in ("", prompt.repeat)
        )
        share = 0.8 * liking + 0.2 * mood
        return Reply("0", {0: math.log(1.001 - share), 4: math.log(0.001 + share)}, prompt_tokens=10, reply_tokens=1)


def written(folder: Path, table: pa.Table, parts: int = 1) -> tuple[str, ...]:
    folder.mkdir(parents=True)
    size = -(-len(table) // parts)
    names = tuple(f"part-{number:05d}.parquet" for number in range(parts))
    for number, name in enumerate(names):
        pq.write_table(table.slice(number * size, size), folder / name)
    return names


def labelled(run: Path, config: Any, monkeypatch: pytest.MonkeyPatch, n: int = 120) -> dict[str, float]:
    """RUN/sample, grades and labels as the nodes make them of n documents, half of them proofs."""
    ids, ones = [f"d{number}" for number in range(n)], [1] * n
    tables = {
        "documents": {"id": ids, "text": [f"Text {one}." for one in ids], "source": ["web", "proofs"] * (n // 2)},
        "tokens": {"count": ones}, "language": {"label": ["en"] * n}, "survivors": {"keep": [True] * n},
    }  # fmt: skip
    parts = {name: written(run / name, pa.table(columns)) for name, columns in tables.items()}

    def inputs() -> Inputs:
        return Inputs({name: run / name for name in parts}, parts)

    (run / "sample").mkdir()
    nodes.Sample(config).run(inputs(), run / "sample")
    parts["sample"] = tuple(sorted(path.name for path in (run / "sample").glob("part-*")))
    grade = nodes.Grade("http://moody/v1", {"": GENERAL, "proofs": MATH}, nodes.GradeConfig(), run / ".replies")
    monkeypatch.setattr(grade, "_open", Moody)
    grade.setup({})
    (run / "grades").mkdir()
    for part in parts["sample"]:
        pq.write_table(
            grade.annotate(pq.read_table(run / "sample" / part, columns=list(grade.columns)), {}), run / "grades" / part
        )
    parts["grades"] = parts["sample"]
    (run / "labels").mkdir()
    return nodes.Labels([GENERAL, MATH]).run(inputs(), run / "labels")


def test_what_decides_is_graded_again_and_tells_how_far_the_oracle_agrees_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moody, "asked", [])
    config = nodes.SampleConfig(documents=120, per_partition=50, repeats=3, temperature=0.7)
    counts = labelled(tmp_path, config, monkeypatch)
    assert {prompt.temperature for prompt in Moody.asked} == {0.7}
    labels, gradings = (read_parquet(tmp_path / "labels" / f"labels{more}.parquet") for more in ("", ".repeats"))
    asked = sum(sum(gradings[name].to_pylist()) for name in ("prompt_tokens", "reply_tokens"))
    assert counts == {"labels": 120, "gradings": len(gradings), "oracle_tokens": asked} and asked > 120
    assert sum(
        len(GENERAL.names if name == "general" else MATH.names) for name in gradings["rubric"].to_pylist()
    ) == len(Moody.asked), "each grading was asked for by itself"
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in gradings.to_pylist():
        rows.setdefault(row["id"], []).append(row)
    for label in labels.to_pylist():
        own = rows[label["id"]]
        assert [row["repeat"] for row in own] == list(range(3 if label["split"] in REPEATED else 1))
        assert label["repeats"] == len(own) and {row["text"] for row in own} == {f"Text {label['id']}."}
        assert label["correctness"] == pytest.approx(sum(row["correctness"] for row in own) / len(own), abs=1e-5)
        assert {row["source"] for row in own} == {label["source"]}
    assert "again" not in labels.column_names and "repeat" not in labels.column_names
    reliable = retest_reliabilities(read_json(tmp_path / "labels" / "audit.json"), GENERAL)
    assert set(reliable) == set(GENERAL.names) and all(0.7 < r < 1 for r in reliable.values())
    assert len(graded_with(labels, MATH)) == 60
    assert len(read_parquet(tmp_path / "labels" / "documents.parquet")) == 120


def test_without_repeats_there_is_one_grading_of_each_and_no_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = labelled(tmp_path, nodes.SampleConfig(documents=60), monkeypatch, 60)
    asked = sum(sum(read_parquet(tmp_path / "grades")[name].to_pylist()) for name in ("prompt_tokens", "reply_tokens"))
    assert counts == {"labels": 60, "oracle_tokens": asked}
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"labels.parquet", "documents.parquet"}
    grades = read_parquet(tmp_path / "grades")
    assert grades["again"].to_pylist() == [[]] * 60
    for wrong in ({"repeats": 0}, {"temperature": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            nodes.Sample(nodes.SampleConfig(**wrong))
