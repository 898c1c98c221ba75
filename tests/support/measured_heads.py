"""heads/ and drift/ of a run folder as the scorer writes them, measured on made-up grades and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.config import to_mapping
from gristmill.scorer.audit.robustness import Oracle
from gristmill.scorer.audit.run import FORMAT, AuditConfig, audit
from gristmill.scorer.config import CalibrationConfig, TrainConfig
from gristmill.scorer.heads.calibration import Labelled, Unlabelled, calibrate
from gristmill.scorer.heads.drift import check_drift
from gristmill.scorer.heads.evaluation import evaluate_exits, evaluate_splits
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.oracle.tokens import RoughTokenizer
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
        _write(run / "heads" / name / "scorer.json", _scorer(name, seed))
        scores = np.clip(np.random.default_rng(seed).beta(2, 2, 900) + 0.15 * seed, 0, 1)
        rows = {"id": [f"n{i}" for i in range(900)], "source": [own[i % len(own)] for i in range(900)]}
        found = check_drift(pa.table({**rows, "quality": scores.astype(np.float32)}), calibration)
        drift += [{"rubric": name, **vars(one), "drifted": one.drifted} for one in found]
    _write(run / "drift" / "drift.json", {"sources": drift})


def write_scores(run: Path, routes: dict[str, tuple[str, ...]], documents: int = 3000, unseen: str = "forum") -> None:
    """documents, thresholds and scores of probe and judge, with exits at the thresholds of write_heads(); a tenth of
    the exits judged all the same, some documents without a score, and one source that calibration never saw."""
    draw = np.random.default_rng(7)
    groups: dict[str, Any] = {}
    for seed, (name, own) in enumerate(routes.items()):
        found = measure(name, own, seed)[1]["groups"]
        groups |= found if not seed else {source: found[source] for source in own}
    _write(run / "thresholds" / "calibration.json", {"groups": groups})
    names = [*(source for own in routes.values() for source in own), unseen]
    source = np.array(names)[draw.integers(0, len(names), documents)]
    quality, rubric = draw.beta(2, 2, documents), _rubric("any")
    probe, judge = (
        rubric.quality(5 * quality[:, None] * 0.9 + draw.normal(0.2, spread, (documents, 3))).astype(np.float32)
        for spread in (1.0, 0.6)
    )
    tau = np.array([groups[name]["tau_drop"] if name in groups else -np.inf for name in source], np.float32)
    scored = draw.random(documents) < 0.9
    exits = scored & (probe < tau)
    shadow = exits & (draw.random(documents) < 0.1)
    judged = scored & (~exits | shadow)
    heads = {
        "quality": pa.array(np.where(exits, probe, judge), mask=~scored),
        "probe": pa.array(probe, mask=~scored),
        "judge": pa.array(judge, mask=~judged),
        "exit": pa.array(exits, mask=~scored),
        "shadow": pa.array(shadow, mask=~scored),
        "clear": pa.array((5 * quality).astype(np.float32), mask=~scored),
        "tokens": pa.array(draw.integers(5, 400, documents).astype(np.int32), mask=~scored),
    }
    tables = {
        "documents": {"id": [f"d{i}" for i in range(documents)], "text": ["…"] * documents, "source": source},
        "annotations/scores": heads,
        "annotations/tokens": {"count": draw.integers(5, 400, documents).astype(np.int32)},
    }
    for folder, columns in tables.items():
        (run / folder).mkdir(parents=True, exist_ok=True)
        table, half = pa.table(columns), documents // 2
        pq.write_table(table.slice(0, half), run / folder / "part-00000.parquet")
        pq.write_table(table.slice(half), run / folder / "part-00001.parquet")


def write_audit(run: Path, documents: int = 30) -> dict[str, Any]:
    """audit/audit.json of an oracle that is noisy, likes length and obeys orders, with a second one; and its grades."""
    rubric, draw = _rubric("general"), np.random.default_rng(3)
    texts = [" ".join(draw.choice(WORDS[True], int(draw.integers(4, 60)))) for _ in range(documents)]
    table = {"id": [f"a{i}" for i in range(documents)], "source": ["web", "wiki"] * (documents // 2), "text": texts}
    config = AuditConfig(repeats=3, permutations=2, injections=12)
    first, second = (
        cast(Oracle, _Grader(np.random.default_rng(seed), spread)) for seed, spread in ((1, 0.5), (2, 0.9))
    )
    section = audit(
        rubric, config, documents=pa.table(table), oracle=lambda: nullcontext(first), other=lambda: nullcontext(second)
    )
    (run / "labels" / "grades").mkdir(parents=True, exist_ok=True)
    pq.write_table(first.grade(rubric, texts), run / "labels" / "grades" / "part-00000.parquet")
    found = {"format": FORMAT, "rubrics": {rubric.name: section}}
    _write(run / "audit" / "audit.json", found)
    return found


@dataclass
class _Grader:
    """What audit() asks of an Oracle."""

    draw: np.random.Generator
    spread: float
    form: str = "level"
    max_document_tokens: int = 256
    temperature: float = 0.0
    engine: Any = field(default_factory=lambda: SimpleNamespace(tokenizer=RoughTokenizer()))

    def grade(self, rubric: Rubric, texts: Sequence[str], orders: Any = None, repeat: int = 0) -> pa.Table:
        base = np.array([min(len(text) / 80, 4) + ("ignore" in text.lower()) for text in texts])
        columns: dict[str, Any] = {
            name: np.clip(np.rint(base + self.draw.normal(0, self.spread, len(texts))), 0, 5).astype(np.float32)
            for name in rubric.names
        }
        rest = {"text": list(texts), "truncated": [False] * len(texts), "engine": [f"noise {self.spread}"] * len(texts)}
        return pa.table(columns | rest)


def _scorer(name: str, seed: int) -> dict[str, Any]:
    """scorer.json, as far as it does not depend on a model that was read."""
    backbone = {"name": "tiny", "architecture": "llama", "width": 64, "layers": LAYERS, "first_token": 1}
    return {
        "format": "gristmill.scorer/2",
        "backbone": {**backbone, "fingerprint": "5e" * 32, "revision": ""},
        "taps": {"probe": TAPS[0], "judge": TAPS[1], "pre_norm": True},
        "windows": {"tokens": 128, "most": 3},
        "judge": "encoder",
        "rubric": to_mapping(_rubric(name)),
        "rubric_sha": _rubric(name).sha,
        "labels_sha": "4c" * 32,
        "training": to_mapping(TrainConfig(taps=TAPS, seed=seed)),
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }


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
