"""The parameters of one question, as a browser sent them: read by name and type, refused otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from gristmill.base.errors import UsageError

LONGEST = 20_000  # characters of a parameter: changes of thirty rules in eight sources; a request line holds 65,536


class AskedWrong(UsageError):
    """A parameter of a question is not what it may be."""


class Asked:
    """Values of a query string by name. Every reader raises AskedWrong naming the parameter and what it may be."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    @classmethod
    def of_query(cls, query: str) -> Asked:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=200, errors="strict")
        except ValueError as error:
            raise AskedWrong(f"the address's query cannot be read: {error}") from None
        return cls(dict(pairs))

    def text(self, name: str, default: str = "") -> str:
        value = self._values.get(name, default)
        if len(value) > LONGEST:
            raise AskedWrong(f"{name}: {len(value):,} characters; {LONGEST:,} at most")
        return value

    def choice(self, name: str, options: Sequence[str], default: str) -> str:
        value = self.text(name, default)
        if value not in options:
            raise AskedWrong(f"{name}: {value!r} is none of {', '.join(options)}")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name) or str(default)
        try:
            value = int(text)
        except ValueError:
            raise AskedWrong(f"{name}: {text!r} is no whole number") from None
        if not low <= value <= high:
            raise AskedWrong(f"{name}: {value} does not lie in {low} to {high}")
        return value

    def number(self, name: str) -> float | None:
        """None where it is absent or empty."""
        text = self.text(name)
        try:
            value = float(text) if text else None
        except ValueError:
            raise AskedWrong(f"{name}: {text!r} is no number") from None
        if value is not None and not math.isfinite(value):
            raise AskedWrong(f"{name}: {text!r} is no finite number")
        return value
