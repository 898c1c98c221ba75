"""A run folder of any size to look at: made-up numbers under thirty rules, in partitions as pipelines write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base.files import write_json

SOURCES = ("books", "code", "forums", "math", "news", "papers", "web", "wiki")
SHARES = (0.05, 0.15, 0.1, 0.05, 0.1, 0.1, 0.4, 0.05)
ROWS = 8192  # of a partition
WORDS = ("the", "mill", "stone", "turns", "grain", "into", "flour", "and", "each", "measure", "is", "weighed")
PLAIN = 22  # rules over one measured share each; half of them with a bound of its own for a source
Columns = dict[str, Any]


def rules() -> list[Columns]:
    """Twenty-two shares, words, languages, two kinds of clusters, perplexity, quality: as long as a policy gets."""
    shares: list[Columns] = [
        {"name": f"share_{at}", "column": f"heuristics.share_{at}", "max": 0.6} for at in range(PLAIN)
    ]
    for rule in shares[::2]:
        rule["sources"] = {"code": {"max": 0.7}}
    return [
        {"name": "words", "column": "heuristics.words", "min": 20, "max": 100_000},
        {"name": "language", "column": "language.label", "allowed": ["en"], "sources": {"code": {}}},
        *shares,
        {"name": "perplexity", "column": "perplexity.log_perplexity", "max": 9.0, "missing": "keep"},
        {"name": "exact", "column": "exact", "keep": "first"},
        {"name": "near", "column": "near", "keep": "longest"},
        {"name": "toxicity", "column": "toxicity.score", "max": 0.9},
        {"name": "quality", "column": "scores.quality", "min": "@tau_keep"},
        {"name": "no_tokens", "column": "tokens.count", "min": 1},
    ]


def make(run: Path, documents: int, seed: int = 0) -> Path:
    """Documents of a hundred words or so; a fifth of them in clusters of copies."""
    draw = np.random.default_rng(seed)
    listed = {"documents": "documents", "selection": "selection", "thresholds": "thresholds"}
    for part, start in enumerate(range(0, documents, ROWS)):
        tables = _tables(draw, start, min(ROWS, documents - start), documents)
        for name, columns in tables.items():
            folder = name if name in ("documents", "selection") else f"annotations/{name}"
            listed[name] = folder
            (run / folder).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), run / folder / f"part-{part:05d}.parquet", compression="zstd")
    groups = {"(all)": {"tau_keep": 0.4}, **{name: {"tau_keep": 0.35 + 0.01 * at} for at, name in enumerate(SOURCES)}}
    write_json(run / "thresholds" / "calibration.json", {"groups": groups})
    write_json(run / "ledger" / "outputs.json", listed)
    policy = {"name": "thirty rules", "rule": rules(), "edit": [], "measure": {}}
    write_json(run / "selection" / "policy.json", {"name": policy["name"], "rules": [], "policy": policy})
    write_json(run / "run.json", {"name": "made up", "status": "done", "nodes": []})
    return run


def _tables(draw: np.random.Generator, start: int, rows: int, documents: int) -> dict[str, Columns]:
    words = np.maximum(draw.lognormal(5, 1.2, rows), 1).astype(np.int32)
    text = [" ".join(draw.choice(WORDS, 100)) for _ in range(16)]
    alone = documents + np.arange(start, start + rows)

    def clusters(share: float, of: int) -> np.ndarray:
        return np.where(draw.random(rows) < share, draw.integers(0, max(documents // of, 1), rows), alone)

    def floats(values: np.ndarray, missing: float = 0.0) -> pa.Array:
        return pa.array(values, pa.float32(), mask=draw.random(rows) < missing)

    shares = {f"share_{at}": floats(draw.beta(2, 6, rows)) for at in range(PLAIN)}
    return {
        "documents": {
            "id": [f"document-{row:08d}" for row in range(start, start + rows)],
            "text": [f"{row} {text[row % 16]}" for row in range(rows)],
            "source": np.array(SOURCES)[draw.choice(len(SOURCES), rows, p=SHARES)],
            "url": pa.nulls(rows, pa.string()),
        },
        "heuristics": {"words": words, "characters": words * 6, **shares},
        "language": {"label": draw.choice(np.array(["en", "de", "fr"]), rows, p=[0.9, 0.06, 0.04])},
        "perplexity": {"log_perplexity": floats(draw.normal(7, 1, rows), 0.1)},
        "exact": {"cluster": clusters(0.1, 25)},
        "near": {"cluster": clusters(0.2, 20)},
        "toxicity": {"score": floats(draw.beta(1, 8, rows))},
        "scores": {"quality": floats(draw.beta(4, 4, rows), 0.02)},
        "tokens": {"count": (words * 1.3).astype(np.int32)},
        "selection": {"keep": draw.random(rows) < 0.3, "reason": pa.array(["words"] * rows, pa.string())},
    }
