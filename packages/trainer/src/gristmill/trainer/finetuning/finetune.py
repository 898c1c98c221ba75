"""Fine-tuning is a run like any other, with the same loop and the same resume: it begins with another model's weights.

What is decided here is its data: conversations, written as shards with loss masks into the run's own folder, or the
part of the model's own mixture that it has not read (consolidation).
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.base.cli import MOST_TOKENS
from gristmill.base.errors import UsageError
from gristmill.base.files import write_text
from gristmill.shards.importers import template_file
from gristmill.shards.plan import Plan
from gristmill.trainer import exchange, hub
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import resolve_data
from gristmill.trainer.finetuning import conversations
from gristmill.trainer.finetuning.finetune_config import FinetuneConfig
from gristmill.trainer.model import huggingface
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.optim.config import GROUPS
from gristmill.trainer.run_folder import document_ids, model_config, read_run

log = logging.getLogger("gristmill.trainer")

RATE = 0.1  # of the model's own learning rate, on conversations: our choice, which no experiment stands behind
_KEPT = (
    "optimizer", "alarms", "precision", "expert_precision", "stochastic_rounding", "compile", "device", "threads",
    "recompute", "price_per_hour", "check_shards",
)  # fmt: skip
_OF_THE_MIXTURE = (
    "mixture", "data", "tokenizer", "data_seed", "packing", "match_repetition", "unique_tokens", "disk_gb",
)  # fmt: skip


class Origin(NamedTuple):
    """The model that a fine-tuning begins with."""

    place: str
    folder: Path  # its tokenizer's files are there
    record: dict[str, Any]  # run.json, or what an import would write there
    shape: ModelConfig
    position: Position | None  # where its checkpoint stands in its mixture's order; None: it was not trained here

    @property
    def eos(self) -> int:
        return document_ids(self.folder, self.record, self.shape.vocab)[1]


def find(place: str) -> Origin:
    """A run, one of its checkpoints, or a Hugging Face folder or address.

    Raises:
        UsageError: there is none.
        DataError: what is there is damaged, or a model that cannot be read.
    """
    path = Path(place)
    if not ((path / "run.json").exists() or (path / "state.json").exists()):
        folder = hub.local_folder(place)
        foreign = huggingface.read(folder)
        return Origin(place, folder, exchange.describe(place, folder, foreign, Path()), foreign.config, None)
    chosen = path if (path / "state.json").exists() else checkpoint.newest(path)
    folder = chosen.resolve().parents[1]
    record = read_run(folder)
    position = None if record["status"] == "imported" else checkpoint.position(chosen)
    return Origin(place, folder, record, model_config(folder, record), position)


def defaults(origin: Origin, settings: FinetuneConfig) -> dict[str, Any]:
    """The configuration that the command's flags stand over: the model's own, as far as it is of use."""
    own = origin.record["config"]
    kept = {name: own[name] for name in _KEPT if name in own}
    batch = {"sequence": own["batch"]["sequence"]}
    if origin.position is not None:
        batch = own["batch"] | {"ramp_from": 0}
    begun = {"init_from": origin.place, "tokens": MOST_TOKENS, "batch": batch}
    if settings.chat:
        return kept | begun | {"packing": "bestfit", "optimizer": _slower(own["optimizer"])}
    if origin.position is None:
        raise UsageError(f"{origin.place}: was not trained here, so no mixture of its own is left to read; give --chat")
    mixture = {name: own[name] for name in _OF_THE_MIXTURE if name in own}
    return kept | mixture | begun | {"first_sequence": origin.position.next_sequence}


def prepare(origin: Origin, settings: FinetuneConfig, config: TrainConfig) -> TrainConfig:
    """The run, with its data in place.

    Raises:
        UsageError: a budget or a folder is missing, or what is left to read is too little.
        DataError: conversations that cannot be tokenised.
    """
    if not config.output:
        raise UsageError("--output is missing: the folder of the new run")
    if config.folder.resolve() == origin.folder.resolve():
        raise UsageError(f"--output {config.output}: the model's own run; give another folder")
    if settings.chat:
        config = _on_conversations(origin, settings, config)
    else:
        _require_unread(origin, settings, config)
    _copy_tokenizer(origin, settings, config.folder)
    return config


def _on_conversations(origin: Origin, settings: FinetuneConfig, config: TrainConfig) -> TrainConfig:
    if config.data or config.mixture or config.packing != "bestfit":
        raise UsageError(
            "--chat makes shards of its own, packed by best fit; leave --data, --mixture and --packing out"
        )
    tokenizer = Path(config.tokenizer) if config.tokenizer else origin.folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise UsageError(f"{tokenizer}: no such file; give the model's tokenizer.json with --tokenizer")
    windows = conversations.write(
        settings.chat, config.folder, tokenizer, origin.eos, _template(origin, settings), settings.valid_share,
        settings.max_bad_share, config.batch.sequence,
    )  # fmt: skip
    tokens = config.tokens
    if tokens == MOST_TOKENS:
        steps = int(windows * settings.epochs) // config.batch.sequences
        if not steps:
            raise UsageError(
                f"{settings.epochs:g} epochs of {windows:,} windows of {config.batch.sequence} tokens are less than "
                f"one step's {config.batch.sequences}; give more --epochs, or fewer --batch.sequences"
            )
        tokens = steps * config.batch.tokens
    log.info("%s steps, learning rate up to %g", f"{tokens // config.batch.tokens:,}", config.optimizer.learning_rate)
    folder = str(conversations.folder_of(config.folder))
    return dataclasses.replace(config, data=folder, mixture=conversations.NAME, tokens=tokens)


def _require_unread(origin: Origin, settings: FinetuneConfig, config: TrainConfig) -> None:
    """
    Raises:
        UsageError: the order is not the one that the model has read, or goes on with text that it has read.
    """
    assert origin.position is not None
    if config.tokens == MOST_TOKENS:
        raise UsageError("--tokens is missing: how much of the mixture to read on")
    first, read = config.first_sequence, origin.position.next_sequence
    if first < read and not settings.reread:
        raise UsageError(
            f"--first-sequence {first}: {origin.place} has read the sequences before {read}; leave it out, or give "
            "--reread"
        )
    _dataset, _mixture, plan = resolve_data(config)
    if plan.identity(read) != origin.position.plan:
        raise UsageError(
            f"{origin.place}: with this budget the mixture has another order than the model has read, so nobody knows "
            "what is left of it: leave --data, --mixture, --data-seed, --packing and --batch.sequence as they were; "
            "phases with from_share and --match-repetition change with the budget, and cannot be gone on with"
        )
    left = _unread(plan, first) * config.batch.sequence // config.batch.tokens * config.batch.tokens
    if config.trained_tokens <= left:
        return
    told = ", ".join(_read_again(plan, first, plan.sequence_count))
    mend = f"give --tokens {left} or less, or --reread" if left else "give --reread to read it all the same"
    if not settings.reread:
        raise UsageError(f"{origin.place}: {told} would be read a second time; {left:,} tokens are left; {mend}")
    log.info("%s read again", told)


def _read_again(plan: Plan, first: int, until: int) -> list[str]:
    """The sources of which sequences from `first` to `until` begin a unit that was read before."""
    before, after = plan.units(first), plan.units(until)
    return [source.name for source in plan.sources if after[source.name] > max(before[source.name], source.windows)]


def _unread(plan: Plan, first: int) -> int:
    """How many sequences from `first` on begin no unit that was read before."""
    numbers = range(first + 1, plan.sequence_count + 1)
    return bisect.bisect_left(numbers, True, key=lambda until: bool(_read_again(plan, first, until)))


def _slower(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The learning rates times RATE."""
    slower = optimizer | {"learning_rate": optimizer["learning_rate"] * RATE}
    for name in GROUPS:
        own = optimizer.get(name) or {}
        if own.get("learning_rate") is not None:
            slower[name] = own | {"learning_rate": own["learning_rate"] * RATE}
    return slower


def _template(origin: Origin, settings: FinetuneConfig) -> Path | None:
    if settings.chat_template == "none":
        return None
    return Path(settings.chat_template) if settings.chat_template else template_file.find_template(origin.folder)


def _copy_tokenizer(origin: Origin, settings: FinetuneConfig, out: Path) -> None:
    """What tokenizes, and the template that was trained on: they go with the model wherever it is exported to."""
    out.mkdir(parents=True, exist_ok=True)
    for file in hub.tokenizer_files(origin.folder):
        if not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    if settings.chat:
        template = _template(origin, settings)
        text = template_file.read(template) if template else conversations.template(out, origin.eos)
        write_text(out / template_file.FILE, text)
