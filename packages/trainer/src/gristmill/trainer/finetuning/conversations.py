"""Conversations as shards in the folder of the run that learns from them: RUN/data, one source, one mixture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gristmill.base.errors import UsageError
from gristmill.base.files import sha256_file, write_text
from gristmill.base.progress import Progress
from gristmill.shards import packing
from gristmill.shards.importers import chat, turns
from gristmill.shards.importers.api import find_inputs, import_source
from gristmill.shards.manifest import MANIFEST
from gristmill.shards.reader import open_dataset
from gristmill.shards.tokenizer import tokenizer_info
from gristmill.shards.writer import write_manifest

log = logging.getLogger("gristmill.trainer")

NAME = "chat"
_MIXTURE = f'[mixture]\nname = "{NAME}"\non_exhausted = "repeat"\n[mixture.weights]\n{NAME} = 1\n'


def folder_of(run: Path) -> Path:
    return run / "data"


def write(
    inputs: Sequence[Path],
    run: Path,
    tokenizer: Path,
    eos: int,
    template: Path | None,
    valid_share: float,
    max_bad_share: float,
    sequence: int,
) -> int:
    """Tokenise the files into RUN/data, unless they are there; answers the best-fit windows of `sequence` tokens that
    training has.

    Raises:
        UsageError: the run has begun with other conversations.
        PartialError: too many cannot be read; they are in RUN/data/chat.quarantine.jsonl.
    """
    folder = folder_of(run)
    _, files = find_inputs("chat", inputs)
    asked = {name: sha256_file(path) for name, path in files.items()}
    if not _holds(folder, asked, tokenizer, eos, template, valid_share):
        if (run / "run.json").exists():
            raise UsageError(
                f"{run}: holds a run on other conversations, or with another template; give another --output, or go on "
                f"with it: trainer resume {run}"
            )
        with Progress("tokenise", 0, "tokens") as progress:
            done = import_source(
                "chat", inputs, folder, NAME, tokenizer, eos=str(eos), valid_fraction=valid_share,
                chat_template=template, max_bad_fraction=max_bad_share, progress=progress.of,
            )  # fmt: skip
        write_text(folder / "mixtures" / f"{NAME}.toml", _MIXTURE)
        write_manifest(folder, tokenizer=tokenizer)
        if done.quarantined:
            log.info("%s conversations cannot be read: %s", f"{done.quarantined:,}", done.quarantine)
    return _windows(folder, sequence)


def template(run: Path, eos: int) -> str:
    """The fixed form that conversations were written in, as a chat template."""
    return turns.load(folder_of(run) / "tokenizer.json", eos).chat_template()


def _holds(
    folder: Path, asked: dict[str, str], tokenizer: Path, eos: int, template: Path | None, valid_share: float
) -> bool:
    if not (folder / MANIFEST).exists():
        return False
    held = open_dataset(folder).sources[NAME].manifest
    recipe = chat.load_form(tokenizer, eos, template).recipe
    return (
        {str(entry["path"]): entry["sha256"] for entry in held.inputs} == asked
        and {key: held.recipe.get(key) for key in recipe} == recipe
        and held.tokenizer == tokenizer_info(tokenizer, str(eos))
        and held.order.valid_fraction == valid_share
    )


def _windows(folder: Path, sequence: int) -> int:
    split = open_dataset(folder).sources[NAME].split("train")
    sizes = np.concatenate(
        [np.diff(split.ends(i).astype(np.int64), prepend=0) for i in range(len(split.shards))] or [[]]
    )
    if longer := int((sizes > sequence).sum()):
        log.info(
            "%s of %s conversations are longer than a window of %s tokens, and are cut (--batch.sequence)",
            f"{longer:,}", f"{len(sizes):,}", f"{sequence:,}",
        )  # fmt: skip
    counts = (packing.row_counts(split.ends(i), (sequence,))[str(sequence)] for i in range(len(split.shards)))
    return sum(counts)
