"""What every oracle engine answers, and how an answer becomes a number: the expected level under its own probabilities.

An answer that carries no level is a failure with a reason. It is never turned into a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gristmill.scorer.oracle.prompt import Prompt, Tokenizer

# Below this share of probability on the levels the model was not answering the question at all. Small base models
# put as little as 0.03 there on garbled documents, and those grades still order well.
MINIMUM_MASS = 0.01


@dataclass(frozen=True)
class Reply:
    """One answer: `logprobs` of the level tokens that the engine reported (natural log, raw), `text` what was said."""

    text: str
    logprobs: Mapping[int, float] = field(default_factory=dict)
    status: str = "ok"


class Engine(Protocol):
    """Grades prompts. `name` identifies model and engine in every label; `tokenizer` measures documents."""

    name: str
    style: str

    @property
    def tokenizer(self) -> Tokenizer: ...

    def grade(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One reply per prompt, in order. A prompt that failed has a status other than "ok"; nothing is dropped."""
        ...


def expected_score(reply: Reply, levels: Sequence[int]) -> tuple[float | None, str]:
    """The score and "ok", or None and the reason.

    With log-probabilities: sum(level * p) / sum(p) over the levels reported (G-Eval, Liu et al. 2023); a level that the
    engine left out of its top-k counts as probability 0. Without: the reply must be exactly one level.
    """
    if reply.status != "ok":
        return None, reply.status
    known = {level: math.exp(reply.logprobs[level]) for level in levels if level in reply.logprobs}
    if known:
        mass = sum(known.values())
        if not mass >= MINIMUM_MASS:
            return None, "off scale"
        return sum(level * p for level, p in known.items()) / mass, "ok"
    match = re.fullmatch(r"\s*(\d)\s*[.]?\s*", reply.text)
    if match is None:
        return None, "no level in the reply"
    level = int(match.group(1))
    return (float(level), "ok") if level in levels else (None, "off scale")
