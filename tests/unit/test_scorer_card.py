"""The card and the printed table say what metrics.json says; `scorer eval` measures a folder beside other scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.tiny_heads import rubric, texts, write_heads

from gristmill.base import cli as base_cli
from gristmill.base.config import to_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json
from gristmill.scorer.backbone.staged import BackboneIdentity
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.commands import evaluate as command
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.card import card, curve_table, summary
from gristmill.scorer.heads.comparison import evaluate_folder, read_scores
from gristmill.scorer.heads.evaluation import evaluate_exits, evaluate_splits
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.thresholds import calibrate_bundle
from gristmill.scorer.scoring.scorer import Scorer
from gristmill.scorer.tables import with_rubric, write_parquet

RUBRIC = rubric()
IDENTITY = BackboneIdentity("tiny", "LlamaForCausalLM", 64, 12, 1, "f" * 64)
CONFIG = TrainConfig(taps=(4, 8))


def graded(n: int = 960, seed: int = 0) -> tuple[Labels, dict[str, np.ndarray]]:
    """Grades of two sources, with a probe and a better judge."""
    generator = np.random.default_rng(seed)
    quality = generator.beta(2, 2, n)
    both = np.stack([quality, 1 - quality], axis=1) * 4
    labels = Labels(
        ids=[f"d{i}" for i in range(n)], texts=list(texts(n)), sources=(["web"] * 4 + ["code"] * 4) * (n // 8),
        splits=np.array(["fit", "select", "certify", "audit"] * (n // 4), dtype=object),
        scores_ND=np.clip(both + generator.normal(0, 0.4, (n, 2)), 0, 4), weights_N=np.ones(n),
        flagged_N=np.zeros(n, bool), groups=[f"d{i}" for i in range(n)], languages=["en", "de"] * (n // 2),
        repeats_N=np.full(n, 3.0), overall_N=np.full(n, np.nan),
    )  # fmt: skip
    heads = {name: both + generator.normal(0, spread, (n, 2)) for name, spread in (("probe", 1.0), ("judge", 0.6))}
    return labels, heads


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and a calibration."""
    labels, heads = graded()
    dimensions = {name: {"r": {"value": 0.6}} for name in RUBRIC.names}
    audit = {"rubrics": {RUBRIC.name: {"rubric_sha": RUBRIC.sha, "retest": {"dimensions": dimensions}}}}
    lengths = np.array([float(len(text or "")) / 4 for text in labels.texts])
    metrics = {
        "training": {"reason": "judge - probe = +0.030"},
        "splits": evaluate_splits(labels, lengths, heads, RUBRIC, CONFIG, audit=audit),
        "exits": evaluate_exits(labels, heads, RUBRIC, (4, 8), 12),
    }
    quality, certify = RUBRIC.quality(labels.scores_ND), labels.splits == "certify"
    probe, judge = (RUBRIC.quality(heads[name]) for name in ("probe", "judge"))
    sources = [source for source, own in zip(labels.sources, certify) if own]
    found = calibrate(
        Labelled(sources, quality[certify], probe[certify]), Unlabelled(labels.sources, probe, judge),
        CalibrationConfig(),
    )  # fmt: skip
    return metrics, found | {"weights": None}


def test_metrics_are_json_and_hold_every_predictor_with_its_interval(measured: tuple[dict, dict]) -> None:
    metrics, _ = measured
    again = json.loads(json.dumps(metrics, allow_nan=False))
    assert again == metrics
    for split in ("select", "audit"):
        report = metrics["splits"][split]
        assert set(report["predictors"]) == {"probe", "judge", "constant", "source mean", "log length", "fasttext"}
        for name in ("probe", "judge"):
            for target in (*RUBRIC.names, "quality"):
                values = report["predictors"][name][target]
                for key in ("spearman", "pearson", "mae", "rmse", "bias"):
                    low, high = values[f"{key}_ci95"]
                    assert low <= values[key] <= high
        assert report["decision"]["judge"]["auroc"] > report["decision"]["probe"]["auroc"] > 0.7
        assert set(report["slices"]) == {"source", "language", "length"}
        assert set(report["reliability"]["probe"]["levels"]) == set(RUBRIC.names)


def test_the_ceiling_is_the_root_of_the_reliability_of_as_many_grades_as_were_averaged(
    measured: tuple[dict, dict],
) -> None:
    ceiling = measured[0]["splits"]["audit"]["ceiling"]["vowels"]
    r_3 = 3 * 0.6 / (1 + 2 * 0.6)
    assert ceiling == {"r": 0.6, "repeats": 3.0, "ceiling": pytest.approx(r_3**0.5)}


