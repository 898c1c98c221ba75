"""Conversations as a model's own chat template writes them (Jinja, as in transformers), with exact loss masks.

One idea: the template is run twice, on the messages and on marks in their place. The marks tell its own words, where
control tokens are control tokens, from what people wrote, which is encoded as text; a conversation where both runs do
not agree to the letter is refused. Learnt from is what the assistant says, up to the token that ends its turn.
A template is code from elsewhere: it runs in Jinja's sandbox, and sees roles and contents only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import fingerprint
from gristmill.shards.importers import template_file
from gristmill.shards.importers.conversation import ROLES, Bad, Turn
from gristmill.shards.importers.rendering import Rendered, Runs, forged, plain
from gristmill.shards.importers.template_file import INSTEAD
from gristmill.shards.tokenizer import load_tokenizer

_MARK = "\ue000{}\ue001"  # of a private plane: no template writes it by itself
_PROBE = [Turn("user", "a", False), Turn("assistant", "b", True)] * 2
_OTHERS = tuple(role for role in ROLES if role != "assistant")


class _Pieces(NamedTuple):
    """A conversation as written: words[0], contents[0], words[1], ... words[-1]."""

    words: list[str]
    contents: list[str]


class ChatTemplate:
    """The form of one template file with one tokenizer.

    Raises:
        DataError: the file holds no template that can be read, or one that writes no conversation.
        UsageError: one that does not end an answer with a token of its own, so that there is no exact mask; or jinja2
            is not installed.
    """

    def __init__(self, path: Path, tokenizer_file: Path, eos_id: int) -> None:
        text = template_file.read(path)
        self.recipe: Mapping[str, str] = {"template": "own", "template_sha256": fingerprint(text)}
        self.path, self.eos_id = path, eos_id
        self._template = template_file.compiled(text, path)
        self._own_words = load_tokenizer(tokenizer_file)
        self._own_words.encode_special_tokens = False
        ends = {"eos_token": self._own_words.id_to_token(eos_id) or ""}  # where no configuration names another
        self._special = ends | template_file.special_tokens(tokenizer_file.parent)
        self._added = self._own_words.get_added_tokens_decoder()
        self._encode_words = functools.lru_cache(maxsize=4096)(lambda words: plain(self._own_words, words))
        ends = self._probe(path)
        self._tokenizer = load_tokenizer(tokenizer_file, [self._added[token].content for token in ends])
        self.control = {
            token: about.content for token, about in self._added.items() if about.special or token in ends
        } | {eos_id: self._own_words.id_to_token(eos_id) or ""}
        self._check_split(path)

    def refused(self, turns: list[Turn]) -> Bad | None:
        pieces = self._pieces(turns)
        return pieces if isinstance(pieces, Bad) else forged(turns, self.control, self._tokenizer)

    def render(self, conversations: list[list[Turn]]) -> Rendered:
        written = [self._pieces(turns) for turns in conversations]
        good = [pieces for pieces in written if isinstance(pieces, _Pieces)]
        assert len(good) == len(written), "refused() comes first"
        contents = [content for pieces in good for content in pieces.contents]
        encoded = iter(self._tokenizer.encode_batch_fast(contents, add_special_tokens=False))
        runs, control = Runs(), 0
        for turns, pieces in zip(conversations, good):
            first = self._encode_words(pieces.words[0])
            own = first[1:] if first[:1] == [self.eos_id] else first  # every document begins after EOS
            runs.add(own, False)
            control += self._count(own)
            for turn, words in zip(turns, pieces.words[1:]):
                runs.add(next(encoded).ids, turn.learnt)
                own = self._encode_words(words)
                until = self._end(own) if turn.learnt else 0
                runs.add(own[:until], True)
                runs.add(own[until:], False)
                control += self._count(own)
            control -= runs.end(self.eos_id)
        return runs.rendered(control)

    def prompt(self, turns: list[Turn]) -> list[int]:
        """The tokens after which the model answers, less an EOS at their beginning: those before a last answer in
        training. A template's generation prompt may have fewer (Qwen3's lacks the empty thoughts), or be missing.

        Raises:
            UsageError: the template refuses the conversation.
        """
        pieces = self._pieces([*turns, _PROBE[1]])
        if isinstance(pieces, Bad):
            raise UsageError(f"{self.path}: {pieces.reason} ({pieces.detail})")
        contents = [[], *map(self.content, pieces.contents)]
        words = [self._encode_words(part) for part in pieces.words[:-1]]
        ids = [token for pair in zip(contents, words) for part in pair for token in part]
        return ids[1:] if ids[:1] == [self.eos_id] else ids

    def content(self, text: str) -> list[int]:
        """What somebody wrote: the name of a control token stays text."""
        return plain(self._tokenizer, text)

    def text(self, messages: list[dict[str, str]], answer: bool = False) -> str:
        """As the template writes it, with control tokens spelled; `answer`: up to where the model answers."""
        return self._template.render(messages=messages, add_generation_prompt=answer, **self._special)

    def _count(self, ids: list[int]) -> int:
        return sum(token in self.control for token in ids)

    def _end(self, ids: list[int]) -> int:
        """How many of the ids after an answer belong to it: those up to the first token that is no text."""
        return next((place for place, token in enumerate(ids, 1) if token in self._added), 0)

    def _pieces(self, turns: list[Turn]) -> _Pieces | Bad:
        """The template's words and the contents as it writes them, as they are or without blanks around them."""
        marks = [_MARK.format(index) for index in range(len(turns))]
        try:
            marked = self._write(turns, marks)
            whole = self._write(turns, [turn.content for turn in turns])
        except Exception as error:  # noqa: BLE001 - it is somebody's program: of any class
            return Bad("the chat template refuses it", str(error)[:500])
        words = []
        for index, mark in enumerate(marks):
            before, found, marked = marked.partition(mark)
            if not found:
                return Bad("the chat template leaves a message out", f"message {index} ({turns[index].role})")
            words.append(before)
        words.append(marked)
        if any(_MARK[0] in part for part in words):
            return Bad("the chat template writes a message twice")
        for stripped in ((), ROLES, ("assistant",), _OTHERS):  # templates like to trim
            contents = [turn.content.strip() if turn.role in stripped else turn.content for turn in turns]
            if "".join(itertools.chain(*zip(words, contents), words[-1:])) == whole:
                return _Pieces([*words[:-1], words[-1].rstrip()], contents)
        return Bad("the chat template changes what messages say", "with other contents it writes other words")

    def _write(self, turns: list[Turn], contents: list[str]) -> str:
        return self.text([{"role": turn.role, "content": content} for turn, content in zip(turns, contents)])

    def _probe(self, path: Path) -> set[int]:
        """The tokens that end an answer, by a conversation of two."""
        pieces = self._pieces(_PROBE)
        if isinstance(pieces, Bad):
            raise DataError(
                f"{path}: {pieces.reason} ({pieces.detail}), of two plain questions with answers; {INSTEAD}"
            )
        after = [self._encode_words(words) for words in (pieces.words[2], pieces.words[4])]
        if not self._end(after[0]):
            raise UsageError(f"{path}: ends an answer with no token of its own: its mask would not be exact; {INSTEAD}")
        return {ids[self._end(ids) - 1] for ids in after if self._end(ids)}

    def _check_split(self, path: Path) -> None:
        """A tokenizer that adds something to every text that it is given cannot encode words and contents apart."""
        eos = self.control[self.eos_id]
        written = self._write(_PROBE, [turn.content for turn in _PROBE]).rstrip().removeprefix(eos).removesuffix(eos)
        got = self._tokenizer.decode(self.render([_PROBE]).ids.tolist(), skip_special_tokens=False)
        if got != written:
            raise UsageError(
                f"{path}: this tokenizer writes {got[:200]!r} where the template has {written[:200]!r}: it cannot "
                f"encode a conversation in parts, so the mask would not be exact; {INSTEAD}"
            )
