"""Text that nobody vouches for, on a terminal."""

from __future__ import annotations

import unicodedata


def shown(value: object) -> str:
    """Safe to print: control and format characters (line ends, escapes, changes of direction) spelled as in Python."""
    return "".join(char if _plain(char) else char.encode("unicode_escape").decode() for char in str(value))


def _plain(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"
