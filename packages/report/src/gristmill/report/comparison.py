"""Which training did better on which held-out documents, as `trainer compare` judged it: of two runs, or, with
--mixtures, of arms trained from several seeds.

The verdicts are taken as they stand: an interval over too few documents is not read as a win here either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.errors import DataError
from gristmill.base.files import read_json
from gristmill.report.columns import NotThere

PLACE = "comparison/comparison.json"
PROXIES = "gristmill.proxies/1"
VERDICTS = {"better": "a", "worse": "b", "no difference": None}  # about a, in the words of trainer.compare


def read(run: Path) -> dict[str, Any]:
    """Raises: as read_file()."""
    return read_file(run / PLACE, PLACE, "trainer compare")


def read_file(path: Path, what: str, made_by: str) -> dict[str, Any]:
    """The comparison with, per set, `winner`: the name of the better run, or None where no difference is shown.

    `clear` tells whether the interval leaves 0 out; without a winner that means too few documents for a verdict. Of
    arms with seeds, `seeds` says how many, `others` are the comparisons after the first one (with the random drop).

    Raises:
        NotThere: no comparison was made.
        DataError: a set lacks a field, or its verdict is none of better, worse, no difference.
    """
    if not path.exists():
        raise NotThere(what, made_by)
    written = read_json(path)
    if written.get("format") != PROXIES:
        return _pair(path, written) | {"budget_tokens": written.get("budget_tokens"), "note": written.get("note")}
    first, *others = [_pair(f"{path}: comparisons[{index}]", one) for index, one in enumerate(written["comparisons"])]
    return first | {
        "budget_tokens": written.get("tokens"),
        "note": written.get("note"),
        "seeds": len(written["seeds"]),
        "others": others,
    }


def _pair(where: Path | str, written: Mapping[str, Any]) -> dict[str, Any]:
    names = {side: str(written.get(side) or side) for side in ("a", "b")}
    sets = [_set(f"{where}: sets[{index}]", row, names) for index, row in enumerate(written.get("sets") or [])]
    return {**names, "sets": sets}


def verdict(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """For the page's head: the first set (all documents) by itself, the others by who won them, or why nobody did."""
    sets = comparison.get("sets")
    if not sets:
        return None
    a, b = comparison["a"], comparison["b"]
    first, *others = sets
    return {
        "a": a,
        "b": b,
        "first": {key: first[key] for key in ("name", "documents", "winner", "clear")},
        "others": [
            {"winner": winner, "clear": clear, "sets": sets}
            for winner, clear in ((a, True), (b, True), (None, False), (None, True))
            if (
                sets := [one["name"] for one in others if one["winner"] == winner and (winner or one["clear"] is clear)]
            )
        ],
    }


def _set(where: str, row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    fields = ("name", "documents", "a_bits_per_byte", "b_bits_per_byte", "difference", "ci95", "verdict")
    absent = [name for name in fields if name not in row]
    if absent:
        raise DataError(f"{where} has no {', '.join(absent)}; run trainer compare again")
    if row["verdict"] not in VERDICTS:
        raise DataError(
            f"{where}: verdict {row['verdict']!r} is none of {', '.join(VERDICTS)}; run trainer compare again"
        )
    side, (low, high) = VERDICTS[row["verdict"]], row["ci95"]
    return {
        **{name: row[name] for name in fields},
        "winner": None if side is None else names[side],
        "clear": low > 0 or high < 0,
    }
