"""Conversations in a fixed form: ChatML where the tokenizer has <|im_start|> and <|im_end|>, without a newline after
the last turn:

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi<|im_end|>

and else with the end-of-document token after each turn, `user:\\nHello</s>\\nassistant:\\nHi</s>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.shards.importers.conversation import Bad, Turn
from gristmill.shards.importers.rendering import Rendered, Runs, forged, plain
from gristmill.shards.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
SEPARATOR = "\n"


@dataclasses.dataclass(frozen=True)
class Turns:
    """How a turn is written: `start` (an id, if there is one), the header as text, the content, `end` (an id)."""

    name: str
    start: int | None
    header: str
    end: int
    eos_id: int
    tokenizer: Tokenizer

    @property
    def recipe(self) -> Mapping[str, str]:
        return {"template": self.name}

    @property
    def control(self) -> Mapping[int, str]:
        ids = {self.end, self.eos_id} | (set() if self.start is None else {self.start})
        return {i: self.tokenizer.id_to_token(i) or "" for i in ids}

    def refused(self, turns: list[Turn]) -> Bad | None:
        return forged(turns, self.control, self.tokenizer)

    def render(self, conversations: list[list[Turn]]) -> Rendered:
        contents = [turn.content for turns in conversations for turn in turns]
        encoded = iter(self.tokenizer.encode_batch_fast(contents, add_special_tokens=False))
        start = [] if self.start is None else [self.start]
        headers: dict[tuple[str, bool], list[int]] = {}  # what stands before the content of a role, at first and later
        runs, control = Runs(), 0
        for turns in conversations:
            for index, turn in enumerate(turns):
                which = (turn.role, index > 0)
                if which not in headers:
                    between = plain(self.tokenizer, SEPARATOR) if index else []
                    headers[which] = [*between, *start, *plain(self.tokenizer, self.header.format(role=turn.role))]
                runs.add(headers[which], False)
                runs.add([*next(encoded).ids, self.end], turn.learnt)
            control += len(turns) * (1 + len(start)) - runs.end(self.eos_id)
        return runs.rendered(control)

    def chat_template(self) -> str:
        """The same as Jinja, for whoever runs the model: `chat_template` of transformers, vLLM and others."""
        start, end = CHATML if self.start is not None else ("", "{{ eos_token }}")
        header = self.header.format(role="{{ message['role'] }}").replace("\n", "{{ '\\n' }}")
        asked = self.header.format(role="assistant").replace("\n", "{{ '\\n' }}")
        between = "{{ '\\n' }}"
        return (
            f"{{% for message in messages %}}{{% if not loop.first %}}{between}{{% endif %}}"
            f"{start}{header}{{{{ message['content'] }}}}{end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{between}{start}{asked}{{% endif %}}"
        )


def load(tokenizer_file: Path, eos_id: int) -> Turns:
    """The form that the tokenizer has the tokens for, and the tokenizer, for text that may spell them."""
    tokenizer = load_tokenizer(tokenizer_file, CHATML)
    start, end = (tokenizer.token_to_id(token) for token in CHATML)
    if start is None or end is None:
        return Turns("plain", None, "{role}:\n", eos_id, eos_id, tokenizer)
    return Turns("chatml", start, "{role}\n", end, eos_id, tokenizer)
