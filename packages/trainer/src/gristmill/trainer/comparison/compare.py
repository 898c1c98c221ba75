"""Which of two runs predicts held-out documents better, and how sure that is.

Paired bootstrap over documents: both runs are scored on the same resampled documents, so what makes a document hard
cancels out. Of two single runs it measures the luck of the documents, not the luck of the seed; the note says so.
S seeds, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object
from gristmill.trainer import config
from gristmill.trainer.comparison import paired

FEWEST = 20  # documents; a percentile interval over fewer is too narrow (Hesterberg 2015, arXiv 1411.5279, section 4)


class Scores(NamedTuple):
    """One evaluation, documents in (source, id) order."""

    keys: list[tuple[str, str]]
    bytes: np.ndarray
    nll: np.ndarray


def compare(a: Path, b: Path, seed: int = 0, subsets: Mapping[str, Container[str]] | None = None) -> dict[str, Any]:
    """Run folder `a` against run folder `b`, on all documents, on each named subset of ids, and on each source's.

    Answers {"a", "b", "budget_tokens", "sets": [...], "note"}; the sets are those of sets_of(). Budgets are those of
    the checkpoints that were evaluated; budget_tokens is None where the two differ.

    Raises:
        UsageError: a run that has not been evaluated.
        DataError: evaluations of different documents, or without byte counts; a damaged file.
    """
    records = [read_object(run / "run.json", "bring it back from a copy", config=dict, model=dict) for run in (a, b)]
    scores_a, scores_b = read_scores([a, b])
    run_a, run_b = (_as_evaluated(run, record) for run, record in zip((a, b), records))
    sets = sets_of([scores_a], [scores_b], seed, subsets)
    same_budget = run_a["tokens"] == run_b["tokens"]
    return {
        "a": run_a["name"],
        "b": run_b["name"],
        "budget_tokens": run_a["tokens"] if same_budget else None,
        "sets": sets,
        "note": _note(run_a, run_b, sets),
    }


def read_scores(runs: Sequence[Path]) -> list[Scores]:
    """What each run's evaluation found, document by document.

    Raises:
        UsageError: a run that has not been evaluated.
        DataError: evaluations of different documents, or without byte counts.
    """
    scores = [_read(run) for run in runs]
    for run, one in zip(runs, scores):
        if one.keys != scores[0].keys or not np.array_equal(one.bytes, scores[0].bytes):
            raise DataError(
                f"{runs[0]} and {run} were evaluated on different documents; evaluate both with the same --data and "
                "--split"
            )
    return scores


def sets_of(
    a: Sequence[Scores], b: Sequence[Scores], seed: int = 0, subsets: Mapping[str, Container[str]] | None = None
) -> list[dict[str, Any]]:
    """Pair by pair, a[i] against b[i]: on all documents, on each named subset of ids, and on each source's.

    A set has name, documents, a_bits_per_byte, b_bits_per_byte, difference (a - b), ci95, by_pair (the difference of
    each pair) and verdict: "better" if a needs fewer bits and the interval excludes 0, "worse" if more, else
    "no difference".
    """
    keys = a[0].keys
    sources = np.array([source for source, _ in keys])
    names = sorted(set(sources.tolist()))
    chosen = [("all", np.ones(len(sources), bool))] if len(names) != 1 else []
    for name, ids in (subsets or {}).items():
        rows = np.array([identifier in ids for _, identifier in keys])
        if rows.any():
            chosen.append((name, rows))
    chosen += [(name, sources == name) for name in names]
    bits_a_SD, bits_b_SD = (np.stack([one.nll for one in runs]) / math.log(2) for runs in (a, b))
    return [_set(name, a[0].bytes[rows], bits_a_SD[:, rows], bits_b_SD[:, rows], seed) for name, rows in chosen]


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


def _read(run: Path) -> Scores:
    import pyarrow as pa
    from pyarrow import parquet

    path = run / "evaluation.parquet"
    if not path.exists():
        raise UsageError(f"{run}: not evaluated yet; first: trainer eval {run} --data FOLDER")
    try:
        table = parquet.read_table(path).sort_by([("source", "ascending"), ("id", "ascending")])
        documents = table.select(["source", "id", "bytes", "nll"]).to_pydict()
    except (pa.ArrowException, OSError, KeyError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({told:.200}); {_again(run)}") from None
    if None in documents["bytes"]:
        raise DataError(f"{path}: documents without byte counts; evaluate again with --tokenizer FILE")
    keys = list(zip(documents["source"], documents["id"]))
    return Scores(keys, np.array(documents["bytes"], np.float64), np.array(documents["nll"], np.float64))


def _as_evaluated(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    """run.json with the run's name, step and tokens of the checkpoint that was evaluated, and the `newest` step."""
    told = read_object(run / "evaluation.json", _again(run), step=int, tokens_trained=int)
    at = {"newest": record.get("step"), "step": told["step"], "tokens": told["tokens_trained"]}
    return record | at | {"name": run.resolve().name}


def _again(run: Path) -> str:
    return f"evaluate again: trainer eval {run} --data FOLDER"


def _set(name: str, size_D: np.ndarray, a_SD: np.ndarray, b_SD: np.ndarray, seed: int) -> dict[str, Any]:
    each_S = paired.by_seed(a_SD - b_SD, size_D)
    difference = float(each_S.mean())
    low, high = paired.interval(a_SD - b_SD, size_D, seed)
    verdict = "no difference"
    if len(size_D) >= FEWEST and (high < 0 or low > 0):
        verdict = "better" if difference < 0 else "worse"
    return {
        "name": name,
        "documents": len(size_D),
        "a_bits_per_byte": float(paired.by_seed(a_SD, size_D).mean()),
        "b_bits_per_byte": float(paired.by_seed(b_SD, size_D).mean()),
        "difference": difference,
        "ci95": [low, high],
        "by_pair": each_S.tolist(),
        "verdict": verdict,
    }


def _note(a: dict[str, Any], b: dict[str, Any], sets: list[dict[str, Any]]) -> str:
    parts = ["The interval covers the choice of documents, not of the seed: one run each."]
    if a["tokens"] != b["tokens"]:
        parts.append(
            f"The budgets differ ({a['tokens']:,} and {b['tokens']:,} tokens), so the data is not all that differs."
        )
    parts += [
        f"{run['name']} was evaluated at step {run['step']:,}, and stands at {run['newest']:,}."
        for run in (a, b)
        if run["newest"] not in (None, run["step"])
    ]
    unlike = [*(["model"] if a["model"] != b["model"] else []), *config.unlike(a["config"], b["config"])]
    if unlike:
        parts.append(f"The runs differ in {', '.join(unlike)} too.")
    few = [row["name"] for row in sets if row["documents"] < FEWEST]
    if few:
        parts.append(f"Fewer than {FEWEST} documents, too few for a verdict: {', '.join(few)}.")
    if len(sets) > 1:
        parts.append("Each set has its own 95 %; with many sets, expect one in twenty to stand out by chance.")
    return " ".join(parts)
