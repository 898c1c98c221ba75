"""The comparison of proxies as a picture: of each set of documents the difference, with its interval."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.base.errors import UsageError
from gristmill.base.files import atomic_path

COLOURS = ("#1f6f8b", "#c2703d")  # against the second mixture, against the random drop


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError('the plot needs matplotlib: pip install "gristmill-trainer[plot]", or leave it out, --no-plot')


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write an SVG; the same result makes the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    comparisons = result["comparisons"]
    names = [row["name"] for row in comparisons[0]["sets"]]
    figure = Figure(figsize=(7.0, 1.2 + 0.5 * len(names)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color="#888888", linewidth=0.8)
    for number, (each, colour) in enumerate(zip(comparisons, COLOURS)):
        middle = [row["difference"] for row in each["sets"]]
        ends = [row["ci95"] for row in each["sets"]]
        reach = [[max(m - low, 0) for m, (low, _) in zip(middle, ends)],
                 [max(high - m, 0) for m, (_, high) in zip(middle, ends)]]  # fmt: skip
        places = [place + 0.2 * (number - (len(comparisons) - 1) / 2) for place in range(len(names))]
        label = f"{each['a']} less {each['b']}"
        axes.errorbar(middle, places, xerr=reach, fmt="o", markersize=4, capsize=3, color=colour, label=_plain(label))
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.invert_yaxis()
    better = f"less than 0: {_plain(comparisons[0]['a'])} is better"
    axes.set_xlabel(f"difference in bits per byte on held-out documents, 95 % interval; {better}", fontsize=8)
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=len(comparisons))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "gristmill", "svg.fonttype": "none"}), atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _plain(name: str) -> str:
    return name.replace("$", r"\$")  # which would begin a formula
