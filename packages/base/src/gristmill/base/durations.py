"""Durations as people write them on a command line."""

from __future__ import annotations

import re

from gristmill.base.errors import UsageError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(given: str, flag: str) -> float:
    """Seconds in 90s, 30m, 1.5h, 7d or 4w. Raises UsageError, which names `flag`, where it is no such duration."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", given)
    if not found:
        raise UsageError(f"{flag} {given}: write a duration as 90s, 30m, 12h, 7d or 4w")
    return float(found[1]) * UNITS[found[2]]
