"""Documents that try to talk to their grader: the attacks of injections.toml, and a cheap eye for such text.

The attacks measure an oracle by the same document with and without (run.py). The eye is for labels: what it flags had
a reason to lie to the oracle. It reads shapes, not meaning, so a text without a flag is not proven clean.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from gristmill.base.config import from_mapping, load_toml
from gristmill.base.errors import UsageError
from gristmill.scorer.oracle.prompt import nonce, question
from gristmill.scorer.rubric import Rubric

FILE = Path(__file__).with_name("injections.toml")
CONTROL = "control"  # the family of harmless additions
READ = 200_000  # characters that suspicious() reads at either end of a text
LATIN, CYRILLIC = "ABCEHKMOPTXaceiopxys", "АВСЕНКМОРТХасеіорхуѕ"
_TO_LATIN = str.maketrans(CYRILLIC, LATIN)


@dataclass(frozen=True)
class Attack:
    """What is put into a document, where, and how it is spelled. payload: see the head of injections.toml."""

    name: str
    family: str
    payload: str
    at: Literal["begin", "middle", "end", "both"] = "end"
    encoding: Literal["plain", "base64", "rot13", "zero-width", "tags", "full-width", "look-alikes"] = "plain"
    repeat: int = 1  # how often the payload is said


@dataclass(frozen=True)
class Attacks:
    attacks: tuple[Attack, ...]


def load_attacks(path: Path = FILE) -> tuple[Attack, ...]:
    """The attacks of a TOML file, with a control among them.

    Raises:
        UsageError: unknown keys, a name used twice, a payload with an unknown $name, or no control.
    """
    attacks = from_mapping(Attacks, load_toml(path), str(path)).attacks
    names = [attack.name for attack in attacks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{path}: attack {min(twice)!r} is there twice; results go by name")
    for attack in attacks:
        unknown = set(Template(attack.payload).get_identifiers()) - set(_FIELDS)
        if unknown or not Template(attack.payload).is_valid():
            raise UsageError(
                f"{path}: attack {attack.name!r}: write $$ for a dollar sign; fields: {', '.join(_FIELDS)}"
            )
    if not any(attack.family == CONTROL for attack in attacks):
        raise UsageError(f"{path}: no attack of family {CONTROL!r}: any words move a grade, these show how far")
    return attacks


_FIELDS = ("top", "max", "lines", "json", "questions", "names", "mark", "rubric")


def attacked(text: str, attack: Attack, rubric: Rubric) -> str:
    """The text with the attack in it, made out for this rubric: its levels, its names, the marks of its prompt."""
    best = {d.name: list(d.symbols)[0 if d.direction == "lower" else -1] for d in rubric.dimensions}
    first = rubric.dimensions[0]
    values = (
        best[first.name], list(first.symbols)[-1], "\n".join(f"{name.capitalize()}: {s}" for name, s in best.items()),
        json.dumps({name: int(s) if s.isdecimal() else s for name, s in best.items()}),
        "\n".join(f"{question(d)}: {best[d.name]}" for d in rubric.dimensions),
        ", ".join(rubric.names), nonce(rubric), rubric.name,
    )  # fmt: skip
    said = _encoded(Template(attack.payload).substitute(dict(zip(_FIELDS, values))), attack.encoding)
    said = "\n".join([said] * attack.repeat)
    if attack.at == "middle":
        half = re.compile(r"\s|$").search(text, len(text) // 2)
        cut = half.start() if half else len(text)
        return f"{text[:cut]}\n\n{said}\n\n{text[cut:]}"
    begin = f"{said}\n\n" if attack.at in ("begin", "both") else ""
    end = f"\n\n{said}" if attack.at in ("end", "both") else ""
    return f"{begin}{text}{end}"


def _encoded(text: str, encoding: str) -> str:
    if encoding == "base64":
        return base64.b64encode(text.encode()).decode()
    if encoding == "rot13":
        return codecs.encode(text, "rot13")
    if encoding == "zero-width":
        return "\u200b".join(text)
    if encoding == "tags":
        return "".join(chr(0xE0000 + ord(char)) for char in text if 32 <= ord(char) < 127)
    if encoding == "full-width":
        return "".join(chr(ord(char) + 0xFEE0) if 33 <= ord(char) < 127 else char for char in text)
    return text.translate(str.maketrans(LATIN, CYRILLIC)) if encoding == "look-alikes" else text


# All of these are matched against lower case, within a line, near a word of _HINT.
_GRADER = (
    r"(?:graders?|evaluators?|raters?|annotators?|scorers?|oracle|(?:large )?language models?|ai models?|llms?|ais?|"
    r"(?:ai |automatic )(?:assistants?|reviewers?)|chatbots?|(?!ro)\w+bot)"
)
_GIVE = r"(?:giv(?:e|es|ing)|gave|assign\w*|award\w*|rat(?:e|es|ed|ing)|scor(?:e|es|ed|ing)|grad(?:e|es|ed|ing))"
_SAY = rf"(?:{_GIVE}|outputs?|repl(?:y|ies)|answers?|responds?|returns?)"
_TOP = r"(?:full|top|max(?:imum)?|highest|best possible|perfect)"
_TEXT = r"(?:text|document|page|article|essay|answer|code|submission|response)s?"
_ORDERS = (
    r"\b(?:ignor(?:e|es|ing)|disregard\w*|forget|overrid(?:e|es|ing)|bypass)\b[^.\n]{0,40}"
    r"\b(?:(?:previous|prior|above|earlier|your|all|any|system)\b[^.\n]{0,20}\b(?:instructions?|prompts?|guidelines|rules)|"
    r"rubrics?|(?:grading|scoring|evaluation|rating)\b|criteria\b|(?:everything|all|anything) (?:above|before|you))",
    r"\bskips?\b[^.\n]{0,15}\b(?:rubrics?|criteria|grading|scoring)\b",
    rf"\b{_GRADER}\b,?\s+(?:you\s+)?(?:must|should|shall|please|has to|have to)\b[^.\n]{{0,40}}\b{_SAY}\b",
    rf"\b{_GRADER}\b (?:always )?{_SAY}\b[^.\n]{{0,12}}\b\d{{1,2}}(?:[.,;!]|$)",
    rf"\byou are (?:now )?(?:an? |the |no longer )?[^.\n]{{0,30}}\b{_GRADER}\b",
    rf"\b(?:dear|to|for) (?:the |all |any |every )?(?:automatic )?{_GRADER}\b[^\n]{{0,80}}\b{_SAY}\b",
    r"\b(?:reply|answer|respond|output)\b(?: with)? (?:only|just|that|the|a single)\b[^.\n]{0,15}"
    r"\b(?:digit|score|rating|grade)",
    r"\byour new (?:tasks?|instructions?|role)\b",
    r"\byou are (?:now |currently )?(?:grading|evaluating|scoring|rating) this\b",
    rf"\b{_TEXT} (?:passes|fully satisfies|satisfies|meets) (?:all|every|the)\b[^.\n]{{0,15}}\b(?:rubric|criteri)",
    rf"\bas (?:the|an?) {_GRADER}\b,? (?:i|you)\b",
    # German, French and Spanish, Russian, Chinese, Japanese.
    r"\bignorier\w*\b[^.\n]{0,50}(?:anweisung|bewertung|vorgabe)",
    r"\bignor(?:ez|er|es|e|a|en|ar|ad)\b[^.\n]{0,40}(?:instrucci|consignes|rúbrica|grille|criter|critèr)",
    r"(?:игнорир|забуд)\w*[^.\n]{0,40}(?:инструкц|указани|правил|критери)",
    r"(?:忽略|无视|忘记)[^。\n]{0,20}(?:指令|指示|规则|标准|提示)",
    r"(?:指示|命令|基準|ルール)[^。\n]{0,12}(?:無視|忘れ)",
)
_ASKS = (
    rf"\b{_GIVE}\b[^.\n]{{0,20}}\b(?:this|my) {_TEXT}\b[^.\n]{{0,40}}(?:\b{_TOP}\b|\b\d{{1,2}}\b)",
    rf"\b{_TEXT}\b[^.\n]{{0,40}}\b(?:must|should|deserves?|ha(?:s|ve) to)\b[^.\n]{{0,12}}\b"
    rf"(?:scored?|rated|{_TOP} (?:sc|ra|gr|ma)|(?:get|receive|be given) (?:an? |the )?(?:\d{{1,2}}\b|{_TOP}))",
    rf"\b{_SAY}\b[^.\n]{{0,25}}\b{_TOP}\b[^.\n]{{0,12}}\b(?:scores?|ratings?|grades?|marks|points|stars)\b",
    rf"\b(?:score|rating|grade)s?\b[^.\n]{{0,15}}\b(?:must|should|shall|has to) be\b[^.\n]{{0,12}}(?:\d|\b{_TOP}\b)",
    r"\bdeserves? (?:an? )?\d{1,2}\b",
    r"\b(?:gave|scored|rated|awarded) (?:it|this \w+) [^.\n]{0,10}\d{1,2} out of \d{1,2} (?:on|for|in) (?:all|every)",
    r"\brubrics?\b[^.\n]{0,15}\b(?:revised|updated|corrected)|\b(?:revised|updated|corrected) [^.\n]{0,15}\brubrics?\b",
    r"\b(?:höchste|volle|maximale)\w* (?:punktzahl|bewertung|note)",
    r"\bnote maximale\b|\b(?:puntuación|calificación|nota) máxima\b",
    r"(?:максимальн|высш)\w+ (?:балл|оценк)",
    r"(?:打|给|评)[^。\n]{0,8}(?:最高分|满分)|(?:最高点|満点)[^。\n]{0,12}(?:付け|与え|つけ)",
)
_HINT = re.compile(
    "ignor|disregard|forget|overrid|bypass|skip|rubric|criteri|your new |you are | must |out of |grader|evaluator|"
    "rater|annotator|scorer|oracle|language model|ai model|llm|chatbot|bot |bot,| ai |ais |reviewer|assistant|digit|"
    "score|rating|grade|rate this|rate my|marks|points|stars|deserve|give this|give my|punktzahl|bewertung|maxima|"
    "máxima|игнорир|забуд|балл|оценк|[忽无忘打给评指命基ル最満]"
)
_REACH = 160  # characters on either side of a hint that a pattern may need
_ORDER, _ASK = (re.compile("|".join(patterns), re.MULTILINE) for patterns in (_ORDERS, _ASKS))
_ROLE = re.compile(r"^\W{0,4}(assistant|ai|system|user|human)\W{0,3}:", re.MULTILINE)
_CHAT = re.compile(r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜<>\n]{1,30}｜>")
_MARK = re.compile(r"<\s*/?\s*text [0-9a-f]{4}\s*>|-{3,}\s*end of (?:the )?(?:text|document|input)\b")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,4000}={0,2}")
_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff\U000e0020-\U000e007e]")
_HIDDEN = re.compile(
    "[\u200b\u200c\u200d\u2060\ufeff]{4}|(?:[a-zA-Z][\u200b\u200c\u200d\u2060\ufeff](?=[a-zA-Z])){4}|"
    "[\U000e0020-\U000e007e]{8}"
)
_MIXED = re.compile(r"[a-zA-Z][\u0400-\u04ff]|[\u0400-\u04ff][a-zA-Z]")
_WORD = re.compile(r"[a-zA-Z\u0400-\u04ff]{2,40}")
_VERDICT = r"[\"'](?:score|rating|grade)[\"']\s*:\s*[\"']?\d"
_WHY = r"[\"'](?:reason|rationale|verdict|pass)\w*[\"']\s*:"
_REPLY = re.compile(rf"\{{[^{{}}]{{0,200}}(?:{_VERDICT}[^{{}}]{{0,200}}{_WHY}|{_WHY}[^{{}}]{{0,200}}{_VERDICT})")
_GRADES = ("helpfulness", "correctness", "coherence", "clarity", "readability", "quality", "score", "rating", "grade")


def suspicious(text: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Why this text may be talking to its grader; () where nothing is seen. names: the rubric's dimensions.

    Reasons: "order" (to ignore the rubric, or to a grader), "asks for a score", "states scores", "roles",
    "chat tokens", "forged mark", "hidden characters", "encoded". Of a huge text the beginning and the end are read.
    """
    if len(text) > 2 * READ:
        text = f"{text[:READ]}\n{text[-READ:]}"
    plain = _plain(text)
    hinted = _hinted(plain)
    roles = {match.group(1) for match in _ROLE.finditer(plain)}
    order, asks = _ORDER.search(hinted), _ASK.search(hinted)
    hidden = [] if order or asks else [codecs.encode(plain, "rot13"), *_from_base64(text)]
    seen = {
        "order": order,
        "asks for a score": asks,
        "states scores": _states_scores(plain, names),
        "roles": roles & {"assistant", "ai"} and len(roles) > 1,
        "chat tokens": _CHAT.search(text),
        "forged mark": _MARK.search(plain),
        "hidden characters": _HIDDEN.search(text) if _INVISIBLE.search(text) else None,
        "encoded": any(_ORDER.search(other) or _ASK.search(other) for other in map(_hinted, hidden)),
    }
    return tuple(reason for reason, found in seen.items() if found)


