"""The audit of an oracle: its agreement with another and with itself, what moves it beside quality, who can talk to it.

All numbers come with 95% intervals and go to audit.json; report.py puts them into words. Nothing here judges: an
oracle is good enough or not for a purpose. Shapes: N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.audit.agreement import agreement, length_bias, source_effects
from gristmill.scorer.audit.injections import Attack
from gristmill.scorer.audit.reliability import mean_of_repeats, reliability, repeats_matrix
from gristmill.scorer.audit.robustness import Oracle, injection_effect, order_effect, retest, scores
from gristmill.scorer.heads.metrics import spearman
from gristmill.scorer.rubric import Dimension, Rubric
from gristmill.scorer.sampling import stratified_sample

FORMAT = "gristmill.audit/1"
QUALITY = "quality"


@dataclass(frozen=True)
class AuditConfig:
    """What an engine is asked, beside one grading of each document. 0 leaves a part out."""

    repeats: int = 2
    """Gradings of each document by the same requests."""
    permutations: int = 3
    """Other orders of anchors and dimensions."""
    injections: int = 20
    """Documents that are attacked, each by every attack."""
    documents: int = 200
    """Drawn evenly over sources and lengths."""
    seed: int = 0


Opening = Callable[[], AbstractContextManager[Oracle]]
"""Starts an engine; it is stopped again on leaving. Two engines of one machine never run at once."""


def audit(
    rubric: Rubric, config: AuditConfig, *, documents: pa.Table | None = None, labels: pa.Table | None = None,
    against: pa.Table | None = None, oracle: Opening | None = None, other: Opening | None = None,
    attacks: Sequence[Attack] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One rubric's part of audit.json.

    Grading A: `labels`, or what `oracle` says of `documents` (columns id, source, text; else those of the labels).
    Grading B, where there is one: `against`, or what `other` says of the same documents. `oracle` is besides asked
    again, in other orders and under attack.

    Raises:
        UsageError: nothing to audit. DataError: see compare_grades().
    """
    if labels is None and (oracle is None or documents is None):
        raise UsageError("nothing to audit: give labels, or documents and an oracle")
    section: dict[str, Any] = {"rubric_sha": rubric.sha}
    if labels is not None:
        labels, section["stored_repeats"] = without_repeats(labels, rubric, config.seed)
    chosen = drawn(documents if documents is not None else labels, config.documents, config.seed)
    if oracle is not None:
        with oracle() as asked:
            labels = graded(asked, rubric, chosen) if labels is None else labels
            section |= _asked_again(asked, rubric, chosen, config, attacks)
    assert labels is not None
    section["a"] = audit_grades(labels, rubric, config.seed)
    if against is not None:
        against = without_repeats(against, rubric, config.seed)[0]
    elif other is not None:
        with other() as asked:
            against = graded(asked, rubric, chosen)
    if against is not None:
        section["b"] = audit_grades(against, rubric, config.seed)
        section["agreement"] = compare_grades(labels, against, rubric, config.seed)
    return section


def drawn(documents: pa.Table, n: int, seed: int) -> pa.Table:
    """Columns id, source, text of up to n documents, evenly over sources and lengths."""
    lengths = [len(text or "") for text in documents["text"].to_pylist()]
    ids = documents["id"].to_pylist()
    sample = stratified_sample(documents["source"].to_pylist(), lengths, n, seed, ids=ids)
    return documents.select(["id", "source", "text"]).take(pa.array(sample.indices))


def graded(oracle: Oracle, rubric: Rubric, documents: pa.Table) -> pa.Table:
    """One grading of documents (columns id, source, text) as a label file has it."""
    grades = oracle.grade(rubric, [text or "" for text in documents["text"].to_pylist()])
    return grades.add_column(0, "id", documents["id"]).add_column(1, "source", documents["source"])


def without_repeats(labels: pa.Table, rubric: Rubric, seed: int = 0) -> tuple[pa.Table, dict[str, Any] | None]:
    """A label table with one row for each id, and the reliability of what was graded more than once, if anything."""
    ids = labels["id"].to_pylist()
    if len(set(ids)) == len(ids):
        return labels, None
    dimensions = {name: reliability(repeats_matrix(labels, name), seed=seed) for name in rubric.names}
    return mean_of_repeats(labels, [rubric]), {"dimensions": dimensions}


