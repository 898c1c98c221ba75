"""From labels to scores: heads learn what is there, the same each time, and see what stands at the end of a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gristmill.base import cli as base_cli
from gristmill.base.config import to_mapping
from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.scorer.backbone.states import Tokens
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands import heads as commands
from gristmill.scorer.commands import scores
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.distil import train_bundle
from gristmill.scorer.heads.thresholds import calibrate_bundle
from gristmill.scorer.rubric import rubric_from_mapping
from gristmill.scorer.sampling import split_of
from gristmill.scorer.scoring.scorer import Scorer
from gristmill.scorer.tables import with_rubric, write_parquet

ANCHORS = {"0": "no", "4": "yes"}
RUBRIC = rubric_from_mapping(
    {
        "name": "planted",
        "dimensions": [
            {"name": "vowels", "question": "?", "anchors": ANCHORS},
            {"name": "noise", "question": "?", "anchors": ANCHORS, "direction": "lower", "weight": 0.5},
        ],
    },
    "test",
)
CONFIG = TrainConfig(taps=(2, 4), window_tokens=64, dtype="float32", batch_tokens=2048, epochs=12, judge_epochs=3)


def document(share: float, length: int, generator: np.random.Generator) -> str:
    letters = np.where(generator.random(length) < share, "a", "#")
    return "".join(letters)


def labels(n: int, seed: int = 0) -> pa.Table:
    """Texts whose share of one letter is the score: a signal that the states hold and that length and source do not."""
    generator = np.random.default_rng(seed)
    shares = generator.random(n)
    ids = [f"d{seed}-{i}" for i in range(n)]
    vowels = 4 * shares
    vowels[::17] = np.nan
    return pa.table(
        {
            "id": ids,
            "source": ["web" if i % 2 else "code" for i in range(n)],
            "text": [document(share, int(generator.integers(20, 60)), generator) for share in shares],
            "weight": pa.array(np.ones(n), pa.float32()),
            "split": [split_of(i) for i in ids],
            "vowels": pa.array(vowels, pa.float32(), mask=np.isnan(vowels)),
            "noise": pa.array(4 - 4 * shares, pa.float32()),
            "rubric_sha": [RUBRIC.sha] * n,
        }
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def trained(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "heads"
    train_bundle(labels(500), RUBRIC, backbone, folder, CONFIG)
    calibrate_bundle(folder, backbone, labels(500), labels(300, seed=9), CalibrationConfig(max_false_drop=0.1))
    return folder


def test_heads_learn_the_planted_signal_and_beat_the_baselines(trained: Path) -> None:
    metrics = read_json(trained / "metrics.json")
    for split in ("select", "audit"):
        predictors = {name: values["quality"] for name, values in metrics["splits"][split]["predictors"].items()}
        probe = predictors["probe"]
        assert probe["spearman"] > 0.9 and probe["within_source"]["worst"] > 0.85
        assert probe["spearman_ci95"][0] > 0.8
        for name in ("source mean", "log length"):
            assert abs(predictors[name]["spearman"] or 0.0) < 0.4
            assert probe["mae"] < 0.5 * predictors[name]["mae"]
    report = metrics["training"]
    assert not report["judge_shipped"] and "probe only" in report["reason"], "a judge that adds nothing must not ship"


def test_an_oracle_that_uses_a_tenth_of_the_scale_is_still_learned(backbone: Path, tmp_path: Path) -> None:
    table = labels(300)
    for name in RUBRIC.names:
        narrow = pa.array([None if v is None else 1.8 + 0.1 * v for v in table[name].to_pylist()], pa.float32())
        table = table.set_column(table.column_names.index(name), name, narrow)
    trained = train_bundle(table, RUBRIC, backbone, tmp_path / "heads", CONFIG)
    predictors = trained.metrics["splits"]["audit"]["predictors"]
    assert predictors["probe"]["vowels"]["mae"] < 0.5 * predictors["constant"]["vowels"]["mae"]


def test_flagged_documents_teach_nothing(backbone: Path, tmp_path: Path) -> None:
    table = labels(160)
    taught = np.isin(table["split"].to_pylist(), ("fit", "select"))
    flagged = taught & (np.arange(len(table)) % 3 == 0)
    top = pa.array(np.where(flagged, 4.0, table[RUBRIC.names[0]].to_numpy()), pa.float32(), from_pandas=True)
    lied = table.set_column(table.column_names.index(RUBRIC.names[0]), RUBRIC.names[0], top)
    heads = [
        train_bundle(version.append_column("flagged", pa.array(flagged)), RUBRIC, backbone, tmp_path / name, CONFIG)
        for name, version in (("honest", table), ("lied", lied))
    ]
    states = [bundle.probe.state_dict() for bundle in heads]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_again_writes_the_same_bytes(backbone: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**CONFIG.__dict__, "epochs": 2, "judge_epochs": 1, "judge_gain": -2.0})
    for name in ("one", "two"):
        train_bundle(labels(120), RUBRIC, backbone, tmp_path / name, config)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_round_trip_and_scores_in_input_order(trained: Path, backbone: Path) -> None:
    generator = np.random.default_rng(5)
    shares = [0.9, 0.1, 0.5]
    texts = [document(share, 50, generator) for share in shares]
    rows = Scorer.load(trained, backbone).score([texts[0], "", texts[1], None, texts[2]], ["web"] * 5).to_pylist()
    quality = [row["quality"] for row in rows]
    assert quality[0] > quality[4] > quality[2] and quality[1] is quality[3] is None
    assert rows[0]["vowels"] == pytest.approx(3.6, abs=0.6) and rows[0]["noise"] == pytest.approx(0.4, abs=0.6)
    assert [row["tokens"] for row in rows] == [50, 0, 50, 0, 50]
    assert rows[0]["judge"] is None and rows[1]["exit"] is None and rows[0]["exit"] is False


def test_garbage_in_the_last_third_is_seen_in_windows_and_not_in_a_beginning(trained: Path, backbone: Path) -> None:
    generator = np.random.default_rng(8)
    clean = [document(0.9, 190, generator) for _ in range(30)]
    spoilt = [text[:126] + "#" * 64 for text in clean]
    scorer = Scorer.load(trained, backbone)
    assert not any(least < 0.5 for least in scorer.score(clean)["least"].to_pylist())
    assert sum(least < 0.5 for least in scorer.score(spoilt)["least"].to_pylist()) >= 0.9 * len(spoilt)
    one, other = scorer.score(clean).to_pylist(), scorer.score(spoilt).to_pylist()
    assert all(b["quality"] < a["quality"] and b["greatest"] > 0.5 for a, b in zip(one, other, strict=True))
    scorer.tokens = Tokens(backbone, 1, 64, windows=1)
    assert scorer.score(clean)["quality"].equals(scorer.score(spoilt)["quality"])


def test_labels_of_another_rubric_are_refused(backbone: Path, tmp_path: Path) -> None:
    table = labels(50).drop(["rubric_sha"]).append_column("rubric_sha", pa.array(["f" * 64] * 50))
    with pytest.raises(DataError, match="label again"):
        train_bundle(table, RUBRIC, backbone, tmp_path / "heads", CONFIG)


def test_commands_from_labels_to_scores(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(with_rubric(labels(200), to_mapping(RUBRIC)), tmp_path / "labels.parquet")
    rows = labels(120, seed=4).select(["id", "source", "text"]).to_pylist()
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heads.toml").write_text(
        'taps = [2, 4]\nwindow_tokens = 64\ndtype = "float32"\nepochs = 4\njudge_epochs = 1\nbatch_tokens = 2048\n'
    )
    (tmp_path / "calibration.toml").write_text("max_false_drop = 0.05\nallow_uncertified = true\n[keep]\ncode = 0.5\n")
    heads, common = str(tmp_path / "heads"), ["--backbone", str(backbone)]
    functions = {
        "train-heads": commands.train_heads, "calibrate": commands.calibrate, "score": scores.score,
        "inspect": commands.inspect, "selftest": commands.selftest,
    }  # fmt: skip
    typed = {name: base_cli.typed(function, f"scorer {name}") for name, function in functions.items()}

    def run(*arguments: object) -> int:
        return base_cli.run("scorer", typed, "about", [str(argument) for argument in arguments])

    labelled = ("--labels", tmp_path / "labels.parquet")
    assert run("train-heads", *labelled, *common, "--output", heads, "--config", tmp_path / "heads.toml") == 0
    strict = ("calibrate", "--heads", heads, *common, *labelled, "--unlabelled", tmp_path / "docs.jsonl")
    assert run(*strict) == 3
    assert "more" in capsys.readouterr().err
    assert run(*strict, "--config", tmp_path / "calibration.toml") == 0
    output = tmp_path / "scores.parquet"
    assert run("score", "--heads", heads, *common, "--input", tmp_path / "docs.jsonl", "--output", output) == 0
    assert pq.read_table(output)["id"].to_pylist() == [row["id"] for row in rows]
    capsys.readouterr()
    assert run("inspect", heads) == 0
    shown = capsys.readouterr().out
    assert "UNCERTIFIED" in shown and "source mean" in shown
    assert run("selftest", heads, *common) == 0
    assert "cut at its taps" in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "text": "fine"}\n{"id": "2", "text": 7}\n')
    assert run("score", "--heads", heads, *common, "--input", tmp_path / "bad.jsonl", "--output", output) == 3
    assert "bad.jsonl: row 2: field text" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys\nfrom gristmill.scorer import cli\nsys.argv = ['scorer', 'label', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'vllm', 'transformers', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-document-tokens" in done.stdout