def test_exits_curve_ends_where_all_exit_and_says_both_savings(measured: tuple[dict, dict]) -> None:
    curve = measured[0]["exits"]["splits"]["audit"]
    assert curve["exit_rate"][-1] == curve["false_drop"][-1] == curve["false_drop_judge"][-1] == 1
    assert curve["saved"][-1] == pytest.approx(0.5) and curve["saved_full"][-1] == pytest.approx(2 / 3)
    assert all(upper >= lost for upper, lost in zip(curve["false_drop_upper"], curve["false_drop"]))
    assert curve["expected"]["0.05"]["exit_rate"] > curve["expected"]["0.01"]["exit_rate"]
    labels, heads = graded()
    alone = evaluate_exits(labels, {"probe": heads["probe"]}, RUBRIC, (4, 8), 12)
    assert (alone["probe"], alone["judge"]) == (4, 4) and alone["splits"]["audit"]["saved"][-1] == 0


def test_the_card_tells_the_verdict_the_thresholds_and_what_they_promise(measured: tuple[dict, dict]) -> None:
    metrics, calibration = measured
    text = card(IDENTITY, CONFIG, RUBRIC, metrics, calibration)
    beats = metrics["splits"]["audit"]["verdict"]["against"]["source mean"]
    assert f"It beats source mean: {beats['difference']:+.2f}" in text
    assert text.index("Split `audit`") < text.index("Split `select`")
    assert "of the noise ceiling" in text and "P(grade >= level)" in text
    assert "certified: at most 5.0%" in text and "each bound holds for itself" in text
    for group in calibration["groups"].values():
        told = [group[who] for who in ("oracle", "judge")]
        assert all(f"{one['errors']} of {one['n']} (at most {one['upper']:.1%})" in text for one in told)
    assert "Not calibrated" in card(IDENTITY, CONFIG, RUBRIC, metrics, None)
    stamped = card(IDENTITY, CONFIG, RUBRIC, metrics, calibration | {"mode": "expected", "fd_upper": None})
    assert "tau_drop is UNCERTIFIED" in stamped and "own labels" not in stamped
    assert "of code, web together, by the labels of the pool" in text and "by its own labels" not in text
    alone = card(IDENTITY, CONFIG, RUBRIC, metrics, calibration | {"certificates": 2, "pool": None})
    assert "of 2 sources, each by its own labels;" in alone and "of the pool" not in alone
    fitted = card(IDENTITY, CONFIG, RUBRIC, metrics, calibration | {"weights": {"vowels": 0.75, "noise": 0.25}})
    assert "overall grade: vowels 0.75, noise 0.25" in fitted


def test_a_head_that_loses_to_its_sources_is_told_so() -> None:
    labels, _ = graded()
    level = np.where(np.array(labels.sources) == "web", 3.0, 1.0)
    labels.scores_ND[:] = np.stack([level, 4 - level], axis=1)
    noise = np.random.default_rng(1).uniform(0, 4, labels.scores_ND.shape)
    lengths = np.random.default_rng(2).uniform(10, 500, len(labels))
    splits = evaluate_splits(labels, lengths, {"probe": noise}, RUBRIC, CONFIG)
    assert "It LOSES TO source mean: -" in summary({"splits": splits})
    assert "does not clearly differ from log length" in summary({"splits": splits})


def test_the_summary_is_the_table_of_the_split_that_nothing_was_chosen_on(measured: tuple[dict, dict]) -> None:
    text = summary(measured[0])
    quality = measured[0]["splits"]["audit"]["predictors"]["judge"]["quality"]
    row = next(line for line in text.splitlines() if line.startswith("| judge"))
    assert f"{quality['spearman']:.2f} (" in row and "Split audit, 240 documents" in text
    assert "Split select" not in text
    assert summary({"splits": {}}).startswith("No document")
    assert len(curve_table(measured[0]["exits"])) > 10


def test_names_from_documents_cannot_break_a_table() -> None:
    labels, heads = graded()
    labels = labels.take(np.arange(len(labels)))
    labels.sources[:] = ["a|b\n# hi" if source == "web" else source for source in labels.sources]
    splits = evaluate_splits(labels, np.full(len(labels), 20.0), heads, RUBRIC, CONFIG)
    text = card(IDENTITY, CONFIG, RUBRIC, {"splits": splits}, None)
    assert "\n# hi" not in text and "a/b" in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, calibrated heads, labels and another system's scores."""
    where = tmp_path_factory.mktemp("eval")
    backbone = write_tiny(where / "model", "llama")
    heads = write_heads(where / "heads", backbone, RUBRIC)
    write_parquet(label_table(400), where / "labels.parquet")
    loose = pa.table({"text": texts(200, 7), "source": ["web", "code"] * 100, "id": [f"u{i}" for i in range(200)]})
    config = CalibrationConfig(max_false_drop=0.1, allow_uncertified=True, keep_by="tokens")
    calibrate_bundle(heads, backbone, label_table(400), loose, config)
    other = pa.table({"id": [f"d{i}" for i in range(390)], "edu": np.arange(390) * 100.0})
    write_parquet(other, where / "edu.parquet")
    return where


