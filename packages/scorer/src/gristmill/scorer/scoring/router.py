"""Several bundles behind one door: each document is scored by the heads for its content type, or for its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.errors import UsageError
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.scoring.scorer import Scorer, load_scorers

OTHERS = ""  # the route of what has none of its own
# Of Scorer.score(), but for the dimensions, which stand between.
BEFORE = ("quality", "probe", "judge", "exit", "shadow", "least", "greatest")
AFTER = ("tokens", "windows", "truncated", "reason")


class Router:
    """scorers: by content type or source; OTHERS takes what has no route of its own."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = dict(scorers)
        rubrics = {scorer.bundle.rubric.name: scorer.bundle.rubric.sha for scorer in scorers.values()}
        for scorer in scorers.values():
            if rubrics[scorer.bundle.rubric.name] != scorer.bundle.rubric.sha:
                raise UsageError(f"two of the heads have different rubrics of the name {scorer.bundle.rubric.name!r}")
        bundles = {scorer.bundle.identity: scorer.bundle for scorer in scorers.values()}
        if any(one.bundle.calibration != bundles[one.bundle.identity].calibration for one in scorers.values()):
            raise UsageError("two of the heads are the same ones with different thresholds; give one of them")

    @classmethod
    def load(cls, heads: Mapping[str, Path], backbone: Path, config: ScoringConfig | None = None) -> Router:
        """Load the heads of each route on one backbone.

        Raises:
            DataError: as Scorer.load().
            UsageError: different rubrics of one name, or different thresholds for the same heads.
        """
        folders = list(dict.fromkeys(heads.values()))
        loaded = dict(zip(folders, load_scorers(folders, backbone, config)))
        return cls({route: loaded[folder] for route, folder in heads.items()})

    def routes(self, types: Sequence[str | None], sources: Sequence[str]) -> list[str | None]:
        """The route of each document: its content type's, else its source's, else OTHERS; None where there is none."""
        rest = OTHERS if OTHERS in self.scorers else None
        known = self.scorers.keys()
        return [
            type_ if type_ in known and type_ else source if source in known else rest
            for type_, source in zip(types, sources, strict=True)
        ]

    def score(
        self,
        texts: Sequence[str | None],
        sources: Sequence[str],
        types: Sequence[str | None] | None = None,
        early_exit: bool = True,
    ) -> pa.Table:
        """One row per text, in order: the columns of Scorer.score() with the dimensions of all bundles, null where a
        document's own lacks one; `rubric`, and `heads`, their identity. Where there are no heads for a document all is
        null, and the reason says so.

        Raises:
            UsageError: texts, sources and types differ in length.
        """
        types = [None] * len(texts) if types is None else types
        if not len(texts) == len(sources) == len(types):
            raise UsageError(f"{len(texts)} texts, {len(sources)} sources and {len(types)} content types")
        routes = np.array([*self.routes(types, sources), None], dtype=object)[:-1]
        distinct = list({id(scorer): scorer for scorer in self.scorers.values()}.values())
        dimensions = list(dict.fromkeys(name for scorer in distinct for name in scorer.bundle.rubric.names))
        tables: list[pa.Table] = []
        rows: list[np.ndarray] = []
        for scorer in distinct:
            own = np.array([name is not None and self.scorers[name] is scorer for name in routes], bool)
            at: list[int] = np.flatnonzero(own).tolist()
            table = scorer.score([texts[i] for i in at], [sources[i] for i in at], early_exit)
            for name, value in (("rubric", scorer.bundle.rubric.name), ("heads", scorer.bundle.identity)):
                table = table.append_column(name, pa.array([value] * len(at), pa.string()))
            tables.append(table)
            rows.append(np.array(at, np.int64))
        lost = np.flatnonzero([name is None for name in routes])
        reason = pa.array(["no heads for its content type or source"] * len(lost), pa.string())
        tables.append(pa.table({"reason": reason}))
        rows.append(lost)
        merged = pa.concat_tables(tables, promote_options="default")
        merged = merged.select([*BEFORE, *dimensions, *AFTER, "rubric", "heads"])
        return merged.take(pa.array(np.argsort(np.concatenate(rows), kind="stable")))
