"""Grading as a stage of the DAG: rubrics by source, answers kept beside the outputs, no holes without an answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support import oracle_server
from tests.support.oracle_server import Oracle

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import fingerprint, sha256_folder
from gristmill.scorer.rubric import load_rubric

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
nodes: Any = pytest.importorskip("nodes")
dag: Any = pytest.importorskip("dag")
GENERAL, MATH = (load_rubric(PIPELINES / "rubrics" / f"{name}.toml") for name in ("general", "math"))
IDS = [f"d{n}" for n in range(6)]
TABLE = pa.table({"id": IDS, "text": [f"Text {n}." for n in range(6)], "source": ["web", "proofs"] * 3})


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def stage(oracle: Oracle, replies: Path, **config: Any) -> Any:
    grade = nodes.Grade(f"{oracle.url}#stub", {"": GENERAL, "proofs": MATH}, nodes.GradeConfig(**config), replies)
    grade.setup({})
    return grade


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
    assert nodes.Grade("models/large", {"": GENERAL}, nodes.GradeConfig(gpus=4), tmp_path).resources.gpus == 4
    config = tmp_path / "oracle.toml"
    config.write_text("max_model_len = 8192\n")
    pipeline = dag.PipelineConfig(
        oracle="models/large", oracle_config=config, oracle_gpus=8, oracle_form="json", oracle_reason=200, workers=4
    )
    grading = dag._grading(pipeline)
    assert (grading.settings, grading.gpus, grading.form, grading.reason) == ({"max_model_len": 8192}, 8, "json", 200)
