"""Which of two runs predicts held-out documents better, and how sure that is.

Paired bootstrap over documents: both runs are scored on the same resampled documents, so what makes a document hard
cancels out. It measures the luck of the documents, not the luck of the seed; the note says so.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json

RESAMPLES = 4_000
FEWEST = 20  # documents; a percentile interval over fewer is too narrow (Hesterberg 2015, arXiv 1411.5279, section 4)


class _Scores(NamedTuple):
    """One evaluation, documents in (source, id) order."""

    keys: list[tuple[str, str]]
    bytes: np.ndarray
    nll: np.ndarray


def compare(a: Path, b: Path, seed: int = 0, subsets: Mapping[str, Container[str]] | None = None) -> dict[str, Any]:
    """Run folder `a` against run folder `b`, on all documents, on each named subset of ids, and on each source's.

    Answers {"a", "b", "budget_tokens", "sets": [...], "note"}; a set has name, documents, a_bits_per_byte,
    b_bits_per_byte, difference (a - b), ci95 and verdict: "better" if a needs fewer bits and the interval excludes 0,
    "worse" if more, else "no difference". budget_tokens is None where the two budgets differ.

    Raises:
        UsageError: a run that has not been evaluated.
        DataError: evaluations of different documents, or without byte counts.
    """
    run_a, run_b = read_json(a / "run.json"), read_json(b / "run.json")
    scores_a, scores_b = _read(a), _read(b)
    if scores_a.keys != scores_b.keys or not np.array_equal(scores_a.bytes, scores_b.bytes):
        raise DataError(
            f"{a} and {b} were evaluated on different documents; evaluate both with the same --data and --split"
        )
    sources = np.array([source for source, _ in scores_a.keys])
    names = sorted(set(sources.tolist()))
    chosen = [("all", np.ones(len(sources), bool))] if len(names) != 1 else []
    for name, ids in (subsets or {}).items():
        rows = np.array([identifier in ids for _, identifier in scores_a.keys])
        if rows.any():
            chosen.append((name, rows))
    chosen += [(name, sources == name) for name in names]
    sets = [_set(name, rows, scores_a, scores_b, seed) for name, rows in chosen]
    same_budget = run_a["tokens"] == run_b["tokens"]
    return {
        "a": a.resolve().name,
        "b": b.resolve().name,
        "budget_tokens": run_a["tokens"] if same_budget else None,
        "sets": sets,
        "note": _note(run_a, run_b, sets),
    }


def table(result: dict[str, Any]) -> str:
    """The comparison as text for a terminal."""
    a, b = result["a"], result["b"]
    lines = [f"{'set':<20} {'documents':>9} {a:>12.12} {b:>12.12} {'difference':>10}  {'95 % interval':<18}  verdict"]
    for row in result["sets"]:
        numbers = f"{row['a_bits_per_byte']:>12.4f} {row['b_bits_per_byte']:>12.4f} {row['difference']:>+10.4f}"
        interval = "[{:+.4f}, {:+.4f}]".format(*row["ci95"])
        verdict = row["verdict"] if row["verdict"] == "no difference" else f"{a} is {row['verdict']}"
        lines.append(f"{row['name']:<20.20} {row['documents']:>9,} {numbers}  {interval:<18}  {verdict}")
    return "\n".join([*lines, "", f"bits per byte, less is better; difference: {a} less {b}", result["note"]])


def _read(run: Path) -> _Scores:
    from pyarrow import parquet

    path = run / "evaluation.parquet"
    if not path.exists():
        raise UsageError(f"{run}: not evaluated yet; first: trainer evaluate {run} --data FOLDER")
    documents = parquet.read_table(path).sort_by([("source", "ascending"), ("id", "ascending")]).to_pydict()
    if None in documents["bytes"]:
        raise DataError(f"{path}: documents without byte counts; evaluate again with --tokenizer FILE")
    keys = list(zip(documents["source"], documents["id"]))
    return _Scores(keys, np.array(documents["bytes"], np.float64), np.array(documents["nll"], np.float64))


def _set(name: str, rows: np.ndarray, a: _Scores, b: _Scores, seed: int) -> dict[str, Any]:
    size, nll_a, nll_b = a.bytes[rows], a.nll[rows] / math.log(2), b.nll[rows] / math.log(2)
    difference = (nll_a.sum() - nll_b.sum()) / size.sum()
    low, high = _interval(nll_a - nll_b, size, seed)
    verdict = "no difference"
    if len(size) >= FEWEST and (high < 0 or low > 0):
        verdict = "better" if difference < 0 else "worse"
    return {
        "name": name,
        "documents": len(size),
        "a_bits_per_byte": float(nll_a.sum() / size.sum()),
        "b_bits_per_byte": float(nll_b.sum() / size.sum()),
        "difference": float(difference),
        "ci95": [low, high],
        "verdict": verdict,
    }


def _interval(bits: np.ndarray, size: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile interval of sum(bits) / sum(size) over resampled documents."""
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(bits))
    ratios = []
    for start in range(0, RESAMPLES, block):
        pick = generator.integers(len(bits), size=(min(block, RESAMPLES - start), len(bits)))
        ratios.append(bits[pick].sum(axis=1) / size[pick].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    return float(low), float(high)


def _note(a: dict[str, Any], b: dict[str, Any], sets: list[dict[str, Any]]) -> str:
    parts = ["The interval covers the choice of documents, not of the seed: one run each."]
    if a["tokens"] != b["tokens"]:
        parts.append(
            f"The budgets differ ({a['tokens']:,} and {b['tokens']:,} tokens), so the data is not all that differs."
        )
    unlike = [part for part in ("model", "optimizer", "batch", "precision", "seed") if _part(a, part) != _part(b, part)]
    if unlike:
        parts.append(f"The runs differ in {', '.join(unlike)} too.")
    few = [row["name"] for row in sets if row["documents"] < FEWEST]
    if few:
        parts.append(f"Fewer than {FEWEST} documents, too few for a verdict: {', '.join(few)}.")
    if len(sets) > 1:
        parts.append("Each set has its own 95 %; with many sets, expect one in twenty to stand out by chance.")
    return " ".join(parts)


def _part(run: dict[str, Any], name: str) -> Any:
    return run["model"] if name == "model" else run["config"][name]
