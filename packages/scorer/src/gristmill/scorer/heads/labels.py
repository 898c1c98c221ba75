"""A label table as arrays: what training, evaluation and calibration read of graded documents.

Shapes: N documents, D dimensions of the rubric.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from gristmill.base.errors import DataError
from gristmill.scorer.rubric import Rubric
from gristmill.scorer.sampling import split_of

NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
ROUNDING = 1e-4  # of a mean of grades, written as float32 or in decimals


@dataclass(frozen=True)
class Labels:
    """Graded documents in the order of their table; every field has one entry per document."""

    ids: list[str]
    texts: list[str | None]
    sources: list[str]
    splits: np.ndarray  # object [N]: fit, select, certify or audit
    scores_ND: np.ndarray  # on each dimension's own scale, NaN where the grade failed
    weights_N: np.ndarray  # inverse of the chance to have been drawn
    flagged_N: np.ndarray  # bool: the document may have talked its grader into a grade
    groups: list[str]  # what is resampled together for intervals: the URL's host, else the document's own id
    languages: list[str]
    repeats_N: np.ndarray  # gradings whose mean a score is
    overall_N: np.ndarray  # the oracle's own overall grade, NaN where it gave none

    @classmethod
    def of(cls, table: pa.Table, rubric: Rubric) -> Labels:
        """From columns text and one per dimension; id, source, weight, split, flagged, url, language,
        repeats and overall where known.

        Raises:
            DataError: a column is missing, grades of another rubric, neither split nor id to split by, a weight that is
                no positive number, or a grade that is none or off its scale; null is a grade that failed.
        """
        missing = [name for name in ("text", *rubric.names) if name not in table.column_names]
        if missing:
            raise DataError(f"labels: no column {missing[0]!r}; columns are {', '.join(table.column_names)}")
        if "rubric_sha" in table.column_names:
            others = set(table["rubric_sha"].to_pylist()) - {rubric.sha}
            if others:
                raise DataError(
                    f"labels: graded with rubric {sorted(map(str, others))[0][:12]}, not {rubric.sha[:12]}; label again"
                )
        n = len(table)
        ids = _strings(table, "id") if "id" in table.column_names else [f"row {i}" for i in range(n)]
        scores_ND = np.stack([floats(table, name) for name in rubric.names], axis=1)
        weights_N = floats(table, "weight") if "weight" in table.column_names else np.ones(n)
        for i, dimension in enumerate(rubric.dimensions):
            low, high = dimension.min - ROUNDING, dimension.max + ROUNDING
            off_N = _given(table, dimension.name) & ~((scores_ND[:, i] >= low) & (scores_ND[:, i] <= high))
            _refuse(off_N, ids, dimension.name, scores_ND[:, i], f"grades go from {dimension.min} to {dimension.max}")
        _refuse(~(np.isfinite(weights_N) & (weights_N > 0)), ids, "weight", weights_N, "weights are positive numbers")
        overall_N = floats(table, "overall") if "overall" in table.column_names else np.full(n, np.nan)
        if "overall" in table.column_names:
            odd_N = _given(table, "overall") & ~np.isfinite(overall_N)
            _refuse(odd_N, ids, "overall", overall_N, "grades are finite numbers")
        hosts = [urlsplit(url).netloc for url in _strings(table, "url")]
        return cls(
            ids=ids,
            texts=table["text"].to_pylist(),
            sources=_strings(table, "source"),
            splits=np.array(splits_of(table), dtype=object),
            scores_ND=scores_ND,
            weights_N=weights_N,
            flagged_N=_mask(table, "flagged"),
            groups=[host or own for host, own in zip(hosts, ids)],
            languages=_strings(table, "language"),
            repeats_N=floats(table, "repeats") if "repeats" in table.column_names else np.ones(n),
            overall_N=overall_N,
        )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> Labels:
        """Some of the documents: row numbers, or a mask."""
        where = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        picked = {
            name: values[where] if isinstance(values, np.ndarray) else [values[i] for i in where]
            for name, values in self.__dict__.items()
        }
        return replace(self, **picked)

    def sha(self) -> str:
        """sha256 of all texts and grades."""
        total = hashlib.sha256(self.scores_ND.astype("<f8").tobytes())
        for text in self.texts:
            total.update(hashlib.sha256((text or "").encode()).digest())
        return total.hexdigest()


def splits_of(labels: pa.Table) -> list[str]:
    """The split column, or where it is missing the split that each id decides."""
    if "split" in labels.column_names:
        return labels["split"].to_pylist()
    if "id" not in labels.column_names:
        raise DataError("labels: neither a column split nor a column id to split by")
    return [split_of(str(identifier)) for identifier in labels["id"].to_pylist()]


def floats(table: pa.Table, name: str) -> np.ndarray:
    """float64 [N], NaN for null.

    Raises:
        DataError: the column holds no numbers.
    """
    kind = table.schema.field(name).type
    if not any(is_kind(kind) for is_kind in NUMBERS):
        raise DataError(f"column {name!r} holds {kind}, and numbers are needed")
    return np.array([np.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)


def _given(table: pa.Table, name: str) -> np.ndarray:
    return np.array([value is not None for value in table[name].to_pylist()], bool)


def _refuse(wrong_N: np.ndarray, ids: list[str], column: str, values_N: np.ndarray, rule: str) -> None:
    if wrong_N.any():
        first = int(np.argmax(wrong_N))
        raise DataError(
            f"labels: {column} of {ids[first]!r} is {values_N[first]:g}, and {rule}; {int(wrong_N.sum())} such rows"
        )


def _strings(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return [""] * len(table)
    return ["" if value is None else str(value) for value in table[name].to_pylist()]


def _mask(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), bool) if name in table.column_names else np.zeros(len(table), bool)
