"""Tables of Markdown that read as they are, in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence

from gristmill.base.terminal import shown


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines, columns padded to equal widths."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (header, *rows)]
    return [f"| {lines[0]} |", "|" + "|".join("-" * (width + 2) for width in widths) + "|"] + [
        f"| {line} |" for line in lines[1:]
    ]


def name(text: object) -> str:
    """Names come from documents' metadata and endpoints: no line ends, no bars, not too long."""
    return shown(text).replace("|", "/")[:60]


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def share(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}%}"
