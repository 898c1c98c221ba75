"""Scorers of other makers beside ours, a column each, and what several say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gristmill.base.errors import UsageError
from gristmill.scorer.rubric import RESERVED
from gristmill.scorer.scoring.encoder import SequenceClassifier, SequenceClassifierConfig
from gristmill.scorer.scoring.fasttext import FastTextScorer

FORMS = "NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL"


class OtherScorer(Protocol):
    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A number per text; NaN where there is none."""
        ...


def open_scorers(given: Sequence[str], taken: Sequence[str]) -> dict[str, OtherScorer]:
    """By name, from NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL.

    taken: names of columns that there are already.

    Raises:
        UsageError: another form, a name that is taken, or a model that cannot be loaded.
    """
    opened: dict[str, OtherScorer] = {}
    for one in given:
        name, _, place = one.partition("=")
        kind, _, rest = place.partition(":")
        if not name.isidentifier() or kind not in ("encoder", "fasttext") or not rest:
            raise UsageError(f"--scorer {one}: write {FORMS}")
        if name in RESERVED or name in taken or name in opened:
            raise UsageError(f"--scorer {one}: there is a column {name!r} already; name it otherwise")
        path, _, label = rest.rpartition(":") if ":" in rest else (rest, "", "")
        if kind == "encoder":
            opened[name] = SequenceClassifier(SequenceClassifierConfig(path, label))
        else:
            opened[name] = FastTextScorer(Path(path), label)
    return opened


def ensemble(columns: Mapping[str, NDArray[np.floating]], how: Literal["mean", "max"]) -> NDArray[np.float64]:
    """Of scores on different scales: each becomes its share of the documents with no greater score (ties averaged), and
    those are averaged, or the greatest taken. NaN where any column is; all columns have one value per document."""
    ranks: list[NDArray[np.float64]] = []
    for values in columns.values():
        known = np.isfinite(values)
        rank = np.full(len(values), np.nan)
        rank[known] = rankdata(values[known]) / max(int(known.sum()), 1)
        ranks.append(rank)
    return np.mean(ranks, axis=0) if how == "mean" else np.max(ranks, axis=0)
