"""What every oracle engine answers, and how an answer becomes a number: the expected level under its own probabilities.

An answer that carries no level is a failure with a reason. It is never turned into a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from gristmill.scorer.oracle.prompt import Prompt
from gristmill.scorer.oracle.tokens import Tokenizer
from gristmill.scorer.rubric import Dimension, symbols

# Below this share of probability on the levels the model was not answering the question at all. Small base models
# put as little as 0.03 there on garbled documents, and those grades still order well.
MINIMUM_MASS = 0.01
NEVER = -100.0  # log-probabilities below are those of tokens that a constraint forbade (-inf, or -9999 of a server)
FAILED = "request failed"
"""How the status of a request begins that got no answer, and may get one another time."""


@dataclass(frozen=True)
class Reply:
    """One answer: `text` is what was said, `logprobs` those of the levels that the engine reported (natural log).

    In json form `dimensions` has them by dimension. `constrained`: they were taken after everything but the allowed
    answers had been ruled out, so that their sum says nothing. `seconds`: what the answer took; where an engine works
    on many at once, its share. Status: "ok" wherever there was an answer, of whatever use.
    """

    text: str
    logprobs: Mapping[int, float] = field(default_factory=dict)
    status: str = "ok"
    dimensions: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    constrained: bool = False
    prompt_tokens: int = 0
    reply_tokens: int = 0
    seconds: float = 0.0


class Engine(Protocol):
    """Grades prompts. `name` identifies model, engine and all settings that its answers depend on, in every label and
    for every stored reply; `tokenizer` measures documents.

    May have `context`, the most tokens of prompt and answer together, and `batch`, how many prompts it likes at once.
    """

    name: str
    style: str

    @property
    def tokenizer(self) -> Tokenizer: ...

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt, in order. A prompt that failed has a status other than "ok"; nothing is dropped."""
        ...


@runtime_checkable
class EachEngine(Protocol):
    """An engine whose replies come one by one."""

    def grade_each(self, prompts: Sequence[Prompt], keep: Callable[[int, Reply], None]) -> None:
        """`keep` is given each reply with its prompt's position, in the thread that got it, before that asks again."""
        ...


@dataclass(frozen=True)
class Grade:
    """A score, or None and why in `status`. mass: share of the probability that was on the levels, where known."""

    score: float | None
    status: str
    mass: float | None = None


def read_grades(prompt: Prompt, reply: Reply) -> dict[str, Grade]:
    """The grade of each dimension asked in json form; in level form the only one, under the name ""."""
    if prompt.form == "level":
        score, status = expected_score(reply, prompt.levels)
        return {"": Grade(score, status, _mass(reply, reply.logprobs))}
    if reply.status != "ok":
        return {dimension.name: Grade(None, reply.status) for dimension in prompt.dimensions}
    try:
        values = json.loads(_unfenced(reply.text), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return {dimension.name: Grade(None, "no JSON object in the reply") for dimension in prompt.dimensions}
    return {dimension.name: _json_grade(dimension, values, reply) for dimension in prompt.dimensions}


def expected_score(reply: Reply, levels: Sequence[int]) -> tuple[float | None, str]:
    """The score and "ok", or None and the reason.

    With log-probabilities: sum(level * p) / sum(p) over the levels reported (G-Eval, Liu et al. 2023); a level that the
    engine left out of its top-k counts as probability 0. Without: the reply must be exactly one level.
    """
    if reply.status != "ok":
        return None, reply.status
    if (expected := _expected(reply, reply.logprobs, levels)) is not None:
        return expected
    match = re.fullmatch(r"\s*(\w)\s*[.]?\s*", reply.text)
    if match is None:
        return None, "no level in the reply"
    level = symbols(levels).get(match[1])
    if level is None:
        return None, "off scale" if match[1].isdecimal() else "no level in the reply"
    return float(level), "ok"


def level_logprobs(top: Mapping[str, float], levels: Sequence[int]) -> dict[int, float]:
    """Log-probability of each level among the tokens reported; "3", " 3" and, in JSON, "3," are one: they add up."""
    known, found = symbols(levels), dict[int, float]()
    for token, logprob in top.items():
        level = known.get(token.strip(' \t\r\n",:}'))
        if level is not None and logprob > NEVER:
            found[level] = math.log(math.exp(found.get(level, -math.inf)) + math.exp(logprob))
    return found


Tokens = Sequence[tuple[str, Mapping[str, float]]]
"""An answer's tokens as text, each with the log-probabilities of the likeliest tokens in its place."""


def reply_logprobs(prompt: Prompt, text: str, tokens: Tokens) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """(logprobs, dimensions) of a Reply with this text. The tokens may begin with others, such as a model's thoughts.

    An answer in which the levels cannot be found has none: it is then read as it stands.
    """
    said = "".join(token for token, _ in tokens)
    if prompt.form == "level":
        at = said.rfind(text.strip() or text)
        return (level_logprobs(_at(tokens, at), prompt.levels) if at >= 0 else {}), {}
    # All dimensions in a row: a reason may quote JSON, but not with bare quotation marks.
    pairs = (rf'"{re.escape(d.name)}"\s*:\s*"?([{"".join(d.symbols)}])"?' for d in prompt.dimensions)
    found = list(re.finditer(r"\s*,\s*".join(pairs) + r"\s*\}", said))
    if not found:
        return {}, {}
    return {}, {
        dimension.name: level_logprobs(_at(tokens, found[-1].start(group)), dimension.levels)
        for group, dimension in enumerate(prompt.dimensions, 1)
    }


def _at(tokens: Tokens, position: int) -> Mapping[str, float]:
    """The alternatives of the token that covers a character of all tokens together."""
    for token, top in tokens:
        position -= len(token)
        if position < 0:
            return top
    return {}


def _expected(reply: Reply, logprobs: Mapping[int, float], levels: Sequence[int]) -> tuple[float | None, str] | None:
    known = {level: math.exp(logprobs[level]) for level in levels if level in logprobs}
    if not known:
        return None
    mass = sum(known.values())
    if not mass >= MINIMUM_MASS and not reply.constrained:
        return None, "off scale"
    return sum(level * p for level, p in known.items()) / mass, "ok"


def _mass(reply: Reply, logprobs: Mapping[int, float]) -> float | None:
    if reply.constrained or not logprobs:
        return None
    return min(1.0, sum(math.exp(logprob) for logprob in logprobs.values()))


def _json_grade(dimension: Dimension, values: Mapping[str, Any], reply: Reply) -> Grade:
    if dimension.name not in values:
        return Grade(None, "missing in the reply")
    value, known = values[dimension.name], dimension.symbols
    digits = all(symbol.isdecimal() for symbol in known)
    if type(value) is not (int if digits else str):
        return Grade(None, "no level in the reply")
    if (level := known.get(str(value))) is None:
        return Grade(None, "off scale")
    logprobs = reply.dimensions.get(dimension.name, {})
    score, status = _expected(reply, logprobs, dimension.levels) or (float(level), "ok")
    return Grade(score, status, _mass(reply, logprobs))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key twice: which of its values is meant?")
    return values


def _unfenced(text: str) -> str:
    """Without the code fence that chat models like to put around JSON."""
    match = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return match[1] if match else text
