"""scorer score and what follows: killed at any moment the same command goes on, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.support.tiny_heads import rubric, texts, write_heads

from gristmill.base import cli as base_cli
from gristmill.base.files import read_json
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands import scores
from gristmill.scorer.heads import bundle
from gristmill.scorer.scoring.parts import alone, finished, in_parts
from gristmill.scorer.tables import read_documents, read_parquet, write_parquet

DOCUMENTS = 400
Run = Callable[..., int]
# As `scorer score`, in parts so small that a test can kill it between two of them.
SCORE = (
    "from gristmill.scorer.commands import scores; scores.PART_ROWS = 16\nfrom gristmill.scorer.cli import main; main()"
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def heads(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"(all)": {"tau_drop": 0.45, "tau_keep": 0.5}, "web": {"tau_drop": 0.45, "tau_keep": 0.5}}
    return write_heads(tmp_path_factory.mktemp("heads") / "heads", backbone, thresholds=thresholds)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "docs.jsonl"
    rows = [{"id": f"d{i}", "text": text, "source": "web"} for i, text in enumerate(texts(DOCUMENTS))]
    rows[7]["text"] = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(backbone: Path) -> Run:
    def command(name: str, *arguments: object) -> int:
        commands = {"score": base_cli.typed(scores.score, "scorer score"), "decide": base_cli.typed(scores.decide, "x")}
        given = [str(one) for one in arguments]
        return base_cli.run("scorer", commands, "about", [name, *given])

    return command


def start(backbone: Path, heads: Path, documents: Path, output: Path) -> subprocess.Popen[bytes]:
    arguments = ["--heads", heads, "--backbone", backbone, "--input", documents, "--output", output]
    return subprocess.Popen(
        [sys.executable, "-c", SCORE, "score", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_killed_again_and_again_it_ends_in_the_same_bytes(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "PART_ROWS", 16)
    calm = ("--backbone", backbone, "--input", documents, "--output", tmp_path / "calm" / "scores.parquet")
    assert run("score", "--heads", heads, *calm) == 0
    output = tmp_path / "killed" / "scores.parquet"
    parts = output.with_name(".scores.parquet.parts")
    kills, known = 0, 0
    while True:
        process = start(backbone, heads, documents, output)
        while process.poll() is None and (kills >= 2 or len(list(parts.glob("*.parquet"))) < known + 3):
            time.sleep(0.02)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        assert not output.exists()
        assert len(list(parts.glob("*.parquet"))) >= known, "what was done stays done"
        known = len(list(parts.glob("*.parquet")))
    assert process.returncode == 0 and kills == 2
    assert output.read_bytes() == (tmp_path / "calm" / "scores.parquet").read_bytes()
    assert [path.name for path in output.parent.iterdir()] == ["scores.parquet"]
    ids = read_parquet(output)["id"].to_pylist()
    assert ids == [f"d{i}" for i in range(DOCUMENTS)]


def test_only_what_its_scores_depend_on_is_done_again(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    done: list[list[str]] = []

    def score(part: pa.Table) -> pa.Table:
        done.append(part["id"].to_pylist())
        return part.append_column("quality", pa.array(np.zeros(len(part))))

    table = pa.table({"id": list("abcdef"), "text": [None, "", "x", "y", "z", "w"]})
    first, known = in_parts(table, output, 2, {"heads": "1"}, score)
    assert (len(done), known) == (3, 0)
    again, known = in_parts(table, output, 2, {"heads": "1"}, score)
    assert (len(done), known) == (3, 3) and again.equals(first)
    changed = table.set_column(1, "text", pa.array(["", "", "x", "y", "z", "w"]))
    assert in_parts(changed, output, 2, {"heads": "1"}, score)[1] == 2, "no text is another thing than an empty one"
    assert in_parts(table, output, 2, {"heads": "2"}, score)[1] == 0
    assert len(in_parts(table.slice(0, 0), output, 2, {}, score)[0]) == 0
    finished(output)
    assert not any(tmp_path.iterdir())


def test_scores_then_decisions(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, decided = tmp_path / "scores.parquet", tmp_path / "decisions.parquet"
    config = tmp_path / "scoring.toml"
    config.write_text("shadow = 1.0\n")
    common = ("--heads", heads, "--backbone", backbone, "--input", documents, "--output", output, "--config", config)
    assert run("score", *common) == 0
    told = capsys.readouterr().out
    table = read_parquet(output)
    exits = table["exit"].to_pylist().count(True)
    assert f"planted: {DOCUMENTS} documents" in told and "without a score: 1 (empty)" in told
    assert f"exits audited: {exits} of {exits}, " in told and "drift: web: 399 documents" in told
    assert table.column_names[:3] == ["id", "source", "quality"] and table.column_names[-2:] == ["rubric", "heads"]
    assert run("decide", "--scores", output, "--heads", heads, "--output", decided) == 0
    decisions = read_parquet(decided)
    counts = {name: decisions["decision"].to_pylist().count(name) for name in ("keep", "band", "drop", None)}
    assert counts["drop"] == exits and counts[None] == 1 and sum(counts.values()) == DOCUMENTS
    assert f"{counts['keep']} keep, {counts['band']} band, {counts['drop']} drop, 1 without" in capsys.readouterr().out
    assert run("score", *common, "--fail-drift") == 4
    assert "calibrate again" in capsys.readouterr().err


def test_heads_by_type_and_other_scorers_beside(
    run: Run, backbone: Path, heads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasttext = pytest.importorskip("fasttext")
    (tmp_path / "train.txt").write_text("__label__hq flour bread\n__label__lq salt night\n" * 50)
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=4, thread=1, verbose=0)
    model.save_model(str(tmp_path / "quality.bin"))
    code = write_heads(tmp_path / "code", backbone, rubric("code", ("clarity", "noise")), seed=1)
    table = pa.table(
        {
            "id": list("abcd"), "text": ["flour bread", "salt night", "", "grain"],
            "content_type": ["prose", "code", "prose", None], "source": ["web"] * 4,
        }
    )  # fmt: skip
    write_parquet(table, tmp_path / "docs.parquet")
    output = tmp_path / "scores.parquet"
    common = ("--backbone", backbone, "--input", tmp_path / "docs.parquet", "--output", output)
    both = ("--heads", heads, "--heads", f"code={code}")
    other = ("--scorer", f"dclm=fasttext:{tmp_path / 'quality.bin'}:hq")
    assert run("score", *both, *common, *other, "--ensemble", "mean") == 0
    rows = read_parquet(output).to_pylist()
    assert [row["rubric"] for row in rows] == ["planted", "code", "planted", "planted"]
    assert rows[0]["dclm"] > 0.5 > rows[1]["dclm"] and rows[2]["dclm"] is rows[2]["ensemble"] is None
    assert all(0 < rows[i]["ensemble"] <= 1 for i in (0, 1, 3))
    for arguments, code_, said in (
        ((*both, "--heads", f"code={heads}"), 2, "there are heads for code already"),
        ((*both, "--ensemble", "max"), 2, "with what?"),
        ((*both, "--scorer", "quality=fasttext:x.bin:hq"), 2, "a column 'quality' already"),
        ((*both, "--scorer", "dclm=bert:x"), 2, "NAME=encoder:FOLDER"),
        ((*both, "--scorer", f"dclm=fasttext:{tmp_path / 'quality.bin'}:high"), 2, "no label 'high'"),
        (("--heads", tmp_path / "none"), 3, "no such file"),
    ):
        assert run("score", *arguments, *common) == code_
        assert said in capsys.readouterr().err
    assert run("decide", "--scores", output, *both, "--output", tmp_path / "d.parquet") == 3
    assert "not calibrated" in capsys.readouterr().err


def test_new_thresholds_need_new_scores_only_where_the_judge_is_asked_more(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, decided = tmp_path / "scores.parquet", tmp_path / "decisions.parquet"
    assert run("score", "--heads", heads, "--backbone", backbone, "--input", documents, "--output", output) == 0
    loaded, thresholds = bundle.load(heads), read_json(heads / "calibration.json")

    def moved(name: str, **values: float) -> Path:
        groups = {source: {**group, **values} for source, group in thresholds["groups"].items()}
        bundle.save(replace(loaded, calibration={**thresholds, "groups": groups}), tmp_path / name)
        return tmp_path / name

    assert run("decide", "--scores", output, "--heads", moved("keep", tau_keep=0.9), "--output", decided) == 0
    assert read_parquet(decided)["decision"].to_pylist().count("keep") == 0
    assert run("decide", "--scores", output, "--heads", moved("drop", tau_drop=0.0), "--output", decided) == 3
    assert "score again with these heads" in capsys.readouterr().err
    other = write_heads(tmp_path / "other", backbone, seed=5, thresholds={"web": {"tau_drop": 0.45}})
    assert run("decide", "--scores", output, "--heads", other, "--output", decided) == 3
    assert f"made with heads {loaded.identity}" in capsys.readouterr().err


def test_heads_of_one_rubric_have_each_its_own_thresholds(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = write_heads(tmp_path / "code", backbone, seed=1, thresholds={"web": {"tau_drop": 0.0, "tau_keep": 0.0}})
    table = read_documents(documents).slice(10, 40)
    types = ["code", "prose"] * 20
    write_parquet(table.append_column("content_type", pa.array(types)), tmp_path / "docs.parquet")
    output, decided = tmp_path / "scores.parquet", tmp_path / "decisions.parquet"
    both = ("--heads", heads, "--heads", f"code={none}")
    common = ("--backbone", backbone, "--input", tmp_path / "docs.parquet", "--output", output)
    assert run("score", *both, *common) == 0
    assert run("decide", "--scores", output, *both, "--output", decided) == 0
    for type_, score, row in zip(types, read_parquet(output).to_pylist(), read_parquet(decided).to_pylist()):
        assert score["rubric"] == "planted"
        low = 0.0 if type_ == "code" else 0.45
        assert (row["decision"] == "drop") == (score["probe"] < low)
    bundle.save(replace(bundle.load(heads), calibration=bundle.load(none).calibration), tmp_path / "again")
    twice = ("--heads", heads, "--heads", f"code={tmp_path / 'again'}")
    assert run("score", *twice, *common) == 2 and run("decide", "--scores", output, *twice, "--output", decided) == 2
    assert capsys.readouterr().err.count("give one of them") == 2


def test_a_second_process_leaves_the_first_ones_parts_alone(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.parquet"
    common = ("--heads", heads, "--backbone", backbone, "--input", documents, "--output", output)
    with alone(output):
        part = tmp_path / ".scores.parquet.parts" / "one.parquet"
        part.write_bytes(b"of the first")
        assert run("score", *common) == 1
        assert "another process scores into it" in capsys.readouterr().err and part.exists()
    assert run("score", *common) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_what_cannot_be_scored_or_written_is_said_before_the_work(
    run: Run, backbone: Path, heads: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--heads", heads, "--backbone", backbone, "--output")
    assert run("score", *common, tmp_path, "--input", documents) == 2
    assert run("decide", "--scores", documents, "--heads", heads, "--output", tmp_path) == 2
    assert capsys.readouterr().err.count("name a file to write") == 2
    output = tmp_path / "scores.parquet"
    assert run("score", *common, output, "--input", documents, "--scorer", "edu=encoder:org/edu") == 2
    assert "org/edu: no such folder" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    (tmp_path / "none.jsonl").touch()
    assert run("score", *common, output, "--input", tmp_path / "none.jsonl") == 0
    assert len(read_parquet(output)) == 0
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": "flour", "source": "unseen"}) + "\n")
    assert run("score", *common, output, "--input", tmp_path / "new.jsonl") == 0
    assert "drift: unseen: 1 documents, not compared: it was not there" in capsys.readouterr().out
    assert run("score", *common, output, "--input", tmp_path / "new.jsonl", "--fail-drift") == 4
