"""Scorers of other makers beside ours, a column each, and what several say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gristmill.base.errors import UsageError
from gristmill.scorer.rubric import RESERVED

FORMS = "NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL"
Ensemble = Literal["none", "mean", "max"]


class Other(NamedTuple):
    """Which model, and what of it: a column of that name."""

    name: str
    kind: str
    path: Path
    label: str


class OtherScorer(Protocol):
    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A number per text; NaN where there is none."""
        ...


def parse(given: Sequence[str]) -> list[Other]:
    """From NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL.

    Raises:
        UsageError: another form, or a name that is a column's or another one's.
    """
    found: dict[str, Other] = {}
    for one in given:
        name, _, place = one.partition("=")
        kind, _, rest = place.partition(":")
        if not name.isidentifier() or kind not in ("encoder", "fasttext") or not rest:
            raise UsageError(f"scorer {one}: write {FORMS}")
        if name in RESERVED or name in found:
            raise UsageError(f"scorer {one}: there is a column {name!r} already; name it otherwise")
        path, _, label = rest.rpartition(":") if ":" in rest else (rest, "", "")
        found[name] = Other(name, kind, Path(path), label)
    return list(found.values())


def open_scorers(given: Sequence[Other], taken: Sequence[str]) -> dict[str, OtherScorer]:
    """Load them, by name. taken: columns that there are already.

    Raises:
        UsageError: a name that is taken, or a model that cannot be loaded.
    """
    from gristmill.scorer.scoring.encoder import SequenceClassifier, SequenceClassifierConfig
    from gristmill.scorer.scoring.fasttext import FastTextScorer

    opened: dict[str, OtherScorer] = {}
    for name, kind, path, label in given:
        if name in taken:
            raise UsageError(f"scorer {name}: there is a column {name!r} already; name it otherwise")
        if kind == "encoder":
            if not path.is_dir():
                raise UsageError(f"scorer {name}: {path}: no such folder; one on the Hub must be downloaded first")
            opened[name] = SequenceClassifier(SequenceClassifierConfig(str(path), label))
        else:
            opened[name] = FastTextScorer(path, label)
    return opened


def ensemble(
    columns: Mapping[str, NDArray[np.floating]],
    how: Ensemble,
    reference: Mapping[str, NDArray[np.floating]] | None = None,
) -> NDArray[np.float64]:
    """Of scores on different scales: each becomes the share of the reference's scores below it (of equal ones half),
    and those are averaged, or the greatest taken. NaN where any column is.

    columns: one value per document. reference: a sample of each; without one the columns themselves.
    """
    shares = [_share_below(values, (reference or columns)[name]) for name, values in columns.items()]
    return np.mean(shares, axis=0) if how == "mean" else np.max(shares, axis=0)


def _share_below(values: NDArray[np.floating], among: NDArray[np.floating]) -> NDArray[np.float64]:
    known = np.sort(among[np.isfinite(among)])
    places = sum(np.searchsorted(known, values, side=side) for side in ("left", "right"))
    return np.where(np.isfinite(values), places / max(2 * len(known), 1), np.nan)
