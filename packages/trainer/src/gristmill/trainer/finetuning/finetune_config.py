"""What `trainer finetune` asks beyond the flags of `trainer run`. No torch here, so that --help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError


@dataclass(frozen=True)
class FinetuneConfig:
    """Two kinds of fine-tuning: with --chat on the answers of conversations, else on text of the model's own mixture
    that it has not read."""

    chat: tuple[Path, ...] = ()
    """JSON lines (.jsonl, .gz, .zst): messages, or pairs: prompt and completion, input and output, instruction and
    output. Texts, or any JSON, which is written on one line with sorted keys."""
    epochs: float = 1.0
    """How often the conversations are read, where --tokens is not given."""
    chat_template: str = ""
    """A .jinja file or tokenizer_config.json; "": the model's own, else ChatML where its tokenizer has the tokens, else
    a plain one. none: not the model's own."""
    valid_share: float = 0.05
    """Share of the conversations that validation reads, and training does not."""
    max_bad_share: float = 0.01
    """More conversations than this that cannot be read end it before it begins."""
    reread: bool = False
    """Without --chat: read on although it means text that the model has read before."""

    def __post_init__(self) -> None:
        check_range("--epochs", self.epochs, 1e-9)
        check_range("--max-bad-share", self.max_bad_share, 0, 1)


def parse(arguments: Sequence[str], description: str) -> tuple[str, FinetuneConfig, list[str]]:
    """The model's place, the settings, and the arguments that are left: those of a run.

    Raises:
        UsageError: no model is named.
    """
    place, rest = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("", arguments)
    if not place and not {"-h", "--help"} & set(rest):
        raise UsageError("finetune: name the model first: trainer finetune RUN --chat FILE --output FOLDER")
    settings, left = tyro.cli(
        FinetuneConfig, args=rest, prog=f"trainer finetune {place or 'MODEL'}", description=description,
        return_unknown_args=True,
    )  # fmt: skip
    return place, settings, left