def label_table(n: int) -> pa.Table:
    generator = np.random.default_rng(0)
    table = pa.table(
        {
            "id": [f"d{i}" for i in range(n)], "text": texts(n, 3), "source": (["web"] * 4 + ["code"] * 4) * (n // 8),
            "split": ["fit", "select", "certify", "audit"] * (n // 4),
            **{name: generator.uniform(0, 4, n).astype(np.float32) for name in RUBRIC.names},
            "overall": generator.uniform(0, 10, n).astype(np.float32), "rubric_sha": [RUBRIC.sha] * n,
        }
    )  # fmt: skip
    return with_rubric(table, to_mapping(RUBRIC))


def test_another_score_stands_in_the_same_table_by_order_alone(folder: Path) -> None:
    run = base_cli.typed(command.evaluate, "scorer eval")
    arguments = [
        "--heads", folder / "heads", "--backbone", folder / "model", "--labels", folder / "labels.parquet",
        "--scores", f"edu={folder / 'edu.parquet'}:edu", "--curve", folder / "curve.json",
        "--output", folder / "out.json",
    ]  # fmt: skip
    assert run([str(one) for one in arguments]) is None
    report = read_json(folder / "out.json")["splits"]["audit"]
    edu = report["predictors"]["edu"]
    assert list(edu) == ["quality"] and edu["quality"]["n"] == 97  # of 100, the last three are not scored
    assert edu["quality"]["spearman"] is not None and "mae" not in edu["quality"] and "bias" not in edu["quality"]
    assert report["predictors"]["deployed"]["quality"]["n"] == 100 and "edu" in report["verdict"]["against"]
    assert report["predictors"]["judge"].keys() == {*RUBRIC.names, "quality"}
    assert set(read_json(folder / "curve.json")["splits"]) == {"select", "audit"}


def test_labels_without_splits_are_measured_whole_without_fitted_baselines(folder: Path) -> None:
    table = label_table(64).drop_columns(["split"])
    found = evaluate_folder(folder / "heads", folder / "model", table)["splits"]
    assert list(found) == ["audit"] and found["audit"]["documents"] == 64
    assert set(found["audit"]["predictors"]) == {"judge", "probe", "deployed"}


@pytest.mark.parametrize("given", ["edu", "edu=:edu", "=x.parquet:edu", "edu=x.parquet"])
def test_scores_that_are_not_named_right_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"give NAME=FILE\.parquet:COLUMN"):
        read_scores([given], ["a"])


def test_score_tables_without_the_column_or_the_documents_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no column 'quality'; columns are id, edu"):
        read_scores([f"edu={folder / 'edu.parquet'}:quality"], ["d1"])
    with pytest.raises(DataError, match="a score for none of the 1 graded documents"):
        read_scores([f"edu={folder / 'edu.parquet'}:edu"], ["x"])


def test_fitted_weights_reach_the_scores(folder: Path) -> None:
    heads = write_heads(folder / "weighted", folder / "model", RUBRIC)
    loose = pa.table({"text": texts(100, 8), "source": ["web"] * 100})
    config = CalibrationConfig(max_false_drop=0.1, allow_uncertified=True, weights="fit")
    table = label_table(400)
    goodness = np.array(table["vowels"].to_pylist()) / 4
    table = table.set_column(table.schema.get_field_index("overall"), "overall", pa.array(goodness))
    result = calibrate_bundle(heads, folder / "model", table, loose, config)
    assert result["weights"]["vowels"] == pytest.approx(1.0, abs=1e-6)
    scores = Scorer.load(heads, folder / "model").score(texts(20, 9), early_exit=False)
    vowels = np.clip(np.array(scores["vowels"].to_pylist()) / 4, 0, 1)
    assert np.array(scores["quality"].to_pylist()) == pytest.approx(vowels, abs=1e-5)
    assert bundles.load(heads).rubric.sha == RUBRIC.sha


def test_unlabelled_scores_made_with_exits_are_refused(folder: Path) -> None:
    loose = pa.table({"source": ["web"] * 50, "probe": np.linspace(0, 1, 50), "judge": [None] * 25 + [0.5] * 25})
    with pytest.raises(DataError, match="25 documents without the judge's score"):
        calibrate_bundle(
            folder / "heads", folder / "model", label_table(400), loose, CalibrationConfig(allow_uncertified=True)
        )
