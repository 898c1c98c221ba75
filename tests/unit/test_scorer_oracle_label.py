"""`scorer label` from documents to heads: a rubric for each content type, one table, and nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.oracle_server import Oracle

from gristmill.base import cli as base_cli
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands import oracle as oracle_commands
from gristmill.scorer.commands.heads import train_heads
from gristmill.scorer.tables import graded_with, read_documents, rubrics_of

RUBRICS = Path(__file__).parents[2] / "pipelines" / "rubrics"
N = 150
COMMANDS = {
    "label": base_cli.typed(oracle_commands.label, "scorer label"),
    "train-heads": base_cli.typed(train_heads, "t"),
}


def run(*arguments: object) -> int:
    return base_cli.run("scorer", COMMANDS, "about", [str(argument) for argument in arguments])


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    rows = [
        {
            "id": f"d{n}",
            "text": f"Text {n} about {'sums' if n % 3 else 'cats'}.",
            "content_type": "math" if n % 3 else None,
        }
        for n in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(oracle: Oracle, documents: Path, output: Path, *more: object, rubric: str = "general.toml") -> int:
    return run(
        "label", "--input", documents, "--rubric", RUBRICS / rubric, "--engine", "endpoint", "--url", oracle.url,
        "--model", "stub", "--output", output, *more,
    )  # fmt: skip


def test_types_have_their_rubrics_and_the_same_command_asks_nothing_again(
    oracle: Oracle, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels.parquet"
    more = ("--rubric", f"math={RUBRICS / 'math.toml'}", "--windows", "spread")
    assert label(oracle, documents, output, *more) == 0
    assert f"{N // 3 * 5 + N // 3 * 2 * 4} requests" in capsys.readouterr().out
    table = pq.read_table(output)
    rows = table.to_pylist()
    assert [row["rubric"] for row in rows] == ["math" if n % 3 else "general" for n in range(N)]
    assert all((row["reasoning"] is None) == (row["rubric"] == "general") for row in rows)
    assert all(row["status"] == "ok" and 0 <= row["quality"] <= 1 for row in rows)
    assert [rubric.name for rubric in rubrics_of(table, "labels")] == ["general", "math"]
    (tmp_path / "first").write_bytes(output.read_bytes())
    assert label(oracle, documents, output, *more) == 0
    assert "0 requests, 650 answers were in" in capsys.readouterr().out
    assert pq.read_table(output).equals(table)


def test_heads_are_trained_on_one_rubric_of_mixed_labels(
    oracle: Oracle, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels.parquet"
    assert label(oracle, documents, output, "--rubric", f"math={RUBRICS / 'math.toml'}") == 0
    (math,) = [rubric for rubric in rubrics_of(pq.read_table(output), "") if rubric.name == "math"]
    assert len(graded_with(pq.read_table(output), math)) == N // 3 * 2
    backbone = write_tiny(tmp_path / "tiny", "llama", layers=2)
    config = tmp_path / "heads.toml"
    config.write_text("taps = [1, 2]\nwindow_tokens = 16\nepochs = 1\njudge_epochs = 1\n")
    train = ("train-heads", "--labels", output, "--backbone", backbone, "--config", config)
    assert run(*train, "--output", tmp_path / "heads") == 2
    assert "graded with general, math; name the one to train on by --rubric NAME" in capsys.readouterr().err
    assert run(*train, "--output", tmp_path / "heads", "--rubric", "math") == 0
    assert json.loads((tmp_path / "heads" / "scorer.json").read_text())["rubric"]["name"] == "math"
    assert run(*train, "--output", tmp_path / "code", "--rubric", RUBRICS / "code.toml") == 3
    assert "none is graded with rubric 'code'" in capsys.readouterr().err


def test_budget_ends_with_exit_code_four_and_the_command_goes_on(
    oracle: Oracle, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, codes = tmp_path / "labels.parquet", list[int]()
    while not codes or codes[-1] == 4:
        codes.append(label(oracle, documents, output, "--budget-tokens", "60K"))
        assert output.exists() == (codes[-1] == 0)
    assert codes[-1] == 0 and len(codes) > 2
    assert "the budget of 60,000 tokens is used up" in capsys.readouterr().err
    assert set(pq.read_table(output)["status"].to_pylist()) == {"ok"}


def test_wrong_usage_is_told_before_anything_is_asked(
    oracle: Oracle, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels.parquet"
    general, config = RUBRICS / "general.toml", tmp_path / "oracle.toml"
    assert label(oracle, documents, output, "--rubric", general) == 2
    assert "there is one for all documents already" in capsys.readouterr().err
    assert run("label", "--input", documents, "--model", "m", "--output", output) == 2
    assert "--rubric is missing" in capsys.readouterr().err
    config.write_text("concurency = 3\n")
    assert label(oracle, documents, output, "--config", config) == 2
    assert "did you mean 'concurrency'" in capsys.readouterr().err
    assert label(oracle, documents, output, "--reason", 50) == 2
    assert "ask with form json" in capsys.readouterr().err
    only = ("--engine", "endpoint", "--url", oracle.url, "--model", "stub", "--output", output)
    assert run("label", "--input", documents, "--rubric", f"math={RUBRICS / 'math.toml'}", *only) == 2
    assert "no rubric for content type ''" in capsys.readouterr().err
    assert not output.exists() and not output.with_name("labels.parquet.replies").exists()


def test_documents_tell_their_type_where_they_have_one_and_refuse_half_characters(tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.jsonl", tmp_path / "broken.jsonl"
    plain.write_text('{"text": "x"}\n')
    assert read_documents(plain).column_names == ["id", "text", "source"]
    broken.write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(Exception, match=r"broken.jsonl: row 2: half a surrogate pair"):
        read_documents(broken)
