"""What the oracle is asked: the document between marks that it cannot forge, then one question about it, or all.

The document comes before the question, so the questions about one document share a prefix that the engine caches.
Only the document is ever trimmed (windows.py); the question always reaches the oracle whole, and last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gristmill.base.errors import UsageError
from gristmill.base.files import canonical_json
from gristmill.scorer.oracle.tokens import Tokenizer
from gristmill.scorer.rubric import Dimension, Rubric, symbols

Form = Literal["level", "json"]
"""level: a request for each dimension, answered by one symbol. json: one request, answered by an object of them all."""
MOST_REASON = 2000  # characters
CHAT_TOKENS = 64  # more than a chat template puts around the messages


@dataclass(frozen=True)
class Prompt:
    """One request about one document, in the parts that completion and chat engines lay out differently.

    The level form has `levels`, those of the one dimension that it asks for; the json form has `dimensions`, in the
    order asked, and `reason`: so many characters of reasons may come before the scores. `repeat` tells apart requests
    that are alike, and seeds the sampling where `temperature` is above 0; `document_id` tells apart those about
    documents of the same text, where each is to be asked about by itself.
    """

    shared: str
    document: str
    question: str
    levels: tuple[int, ...] = ()
    dimensions: tuple[Dimension, ...] = ()
    reason: int = 0
    repeat: int = 0
    temperature: float = 0.0
    document_id: str = ""

    @property
    def form(self) -> Form:
        return "json" if self.dimensions else "level"

    @property
    def completion(self) -> str:
        """The text to be continued by the answer."""
        return f"{self.shared}{self.document}{self.question}:"

    @property
    def messages(self) -> list[dict[str, str]]:
        system = self.shared.strip() or "You grade texts."
        user = f"{self.document}{self.question}"
        if self.form == "level":
            names = list(symbols(self.levels))
            kind = "digit" if names[0].isdecimal() else "letter"
            user += f"\nReply with one {kind}, {names[0]} to {names[-1]}, and nothing else."
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    @property
    def most_reply_tokens(self) -> int:
        """A cap that no answer of the form needs to reach: an answer cut off would be a failed one."""
        if self.form == "level":
            return 2  # some tokenizers split a space off
        names = sum(len(dimension.name) + 8 for dimension in self.dimensions)
        return 16 + names + (16 + self.reason if self.reason else 0)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer in json form, keys in the order asked."""
        properties: dict[str, Any] = {"reason": {"type": "string", "maxLength": self.reason}} if self.reason else {}
        for dimension in self.dimensions:
            names = list(dimension.symbols)
            digits = names[0].isdecimal()
            properties[dimension.name] = {
                "type": "integer" if digits else "string",
                "enum": [int(name) for name in names] if digits else names,
            }
        return {
            "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        }  # fmt: skip

    def most_tokens(self, tokenizer: Tokenizer) -> int:
        """An upper estimate of what the request and its answer cost together."""
        asked = "".join(message["content"] for message in self.messages)
        return len(tokenizer.spans(asked)) + CHAT_TOKENS + self.most_reply_tokens


def prompts(
    shown: str, rubric: Rubric, form: Form = "level", reason: int = 0, order: Sequence[int] | None = None,
    repeat: int = 0, temperature: float = 0.0, document_id: str = "",
) -> list[Prompt]:  # fmt: skip
    """The requests about one document: one per dimension, in the rubric's order, or in json form one in all.

    order: positions of the dimensions, to ask for them in another order; json form only.

    Raises:
        UsageError: a reason, or an order, for single levels; a reason of over 2000 characters.
    """
    if form == "level" and (reason or order is not None):
        raise UsageError("single levels have no reason and no order: ask with form json")
    if not 0 <= reason <= MOST_REASON:
        raise UsageError(f"reason is {reason}: give at most {MOST_REASON} characters")
    document, shared = block(shown, rubric), _shared(rubric, form)
    if form == "level":
        return [
            Prompt(shared, document, question(dimension), dimension.levels, (), 0, repeat, temperature, document_id)
            for dimension in rubric.dimensions
        ]
    asked = tuple(rubric.dimensions[i] for i in (order if order is not None else range(len(rubric.dimensions))))
    whole = _all_questions(asked, reason)
    return [Prompt(shared, document, whole, (), asked, reason, repeat, temperature, document_id)]


def nonce(rubric: Rubric) -> str:
    """Four hex digits that mark the document off. They need not be secret: documents are stripped of them."""
    return rubric.sha[:4]


def block(text: str, rubric: Rubric) -> str:
    mark = nonce(rubric)
    return f"<text {mark}>\n{text}\n</text {mark}>\n\n"


def question(dimension: Dimension) -> str:
    anchors = dimension.anchors
    if dimension.max <= 9:
        listed = ", ".join(f"{level} = {meaning}" for level, meaning in anchors.items())  # in the rubric's order
    else:  # all letters, so that each is known to stand for its number
        listed = ", ".join(
            f"{letter} = {level}" + (f": {anchors[level]}" if level in anchors else "")
            for letter, level in dimension.symbols.items()
        )
    # The name in front is worth 0.05-0.1 AUC to a small oracle (docs/log.md).
    return f"{dimension.name.capitalize()}: {dimension.question} ({listed})"


def template_sha(rubric: Rubric, style: str, form: Form = "level", reason: int = 0) -> str:
    """sha256 of all that surrounds a document: two labels compare only where this is equal."""
    parts = [[p.shared, p.document, p.question, list(p.levels)] for p in prompts("\0", rubric, form, reason)]
    return hashlib.sha256(canonical_json([style, parts]).encode()).hexdigest()


def _shared(rubric: Rubric, form: Form) -> str:
    """What all prompts of a rubric begin with: its instruction and its examples."""
    shared = f"{rubric.instruction}\n\n" if rubric.instruction else ""
    for example in rubric.examples:
        said = {d.name: list(d.symbols)[example.scores[d.name] - d.min] for d in rubric.dimensions}
        if form == "level":
            lines = "".join(f"{question(d)}: {said[d.name]}\n" for d in rubric.dimensions)
        else:
            values = {name: int(symbol) if symbol.isdecimal() else symbol for name, symbol in said.items()}
            lines = json.dumps(values) + "\n"
        shared += f"{block(example.text, rubric)}{lines}\n"
    return shared


def _all_questions(dimensions: Sequence[Dimension], reason: int) -> str:
    keys = [f'"reason" (why, in at most {reason} characters)'] if reason else []
    for dimension in dimensions:
        names = list(dimension.symbols)
        quote = "" if names[0].isdecimal() else '"'
        keys.append(f'"{dimension.name}" ({quote}{names[0]}{quote} to {quote}{names[-1]}{quote})')
    asked = "\n".join(f"- {question(dimension)}" for dimension in dimensions)
    return (
        f"Grade the text above on each of these:\n{asked}\n"
        f"Reply with one JSON object and nothing else, with the keys {', '.join(keys)}, in this order"
    )
