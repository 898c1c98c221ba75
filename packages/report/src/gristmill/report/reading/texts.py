"""A document's text as it lies in the file: in parts that fit into one answer, with what was cut or searched marked.

Spans are byte offsets, and files of other programs may hold bytes that are no UTF-8: so texts are cut as bytes, at the
borders of characters, and only the pieces become strings. The page puts them one after the other and counts nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

PART = 24_000  # bytes of one answer
MOST_HITS, MOST_PIECES = 1_000, 4_000  # that are marked in one part; what follows is shown unmarked
CONTEXT = 90  # bytes before a hit, in a line of results
LOSSLESS = "surrogateescape"  # so that bytes which are no UTF-8 come back as they were

Span = tuple[int, int]
Piece = list[Any]  # [text, [numbers of the columns of spans that cover it], whether the search found it]


def decoded(blob: bytes) -> str:
    return blob.decode("utf-8", "replace")


def border(blob: bytes, at: int) -> int:
    """The start of the character that the byte `at` belongs to."""
    at = min(max(at, 0), len(blob))
    for start in range(at, max(at - 4, -1), -1):
        if start == len(blob) or blob[start] & 0xC0 != 0x80:
            return start
    return at


def head(blob: bytes, characters: int) -> bytes:
    """The first characters."""
    return blob[: border(blob, len(decoded(blob[: 4 * characters])[:characters].encode()))]


def pairs(bounds: Sequence[int] | None) -> list[Span]:
    return list(zip((bounds or [])[::2], (bounds or [])[1::2]))


def pieces(
    blob: bytes, begin: int, end: int, spans: Sequence[Sequence[Span]], hits: Sequence[Span] = ()
) -> list[Piece]:
    """blob[begin:end] from border to border of what covers it: columns of spans, and what a search found."""
    changes: dict[int, list[tuple[int, int]]] = {begin: [], end: []}
    for column, found in enumerate([*spans, hits]):
        for low, high in found:
            low, high = max(low, begin), min(high, end)
            if low < high and len(changes) < MOST_PIECES:
                changes.setdefault(low, []).append((column, 1))
                changes.setdefault(high, []).append((column, -1))
    out: list[Piece] = []
    cover = [0] * (len(spans) + 1)
    places = sorted(changes)
    for start, stop in itertools.pairwise(places):
        for column, change in changes[start]:
            cover[column] += change
        text = decoded(blob[start:stop])
        out.append([text, [column for column in range(len(spans)) if cover[column] > 0], cover[-1] > 0])
    return out


def pattern(wanted: str, fold: bool) -> re.Pattern[str]:
    return re.compile(re.escape(wanted), re.IGNORECASE if fold else 0)


def found_in(blob: bytes, begin: int, end: int, wanted: str, fold: bool) -> list[Span]:
    """Where `wanted` stands in blob[begin:end], or over its ends."""
    reach = 4 * len(wanted)
    low = border(blob, begin - reach)
    text = blob[low : border(blob, end + reach)].decode("utf-8", LOSSLESS)
    out: list[Span] = []
    at, byte = 0, low
    for match in pattern(wanted, fold).finditer(text):
        byte += len(text[at : match.start()].encode("utf-8", LOSSLESS))
        stop = byte + len(match[0].encode("utf-8", LOSSLESS))
        if stop > begin and byte < end:
            out.append((byte, stop))
        at, byte = match.end(), stop
        if len(out) == MOST_HITS:
            break
    return out


def first_hit(blob: bytes, wanted: str, fold: bool, begin: int = 0) -> int | None:
    """The byte at which `wanted` stands first, from `begin` on."""
    if not fold:
        at = blob.find(wanted.encode(), begin)
        return at if at >= 0 else None
    text = blob[begin:].decode("utf-8", LOSSLESS)
    match = pattern(wanted, fold).search(text)
    return None if match is None else begin + len(text[: match.start()].encode("utf-8", LOSSLESS))


def part(
    blob: bytes, at: int, spans: Mapping[str, Sequence[int] | None], wanted: str = "", fold: bool = True
) -> dict[str, Any]:
    """The part of a text around the byte `at`: from, to and bytes (of the whole), pieces, and of a search the byte of
    the next hit after it."""
    begin = border(blob, at // PART * PART)
    end = border(blob, (at // PART + 1) * PART)
    hits = found_in(blob, begin, end, wanted, fold) if wanted else []
    return {
        "from": begin,
        "to": end,
        "bytes": len(blob),
        "part": at // PART + 1,
        "parts": max(-(-len(blob) // PART), 1),
        "pieces": pieces(blob, begin, end, [pairs(bounds) for bounds in spans.values()], hits),
        "next_hit": first_hit(blob, wanted, fold, end) if wanted else None,
    }


def beginning(blob: bytes, characters: int, wanted: str = "", fold: bool = True) -> dict[str, Any]:
    """A line about a document: its beginning, or where a search finds it first."""
    at = first_hit(blob, wanted, fold) if wanted else None
    begin = 0 if at is None else border(blob, at - CONTEXT)
    end = begin + len(head(blob[begin : begin + 4 * characters + 4], characters))
    hits = found_in(blob, begin, end, wanted, fold) if wanted else []
    return {"pieces": pieces(blob, begin, end, [], hits), "before": begin > 0, "after": end < len(blob)}
