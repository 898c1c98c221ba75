"""What grading costs before anything is graded: tokens by counting, hours and money by what a node is said to do.

Nothing here is a measurement. Measure the node (docs/oracle.md says how) and put its numbers in.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.scorer.oracle.prompt import Form, prompts
from gristmill.scorer.oracle.tokens import Tokenizer
from gristmill.scorer.rubric import Rubric

BLOCK = 16  # tokens: vLLM caches whole blocks of a prefix, so up to a block less one is computed again
TEMPLATE = 64  # tokens that a chat template puts around the messages, on the high side
CHARACTERS_PER_TOKEN = 4  # of a reason in English


@dataclass(frozen=True)
class Node:
    """All engines of a machine together, under full load. price: of an hour, in any currency."""

    prefill_per_second: float
    """Tokens of prompts."""
    decode_per_second: float
    """Tokens of answers."""
    price: float


@dataclass(frozen=True)
class Cost:
    requests: int
    prompt_tokens: int
    prefilled_tokens: int
    """Of those, what is computed and not found in the prefix cache."""
    reply_tokens: int
    hours: float
    price: float


def grading_cost(
    rubric: Rubric, tokenizer: Tokenizer, node: Node, documents: int, shown: int, form: Form = "level",
    *, reason: int = 0, thinking: int = 0, cached: bool = True,
) -> Cost:  # fmt: skip
    """Cost of grading `documents`, of each of which `shown` tokens reach the oracle.

    reason: characters, of json form. thinking: tokens before each answer. cached: requests about one document find it
    in the prefix cache; what all documents share, the instruction and the template, is found there too. Prefill and
    decode are added up, though a server does both at once, and nothing is taken off for requests that fail.

    Raises:
        UsageError: a number that is not above 0.
    """
    for name, value in (("documents", documents), ("shown", shown)):
        check_range(name, value, 1)
    if min(node.prefill_per_second, node.decode_per_second) <= 0:
        raise UsageError(f"{node}: a node does more than 0 tokens per second")
    asked = prompts("", rubric, form, reason)
    system = TEMPLATE + _count(tokenizer, asked[0].messages[0]["content"])
    questions = [_count(tokenizer, prompt.messages[1]["content"]) for prompt in asked]
    full = sum(system + shown + each for each in questions)
    # The first request about a document computes it, the others only their question.
    saved = len(asked) * (system - BLOCK + 1) + (len(asked) - 1) * shown if cached else 0
    answer = 1 if form == "level" else _count(tokenizer, _answer(rubric)) + -(-reason // CHARACTERS_PER_TOKEN)
    replied = len(asked) * (answer + thinking)
    prefilled = full - max(saved, 0)
    seconds = documents * (prefilled / node.prefill_per_second + replied / node.decode_per_second)
    return Cost(
        documents * len(asked), documents * full, documents * prefilled, documents * replied, seconds / 3600,
        seconds / 3600 * node.price,
    )  # fmt: skip


def _answer(rubric: Rubric) -> str:
    return "{" + ", ".join(f'"{name}": 0' for name in rubric.names) + "}"


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.spans(text))
