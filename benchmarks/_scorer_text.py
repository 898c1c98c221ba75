"""Real text with a known amount of damage, for bench scorer: what a good oracle would say of it is known.

A document is a passage of real prose or code. Its severity is how badly it was damaged, 0 (not at all) to 4, by one of
five kinds of damage that filters meet: noise in characters, shuffled words, repetition, boilerplate, spliced lines. The
grade is 4 - severity, and what is damaged by at most 1 counts as good.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import itertools
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gristmill.base.errors import DataError
from gristmill.scorer.rubric import rubric_from_mapping

RUBRIC = rubric_from_mapping(
    {
        "name": "soundness",
        "dimensions": [{"name": "soundness", "question": "?", "anchors": {"0": "badly damaged", "4": "untouched"}}],
    },
    "bench scorer",
)
PASSAGE = 640  # characters, about 160 tokens of the demo's model
WORST = 4
GOOD = 1  # the most damage that a good document may have
# Grades as an oracle gives them: more undamaged and lightly damaged documents than any other.
SEVERITIES = (0, 0, 1, 1, 2, 3, 4)
BOILERPLATE = (
    "Accept all cookies to continue.", "Sign in or create an account.", "Share this on Facebook and Twitter.",
    "Subscribe to our newsletter today!", "All rights reserved. Terms of use. Privacy policy.",
    "Click here to read more ...", "Related articles you may like", "Home | About | Contact | Site map",
)  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    text: str
    source: str  # prose or code
    group: str  # where it is from: a package, or a document of the corpus; folds keep it together
    severity: int


def damaged_documents(corpus: Path | None, count: int, seed: int = 0) -> list[Damaged]:
    """Half prose, half code, every passage once; kinds of damage and severities are drawn evenly over both.

    corpus: a folder of *.jsonl.gz (`text`; code.jsonl.gz is the code); without one, the documentation and the source of
    the packages installed here.

    Raises:
        DataError: less text than that.
    """
    generator = random.Random(seed)
    found: list[Damaged] = []
    for source, passages in (("prose", _prose(corpus)), ("code", _code(corpus))):
        share = count // 2 if source == "prose" else count - count // 2
        drawn = sorted(set(passages))
        if len(drawn) < share:
            raise DataError(f"{corpus or 'installed packages'}: {len(drawn)} passages of {source}; {share} are needed")
        for group, text in generator.sample(drawn, share):
            severity = generator.choice(SEVERITIES)
            kind = generator.choice(KINDS)
            found.append(Damaged(kind(text, severity, generator) if severity else text, source, group, severity))
    generator.shuffle(found)
    return found


# Damage ---------------------------------------------------------------------------------------------------------------


def _characters(text: str, severity: int, generator: random.Random) -> str:
    """2% of the characters replaced per degree of severity."""
    letters = list(text)
    for at in generator.sample(range(len(letters)), round(0.02 * severity * len(letters))):
        letters[at] = generator.choice(string.ascii_letters + string.digits + string.punctuation)
    return "".join(letters)


def _words(text: str, severity: int, generator: random.Random) -> str:
    """10% of the words put elsewhere per degree; lines stay."""
    lines = [line.split(" ") for line in text.split("\n")]
    places = [(i, j) for i, line in enumerate(lines) for j in range(len(line)) if line[j]]
    moved = generator.sample(places, max(2, round(0.1 * severity * len(places)))) if len(places) > 2 else []
    words = [lines[i][j] for i, j in moved]
    generator.shuffle(words)
    for (i, j), word in zip(moved, words):
        lines[i][j] = word
    return "\n".join(" ".join(line) for line in lines)


def _repetition(text: str, severity: int, generator: random.Random) -> str:
    """12% of the text, per degree, is one part of it again and again."""
    length = round(0.12 * severity * len(text))
    start = generator.randrange(max(1, len(text) - 40))
    part = text[start : start + 40] + " "
    at = generator.randrange(max(1, len(text) - length))
    return text[:at] + (part * (length // len(part) + 1))[:length] + text[at + length :]


def _boilerplate(text: str, severity: int, generator: random.Random) -> str:
    """12% of the text, per degree, is replaced by what surrounds pages."""
    length = round(0.12 * severity * len(text))
    at = generator.randrange(max(1, len(text) - length))
    lines = ""
    while len(lines) < length:
        lines += generator.choice(BOILERPLATE) + "\n"
    return text[:at] + "\n" + lines[:length] + text[at + length :]


def _splices(text: str, severity: int, generator: random.Random) -> str:
    """Each line is cut in the middle and goes on with the rest of another, so many times per degree."""
    lines = text.split("\n")
    if len(lines) < 4:
        lines = [text[at : at + 80] for at in range(0, len(text), 80)]
    for _ in range(round(0.15 * severity * len(lines)) + 1):
        i, j = generator.randrange(len(lines)), generator.randrange(len(lines))
        a, b = len(lines[i]) // 2, len(lines[j]) // 2
        lines[i], lines[j] = lines[i][:a] + lines[j][b:], lines[j][:b] + lines[i][a:]
    return "\n".join(lines)


KINDS: tuple[Callable[[str, int, random.Random], str], ...] = (
    _characters, _words, _repetition, _boilerplate, _splices,
)  # fmt: skip


# Text -----------------------------------------------------------------------------------------------------------------


def _prose(corpus: Path | None) -> Iterator[tuple[str, str]]:
    if corpus is None:
        yield from _installed((".md", ".rst", ".txt", "METADATA"))
        return
    for path in sorted(corpus.glob("*.jsonl.gz")):
        if path.name.split(".")[0] != "code":
            yield from _lines(path)


def _code(corpus: Path | None) -> Iterator[tuple[str, str]]:
    if corpus is None:
        yield from _installed((".py",))
    elif (corpus / "code.jsonl.gz").is_file():
        yield from _lines(corpus / "code.jsonl.gz")


def _lines(path: Path, most: int = 4000) -> Iterator[tuple[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == most:
                return
            yield from _passages(f"{path.name}:{number}", json.loads(line)["text"])


def _installed(endings: tuple[str, ...], most: int = 300) -> Iterator[tuple[str, str]]:
    """Up to `most` passages of each package: a few large ones would else be nearly all."""
    for distribution in importlib.metadata.distributions():
        yield from itertools.islice(_package(distribution, endings), most)


def _package(distribution: importlib.metadata.Distribution, endings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        if not path.name.endswith(endings) or not path.is_file() or "LICEN" in path.name.upper():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield from _passages(distribution.metadata["Name"], text)


def _passages(group: str, text: str, most: int = 8) -> Iterator[tuple[str, str]]:
    """Up to `most` passages of one text, that begin at a line and say something."""
    start = taken = 0
    while taken < most and start + PASSAGE // 2 < len(text):
        piece = text[start : start + PASSAGE].strip("\n")
        start += PASSAGE
        at = text.find("\n", start)
        start = at + 1 if 0 <= at < start + PASSAGE else start
        if len(piece) > PASSAGE // 2 and sum(letter.isalpha() for letter in piece) > 0.5 * len(piece):
            taken += 1
            yield group, piece
