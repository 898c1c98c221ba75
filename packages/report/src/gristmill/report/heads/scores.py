"""The scores of a run as distributions, by source, with the thresholds and what is promised of them.

Thresholds are a source's own: a score means nothing across sources, so counts that mix them take each at its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.report.columns import Array, NotThere, Rows, open_file
from gristmill.report.heads import ALL

FOLDER = "annotations/scores"
FIRST = ("quality", "probe", "judge")  # the columns that decide, before those of the rubric's dimensions
BINS = 40
SOURCES_SHOWN = 12  # sent with the page; others are asked for
AXIS_QUANTILES, AXIS_MARGIN = (0.005, 0.995), 0.04


@dataclass
class Scores:
    """Columns are read once, as float32, when they are first asked for."""

    rows: Rows
    source: tuple[Array, list[str]]
    calibration: Mapping[str, Mapping[str, Any]]
    tokens: Array | None
    _columns: dict[str, Array] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every score, those of FIRST first. Raises NotThere: nothing was scored yet."""
        paths = [self.rows.run / FOLDER / part for part in self.rows.parts]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise NotThere(f"{FOLDER}/", "the scores stage")
        with open_file(path) as file:
            floats = [one.name for one in file.schema_arrow if pa.types.is_floating(one.type)]
        return [*(name for name in FIRST if name in floats), *(name for name in floats if name not in FIRST)]

    def column(self, name: str) -> Array:
        if name not in self._columns:
            self._columns[name] = self.rows.numbers(FOLDER, name).astype(np.float32)
        return self._columns[name]

    def flags(self, name: str) -> Array:
        """bool [rows]; False where it is null, or no column."""
        if not self.rows.has(FOLDER, name):
            return np.zeros(self.rows.total, dtype=bool)
        return self.rows.numbers(FOLDER, name) > 0

    def taus(self, key: str) -> Array:
        """float [rows]: the threshold of each row's source; NaN where it has none."""
        own = [taus_of(self.calibration, name)[key] for name in self.source[1]]
        return np.array([*(np.nan if tau is None else tau for tau in own), np.nan])[self.source[0]]

    def decided_by(self, name: str) -> tuple[str, ...]:
        """tau_drop ends a document's way at the probe, tau_keep decides on what came through; other scores decide
        nothing, unless a policy asks for them."""
        if not self.rows.has(FOLDER, "probe"):
            return ("tau_drop", "tau_keep") if name == "quality" else ()
        return {"probe": ("tau_drop",), "quality": ("tau_keep",), "judge": ("tau_keep",)}.get(name, ())


def taus_of(calibration: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, float | None]:
    """tau_drop and tau_keep of a source; of one that calibration never saw the tau_keep of all, and no exits."""
    own = calibration.get(source)
    if own is None:
        own = {**(calibration.get(ALL) or {}), "tau_drop": None}
    return {key: own.get(key) for key in ("tau_drop", "tau_keep")}


def histograms(scores: Scores, promises: Mapping[str, Any]) -> dict[str, Any]:
    """Per score and source: documents and tokens in each of 40 equal bins, with tau_drop and tau_keep of the source.

    All sources share one axis. The few scores beyond it (`beyond`) are counted in the outermost bins. Of many sources
    the largest; questions.histogram() answers for the others. promises: see bundles.read_promises().
    """
    found = [one for name in scores.names if (one := _histograms(scores, name))]
    if not found:
        raise NotThere(f"{FOLDER}/ with a score", "the scores stage")
    return {
        "heads": found,
        "calibrated": bool(scores.calibration),
        "promises": promises,
        "sources": scores.source[1],
        "exits": int(scores.flags("exit").sum()),
        "judged": next((one["scored"] for one in found if one["head"] == "judge"), 0),
    }


def _histograms(scores: Scores, name: str) -> dict[str, Any] | None:
    values, (codes, names) = scores.column(name), scores.source
    known = np.isfinite(values)
    if not known.any():
        return None
    marks = [taus_of(scores.calibration, label)[key] for label in names for key in scores.decided_by(name)]
    low, high = axis(values[known], [mark for mark in marks if mark is not None])
    bins = bins_of(values[known], low, high, BINS)
    weights = None if scores.tokens is None else np.nan_to_num(scores.tokens[known])
    cells = (codes[known].astype(np.int64) + 1) * BINS + bins  # a null source comes first
    shape = (len(names) + 1, BINS)

    def counted(weights: Array | None) -> Array:
        return np.bincount(cells, weights, shape[0] * BINS).reshape(shape).round().astype(np.int64)

    documents, tokens = counted(None), None if weights is None else counted(weights)
    order = np.argsort(-documents[1:].sum(1), kind="stable")
    groups = [{"source": None, "documents": documents.sum(0), "tokens": None if tokens is None else tokens.sum(0)}]
    for code in order[:SOURCES_SHOWN]:
        own = {"documents": documents[code + 1], "tokens": None if tokens is None else tokens[code + 1]}
        groups.append({"source": names[code], **own, **taus_of(scores.calibration, names[code])})
    return {
        "head": name, "low": low, "high": high,
        "beyond": int(((values[known] < low) | (values[known] > high)).sum()),
        "scored": int(known.sum()), "unscored": int((~known).sum()),
        "taus": scores.decided_by(name), "groups": groups, "sources": int((documents[1:].sum(1) > 0).sum()),
    }  # fmt: skip


def axis(values: Array, marks: Sequence[float]) -> tuple[float, float]:
    """Where nearly all scores lie, widened a little, with every mark inside: stragglers must not squeeze the rest."""
    low, high = (float(value) for value in np.quantile(values, AXIS_QUANTILES))
    low, high = min([low, *marks]), max([high, *marks])
    margin = (high - low) * AXIS_MARGIN or max(abs(low) * AXIS_MARGIN, 1e-3)
    return low - margin, high + margin


def bins_of(values: Array, low: float, high: float, bins: int) -> Array:
    return np.clip(((values.astype(np.float64) - low) / (high - low) * bins).astype(np.int64), 0, bins - 1)
