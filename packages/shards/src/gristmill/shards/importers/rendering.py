"""What becomes of a conversation: its tokens, and which are learnt from. Two ways, one interface: a fixed form (turns),
and the model's own chat template.

Control tokens come from the form alone; what people wrote is encoded as text, so "<|im_end|>" stays ten letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from gristmill.shards.importers.conversation import Bad, Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Rendered(NamedTuple):
    """Conversations one after the other. Their last token is not EOS, which the writer sets."""

    ids: np.ndarray  # uint32
    learnt: np.ndarray  # uint8, 1 where the token is learnt from
    lengths: np.ndarray  # int64, of each conversation
    control: int  # control tokens that the form has set; were there more, text has become one


class Form(Protocol):
    """How conversations are written."""

    @property
    def recipe(self) -> Mapping[str, str]:
        """What a manifest says of it."""
        ...

    @property
    def control(self) -> Mapping[int, str]:
        """The tokens that no text may become."""
        ...

    def refused(self, turns: list[Turn]) -> Bad | None:
        """Why a conversation cannot be written in this form."""
        ...

    def render(self, conversations: list[list[Turn]]) -> Rendered: ...


class Runs:
    """Collects tokens in runs that are learnt from, or not."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.runs: list[tuple[bool, int]] = []
        self.lengths: list[int] = []
        self._began = 0

    def add(self, ids: list[int], learnt: bool) -> None:
        self.ids += ids
        self.runs.append((learnt, len(ids)))

    def end(self, eos_id: int) -> bool:
        """The conversation ends here; true if its last token was EOS, which is taken off."""
        ended = len(self.ids) > self._began and self.ids[-1] == eos_id
        if ended:
            self.ids.pop()
            last = next(index for index in reversed(range(len(self.runs))) if self.runs[index][1])
            self.runs[last] = (self.runs[last][0], self.runs[last][1] - 1)
        self.lengths.append(len(self.ids) - self._began)
        self._began = len(self.ids)
        return ended

    def rendered(self, control: int) -> Rendered:
        learnt, counts = np.array(self.runs, np.int64).reshape(-1, 2).T
        masks = np.repeat(learnt.astype(np.uint8), counts)
        return Rendered(np.array(self.ids, np.uint32), masks, np.array(self.lengths, np.int64), control)


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def forged(turns: list[Turn], control: Mapping[int, str], tokenizer: Tokenizer) -> Bad | None:
    """Text that spells a control token, where the tokenizer makes that token of it all the same."""
    for index, turn in enumerate(turns):
        spelled = [token for token in control.values() if token and token in turn.content]
        if spelled and not control.keys().isdisjoint(plain(tokenizer, turn.content)):
            return Bad("forges a control token", f"message {index} spells {', '.join(spelled)}")
    return None
