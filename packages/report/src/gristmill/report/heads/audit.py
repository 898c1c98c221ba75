"""How far the oracle is to be trusted: audit.json of repeated gradings, and of `scorer audit-oracle`.

An estimate is {"value", "ci95"} there, and stays one. A part that no audit asked for is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.report.columns import NotThere

PLACES = ("audit/audit.json", "labels/graded/audit.json")  # the one that was asked more comes first
PARTS = ("agreement", "retest", "stored_repeats", "order", "injections")
GRADES = ("documents", "engine", "failed", "spread")


def read(run: Path) -> dict[str, Any]:
    """{"audits": [{"place", "rubrics": [{"name", "a", "b", and each of PARTS that is there}]}]}.

    Raises:
        NotThere: no audit. DataError: it holds no rubrics.
    """
    found = [place for place in PLACES if (run / place).is_file()]
    if not found:
        raise NotThere(PLACES[0], "scorer audit-oracle")
    return {"audits": [{"place": place, "rubrics": _rubrics(run / place)} for place in found]}


def _rubrics(path: Path) -> list[dict[str, Any]]:
    rubrics = read_json(path).get("rubrics")
    if not isinstance(rubrics, Mapping):
        raise DataError(f"{path}: no rubrics; audit the oracle again")
    return [
        {
            "name": name,
            **{side: {key: written[side].get(key) for key in GRADES} for side in ("a", "b") if written.get(side)},
            **{part: written[part] for part in PARTS if written.get(part)},
        }
        for name, written in rubrics.items()
    ]
