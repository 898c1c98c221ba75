"""Bounds are certified on documents as they are scored: whole, with the settings that scoring has."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.support.tiny_heads import rubric, texts, write_heads

from gristmill.base.config import to_mapping
from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands import heads as commands
from gristmill.scorer.config import CalibrationConfig, ScoringConfig
from gristmill.scorer.heads import thresholds
from gristmill.scorer.heads.thresholds import calibrate_bundle
from gristmill.scorer.scoring.scorer import Scorer
from gristmill.scorer.tables import with_rubric, write_parquet

RUBRIC, N = rubric(), 300
LOOSE = pa.table({"id": [f"u{i}" for i in range(200)], "text": texts(200, 7), "source": ["web"] * 200})
WHOLE = pa.table({"id": [f"d{i}" for i in range(N)], "text": [one + " " + one[::-1] for one in texts(N, 3)]})


def shown(**more: list) -> pa.Table:
    """Labels that hold the beginnings of WHOLE, as an oracle was shown them."""
    generator = np.random.default_rng(0)
    columns = {"id": WHOLE["id"].to_pylist(), "text": texts(N, 3), "source": ["web"] * N, "split": ["certify"] * N}
    grades = {name: generator.uniform(0, 4, N).astype(np.float32) for name in RUBRIC.names}
    table = pa.table({**columns, **grades, "rubric_sha": [RUBRIC.sha] * N, **more})
    return with_rubric(table, to_mapping(RUBRIC))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def heads(backbone: Path, tmp_path: Path) -> Path:
    return write_heads(tmp_path / "heads", backbone, RUBRIC)


@pytest.mark.parametrize("told", [{"truncated": [True] * N}, {"window": ["begin"] * N}])
def test_labels_of_parts_certify_nothing_without_the_whole_documents(heads: Path, backbone: Path, told: dict) -> None:
    with pytest.raises(DataError, match=r"300 of 300 documents .* in part only.*--documents FILE"):
        calibrate_bundle(heads, backbone, shown(**told), LOOSE, CalibrationConfig())
    stamped = calibrate_bundle(heads, backbone, shown(**told), LOOSE, CalibrationConfig(allow_uncertified=True))
    assert stamped["mode"] == "expected" and stamped["fd_upper"] is None
    assert "only the part of them that the oracle was shown" in (heads / "README.md").read_text()


def test_what_is_certified_is_scored_by_its_whole_text(heads: Path, backbone: Path, tmp_path: Path) -> None:
    config, parts = CalibrationConfig(), shown(truncated=[True] * N)
    shuffled = WHOLE.take(np.random.default_rng(1).permutation(N))
    found = calibrate_bundle(heads, backbone, parts, LOOSE, config, documents=shuffled)
    whole = parts.set_column(1, "text", WHOLE["text"]).drop_columns(["truncated"])
    known = calibrate_bundle(heads, backbone, whole, LOOSE, config)
    assert found["mode"] == "certified" and found == known
    assert found["scores_sha"] != calibrate_bundle(heads, backbone, shown(), LOOSE, config)["scores_sha"]


def test_documents_that_do_not_hold_the_graded_ones_are_refused(heads: Path, backbone: Path) -> None:
    labels, config = shown(), CalibrationConfig()
    for documents, told in (
        (WHOLE.slice(10), "10 of the 300 graded documents .* are not there, such as 'd0'"),
        (pa.concat_tables([WHOLE, WHOLE.set_column(1, "text", WHOLE["text"].take(list(range(N))[::-1]))]), "several"),
        (WHOLE.select(["id"]), "documents: no column 'text'"),
    ):
        with pytest.raises(DataError, match=told):
            calibrate_bundle(heads, backbone, labels, LOOSE, config, documents=documents)


def test_weights_and_ids_of_the_labels_decide_what_is_counted(heads: Path, backbone: Path) -> None:
    config = CalibrationConfig(allow_uncertified=True)
    even = calibrate_bundle(heads, backbone, shown(weight=[2.0] * N), LOOSE, config)
    uneven = calibrate_bundle(heads, backbone, shown(weight=[8.0] + [2.0] * (N - 1)), LOOSE, config)
    assert even["n_good"] == 90 and 10 < uneven["n_good"] < 35


def test_calibration_runs_as_scoring_will(
    heads: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ScoringConfig] = []
    load = Scorer.load

    def spy(folder: Path, model: Path, config: ScoringConfig) -> Scorer:
        seen.append(config)
        return load(folder, model, config)

    monkeypatch.setattr(thresholds.Scorer, "load", spy)
    calibrate_bundle(heads, backbone, shown(), LOOSE, CalibrationConfig(), ScoringConfig(device="cpu", chunk=7))
    for name, table in (("labels", shown(truncated=[True] * N)), ("whole", WHOLE), ("loose", LOOSE)):
        write_parquet(table, tmp_path / f"{name}.parquet")
    places = [tmp_path / f"{name}.parquet" for name in ("labels", "loose", "whole")]
    shutil.rmtree(heads)
    write_heads(heads, backbone, RUBRIC)
    commands.calibrate(heads, backbone, *places, device="cpu", threads=2)
    assert seen == [ScoringConfig(device="cpu", chunk=7), ScoringConfig(device="cpu", threads=2)]
    assert read_json(heads / "calibration.json")["mode"] == "certified"
