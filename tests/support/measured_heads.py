"""heads/ and drift/ of a run folder as the scorer writes them, measured on made-up grades and scores."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.drift import check_drift
from gristmill.scorer.heads.evaluation import evaluate_exits, evaluate_splits
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.rubric import Rubric, rubric_from_mapping

WORDS = {True: ["proof", "shows", "because", "theorem"], False: ["click", "buy", "now", "cookies"]}
TAPS, LAYERS = (12, 20), 30


def write_heads(run: Path, routes: dict[str, tuple[str, ...]]) -> None:
    """A folder of heads for each name of `routes`, with the sources that it is for; all but the first have drifted."""
    drift: list[dict[str, Any]] = []
    for seed, (name, own) in enumerate(routes.items()):
        metrics, calibration = measure(name, own, seed)
        _write(run / "heads" / name / "metrics.json", metrics)
        _write(run / "heads" / name / "calibration.json", calibration)
        scores = np.clip(np.random.default_rng(seed).beta(2, 2, 900) + 0.15 * seed, 0, 1)
        rows = {"id": [f"n{i}" for i in range(900)], "source": [own[i % len(own)] for i in range(900)]}
        found = check_drift(pa.table({**rows, "quality": scores.astype(np.float32)}), calibration)
        drift += [{"rubric": name, **vars(one), "drifted": one.drifted} for one in found]
    _write(run / "drift" / "drift.json", {"sources": drift})


@cache
def measure(name: str, sources: tuple[str, ...], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and calibration.json of a probe and a better judge."""
    generator, n = np.random.default_rng(seed), 1600 - 400 * seed
    rubric = _rubric(name)
    quality = generator.beta(2, 2, n)
    own = [sources[i] for i in generator.integers(0, len(sources), n)]
    lift = np.array([0.06 * sources.index(source) for source in own])
    truth = np.clip(np.rint(5 * (quality + lift)[:, None] + generator.normal(0, 0.6, (n, 3))), 0, 5)
    heads = {
        head: 5 * (quality + lift)[:, None] * 0.9 + generator.normal(0.2, spread, (n, 3))
        for head, spread in (("probe", 1.0), ("judge", 0.6))
    }
    texts: list[str | None] = [
        " ".join(generator.choice(WORDS[bool(generator.random() < q)], int(generator.integers(5, 60)))) for q in quality
    ]
    labels = Labels(
        ids=[f"{name}-{i}" for i in range(n)], texts=texts, sources=own,
        splits=generator.choice(np.array(["fit", "select", "certify", "audit"], dtype=object), n),
        scores_ND=truth, weights_N=np.ones(n), flagged_N=np.zeros(n, bool), groups=[f"{name}-{i}" for i in range(n)],
        languages=["en" if i % 3 else "de" for i in range(n)], repeats_N=np.full(n, 3.0), overall_N=np.full(n, np.nan),
    )  # fmt: skip
    audit = {
        "rubrics": {
            name: {"rubric_sha": rubric.sha, "retest": {"dimensions": {d: {"r": {"value": 0.7}} for d in rubric.names}}}
        }
    }
    lengths = np.array([len(text or "") / 4 for text in texts])
    reason = "judge (encoder) - probe = +0.030 Spearman on select, 0.020 needed: enough"
    metrics = {
        "training": {"fit": 400, "judge_shipped": True, "reason": reason},
        "splits": evaluate_splits(labels, lengths, heads, rubric, TrainConfig(taps=TAPS), audit=audit),
        "exits": evaluate_exits(labels, heads, rubric, TAPS, LAYERS),
    }
    certify = labels.take(labels.splits == "certify")
    probe, judge = (rubric.quality(heads[head]) for head in ("probe", "judge"))
    calibration = calibrate(
        Labelled(certify.sources, rubric.quality(certify.scores_ND), probe[labels.splits == "certify"]),
        Unlabelled(own, probe, judge, labels.ids),
        CalibrationConfig(keep_default=0.4),
    )
    return metrics, calibration


def _rubric(name: str) -> Rubric:
    anchors = {"0": "no", "5": "yes"}
    dimensions = [{"name": one, "question": "?", "anchors": anchors, "max": 5} for one in ("clear", "deep", "factual")]
    return rubric_from_mapping({"name": name, "dimensions": dimensions}, "test")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
