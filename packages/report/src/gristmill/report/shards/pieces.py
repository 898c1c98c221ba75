"""Token ids as text: what tokenizer.json says of each id, down to its bytes.

A token need not be whole characters, so text is told for the shortest runs of tokens that are; what never becomes valid
UTF-8 stays bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_RUN = 8  # tokens that may share one character: it has at most four bytes
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """The pieces of a tokenizer.json, whose decoder says how they are spelt: by bytes, with ▁ or with ##."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        vocabulary = value["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((one[0], i) for i, one in enumerate(vocabulary))
        )
        self._pieces = {number: piece for piece, number in pairs}
        added = value.get("added_tokens") or []
        self._special = {token["id"]: token["content"] for token in added if token.get("special")}
        self._plain = {token["id"]: token["content"] for token in added if not token.get("special")}
        self._spelling = _types(value.get("decoder"))

    def special(self, number: int) -> str | None:
        """The name of a token that is no text."""
        return self._special.get(number)

    def bytes_of(self, number: int) -> bytes | None:
        """None where the tokenizer has no such id."""
        if number in self._plain:
            return self._plain[number].encode()
        piece = self._pieces.get(number)
        if piece is None:
            return None
        if "ByteLevel" in self._spelling:
            known = all(character in _ALPHABET for character in piece)
            return bytes(_ALPHABET[character] for character in piece) if known else piece.encode()
        if byte := BYTE.fullmatch(piece) if "ByteFallback" in self._spelling else None:
            return bytes([int(byte[1], 16)])
        if "WordPiece" in self._spelling:
            return piece.removeprefix("##").encode() if piece.startswith("##") else f" {piece}".encode()
        return (piece.replace("▁", " ") if self._spelling & {"Metaspace", "Replace"} else piece).encode()


def runs(ids: Sequence[int], breaks: set[int], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The ids as runs {"start", "end", "text"} or, where they are no text, {"start", "end", "name" or "bytes"}.

    breaks: places where a document begins: no run goes over one.
    """
    out: list[dict[str, Any]] = []
    at = 0
    while at < len(ids):
        name = vocabulary.special(ids[at])
        if name is not None:
            out.append({"start": at, "end": at + 1, "name": name})
            at += 1
            continue
        end, text = _whole(ids, at, breaks, vocabulary)
        found: dict[str, Any] = {"start": at, "end": end}
        own = vocabulary.bytes_of(ids[at])
        out.append(found | ({"text": text} if text is not None else {"bytes": "?" if own is None else own.hex(" ")}))
        at = end
    return out


def _whole(ids: Sequence[int], at: int, breaks: set[int], vocabulary: Vocabulary) -> tuple[int, str | None]:
    """Where the shortest run from `at` on ends that is valid UTF-8, and its text; else one token, and None."""
    held = b""
    for end in range(at + 1, min(at + LONGEST_RUN, len(ids)) + 1):
        more = vocabulary.bytes_of(ids[end - 1])
        if more is None or vocabulary.special(ids[end - 1]) is not None:
            break
        held += more
        try:
            return end, held.decode()
        except UnicodeDecodeError as error:
            # Only a character whose end is missing may become one with the next token.
            if error.reason != "unexpected end of data" or end in breaks:
                break
    return at + 1, None


def _types(decoder: Any) -> set[str]:
    if not isinstance(decoder, Mapping):
        return set()
    inner = [name for one in decoder.get("decoders") or [] for name in _types(one)]
    return {str(decoder.get("type")), *inner}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printed bytes are themselves, the others the characters from U+0100 on."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in own else next(others)): byte for byte in range(256)}


_ALPHABET = _byte_alphabet()