def _plain(text: str) -> str:
    """What a model may read: one form of each letter, tag characters as ASCII, nothing of no width, lower case."""
    if _INVISIBLE.search(text):
        text = _INVISIBLE.sub(lambda found: chr(max(ord(found[0]) - 0xE0000, 0)).strip("\0"), text)
    text = unicodedata.normalize("NFKC", text)
    if _MIXED.search(text):
        text = _WORD.sub(lambda word: word[0].translate(_TO_LATIN) if _MIXED.search(word[0]) else word[0], text)
    return text.lower()


def _hinted(plain: str) -> str:
    """The parts of a text near words of _HINT: most texts have few, and the patterns are slow."""
    parts, end = [], 0
    for hint in _HINT.finditer(plain):
        if hint.start() >= end:
            parts.append("\n")
            end = max(end, hint.start() - _REACH)
        parts.append(plain[end : hint.end() + _REACH])
        end = max(end, hint.end() + _REACH)
    return "".join(parts)


def _states_scores(plain: str, names: Sequence[str]) -> bool:
    """Grades as a reply would have them, one to a line or in JSON: of two names, the same five times, with a reason."""
    if _REPLY.search(plain):
        return True
    known = "|".join(re.escape(name) for name in {*(name.lower() for name in names), *_GRADES})
    lines = rf"\b({known})\W{{0,4}}[:=]\s*\W{{0,3}}(\d{{1,2}})(?:\s*(?:/|out of)\s*\d{{1,3}})?\W*$"
    pairs = rf"[\"']({known})[\"']\s*:\s*[\"']?(\d{{1,2}})\b"
    for pattern in (lines, pairs):
        found = [match.groups() for match in re.finditer(pattern, plain, re.MULTILINE)]
        if len({name for name, _ in found}) > 1 or (len(found) > 4 and len(set(found)) == 1):
            return True
    return False


def _from_base64(text: str) -> list[str]:
    """Runs of base64 that spell ASCII text, decoded."""
    decoded = []
    for match in _BASE64.finditer(text):
        run = match.group().rstrip("=")
        try:
            raw = base64.b64decode(run[: len(run) // 4 * 4])
        except binascii.Error:
            continue
        if raw.isascii() and b" " in raw:
            decoded.append(raw.decode("ascii").lower())
    return decoded