def audit_grades(grades: pa.Table, rubric: Rubric, seed: int = 0) -> dict[str, Any]:
    """One grading by itself: its spread, its failures, and what length and source explain.

    grades: columns text, source, and those of grade_documents. A dimension on which nearly all get the same level
    cannot be learnt, and two that nearly correlate by 1 are one (halo).
    """
    scores_ND = scores(grades, rubric)
    lengths_N = np.array([len(text or "") for text in grades["text"].to_pylist()])
    sources = [str(source) for source in grades["source"].to_pylist()]
    columns = dict(zip(rubric.names, scores_ND.T)) | {QUALITY: rubric.quality(scores_ND)}
    return {
        "documents": len(grades),
        "engine": _only(grades, "engine"),
        "failed": int((~np.isfinite(scores_ND)).any(1).sum()),
        "spread": {d.name: _spread(scores_ND[:, i], d) for i, d in enumerate(rubric.dimensions)},
        "length": {name: length_bias(column, lengths_N, sources, seed) for name, column in columns.items()},
        "source": {name: source_effects(column, sources, seed) for name, column in columns.items()},
        "correlations": {
            f"{a} {b}": _rank_correlation(columns[a], columns[b]) for a, b in combinations(rubric.names, 2)
        },
    }


def compare_grades(a: pa.Table, b: pa.Table, rubric: Rubric, seed: int = 0) -> dict[str, Any]:
    """Two gradings on the documents of the same id: agreement by dimension, and what their difference depends on.

    Raises:
        DataError: no document has been graded by both, or a table has an id twice.
    """
    rows_a, rows_b = _overlap(a, b)
    if not len(rows_a):
        raise DataError("the two gradings have no document in common (by column id): nothing to compare")
    a, b = a.take(pa.array(rows_a)), b.take(pa.array(rows_b))
    a_ND, b_ND = scores(a, rubric), scores(b, rubric)
    lengths_N = np.array([len(text or "") for text in a["text"].to_pylist()])
    sources = [str(source) for source in a["source"].to_pylist()]
    found: dict[str, Any] = {"documents": len(a), "dimensions": {}, "length": {}, "source": {}}
    for i, d in enumerate(rubric.dimensions):
        found["dimensions"][d.name] = agreement(a_ND[:, i], b_ND[:, i], d.min, d.max, seed)
    qualities = rubric.quality(a_ND), rubric.quality(b_ND)
    # Quality has no levels to round to: tenths stand for them.
    found["dimensions"][QUALITY] = agreement(qualities[0] * 10, qualities[1] * 10, 0, 10, seed)
    found["dimensions"][QUALITY]["unit"] = "tenths"
    differences = dict(zip(rubric.names, (b_ND - a_ND).T)) | {QUALITY: qualities[1] - qualities[0]}
    for name, difference_N in differences.items():
        found["length"][name] = length_bias(difference_N, lengths_N, sources, seed)
        found["source"][name] = source_effects(difference_N, sources, seed)
    return found


def _asked_again(
    oracle: Oracle, rubric: Rubric, documents: pa.Table, config: AuditConfig, attacks: Sequence[Attack] | None
) -> dict[str, Any]:
    texts = [text or "" for text in documents["text"].to_pylist()]
    found: dict[str, Any] = {}
    if config.repeats > 1:
        found["retest"] = retest(oracle, rubric, texts, config.repeats, config.seed)
    if config.permutations:
        found["order"] = order_effect(oracle, rubric, texts, config.permutations, config.seed)
    if config.injections:
        found["injections"] = injection_effect(oracle, rubric, texts[: config.injections], attacks, config.seed)
    return found


def _spread(scores_N: np.ndarray, dimension: Dimension) -> dict[str, Any]:
    known = _known(scores_N)
    levels = np.clip(np.rint(known), dimension.min, dimension.max).astype(int)
    counts = np.bincount(levels - dimension.min, minlength=len(dimension.levels))
    return {
        "n": len(known),
        "mean": float(known.mean()) if len(known) else None,
        "sd": float(known.std()) if len(known) else None,
        "levels": {str(level): int(count) for level, count in zip(dimension.levels, counts)},
        "commonest": float(counts.max() / len(known)) if len(known) else None,
    }


def _rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    known = np.isfinite(a_N) & np.isfinite(b_N)
    return spearman(a_N[known], b_N[known])


def _overlap(a: pa.Table, b: pa.Table) -> tuple[list[int], list[int]]:
    at: list[dict[str, int]] = []
    for table in (a, b):
        ids = table["id"].to_pylist()
        rows = {identifier: row for row, identifier in enumerate(ids)}
        if len(rows) < len(ids):
            raise DataError("a grading has an id twice; compare means of repeats, one row for each document")
        at.append(rows)
    common = [identifier for identifier in at[0] if identifier in at[1]]
    return [at[0][identifier] for identifier in common], [at[1][identifier] for identifier in common]


def _only(table: pa.Table, name: str) -> str:
    values = sorted({str(value) for value in table[name].to_pylist()}) if name in table.column_names else []
    return ", ".join(values) or "unknown"


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
