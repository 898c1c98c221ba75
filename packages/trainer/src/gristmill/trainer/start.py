"""What comes before the first step: agree with what is there, build the model, and bring it to where the run stands.

One idea: a run's whole state is its newest checkpoint; without one, it is what --init-from names, or the seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import from_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object
from gristmill.trainer import record
from gristmill.trainer.allocator import keep_freed_memory
from gristmill.trainer.checkpoints import checkpoint, initial
from gristmill.trainer.checkpoints.checkpoint import Pieces, Position, State
from gristmill.trainer.checkpoints.initial import Initial
from gristmill.trainer.config import TrainConfig, differences
from gristmill.trainer.data import Document, TrainingData, held_out, open_training
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, name_of, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.model.filling import Unfilled
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import optimizer
from gristmill.trainer.optim.optimizer import Optimizer
from gristmill.trainer.parallel import fits
from gristmill.trainer.parallel.shards import Shards, spread
from gristmill.trainer.parallel.world import World
from gristmill.trainer.run_folder import FORMAT, LOST, read_run
from gristmill.trainer.watch.alarms import Alarms
from gristmill.trainer.watch.patience import Patience

log = logging.getLogger("gristmill.trainer")


@dataclass
class Run:
    """A run under way: what does not change, and position, alarms and patience, which do."""

    config: TrainConfig
    data: TrainingData
    record: dict[str, Any]  # run.json, but for where the run stands
    model: Transformer
    optimizer: Optimizer
    world: World
    position: Position
    alarms: Alarms
    patience: Patience
    rounding: precision.StochasticRounding | None = None
    held_out: list[Document] = field(default_factory=list)
    began: float = 0.0  # by the clock of time.perf_counter(), as if it had never been stopped

    @property
    def seconds(self) -> float:
        """Spent on the run so far."""
        return time.perf_counter() - self.began

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def pieces(self) -> Pieces:
        """What of the checkpoint's tensors is this process's."""
        return dict(zip(checkpoint.FILES, (self.optimizer.shards.pieces(), self.optimizer.state()), strict=True))

    def state(self, scheduled: bool = True, extra: bool = False, back_to: int | None = None) -> State:
        """What a checkpoint holds beside tensors; for what is given, see State."""
        alarms, patience = self.alarms.state(), self.patience.state()
        return State(self.position, scheduled, extra, back_to, alarms, patience, checkpoint.random_state())


def open_data(config: TrainConfig, world: World) -> TrainingData:
    """What the run reads. Of the processes of a machine the first fetches and checks it, then the others open it.

    Raises:
        UsageError: several processes, and data that comes and goes as the run goes on.
    """
    if config.disk_gb and not world.is_alone:
        raise UsageError(
            f"--disk-gb is for one process, and there are {world.size}; leave it out: all is fetched first"
        )
    data = open_training(config) if world.is_first_here else None
    world.wait(long=True)
    data = data or open_training(dataclasses.replace(config, check_shards=False))
    fits.require(config, (phase.length for phase in data.plan.phases), world.size)
    return data


def agree(config: TrainConfig, data: TrainingData) -> dict[str, Any] | None:
    """The run.json that is there already; refused if it is another run's."""
    path = config.folder / "run.json"
    if not path.exists():
        if checkpoint.latest(config.folder):  # of a configuration that nothing tells
            raise DataError(f"{path}: no such file, and checkpoints stand beside it; {LOST}")
        return None
    existing = read_object(path, LOST)
    if existing.get("format") != FORMAT:
        raise UsageError(f"{path}: not a training run (format {existing.get('format')!r}); give another --output")
    if changed := differences(read_run(config.folder)["config"], config):
        raise UsageError(
            f"{config.folder}: holds a run with {'; '.join(changed)}. Give another --output, or the same values"
        )
    newest = checkpoint.latest(config.folder)
    try:
        if newest:  # else it starts anew
            at = checkpoint.position(newest)
            data.plan.require_identity(at.next_sequence, at.plan)
    except DataError as error:
        raise DataError(f"{config.folder}: {error}, with another --output") from None
    return existing


def begin(config: TrainConfig, data: TrainingData, existing: dict[str, Any] | None, world: World) -> Run:
    """Build model and optimiser, bring both to where the run stands, and write run.json.

    Each process makes room for its share of the model alone. Of what it is filled with, one whole tensor at a time is
    in memory.

    Raises:
        UsageError: patience without documents to judge by.
    """
    sources = [source.name for source in data.plan.sources]
    documents: list[Document] = []
    if config.validate_tokens:
        documents = held_out(data.dataset, "valid", config.validate_tokens, data.tokenizer, sources)
    if config.patience.validations and not documents:
        raise UsageError(
            f"patience.validations: {config.data} has no document in its valid splits; leave it out, or publish "
            "shards with a valid_fraction"
        )
    newest = checkpoint.latest(config.folder)
    weights = initial.find(config.init_from) if config.init_from and newest is None else None
    shape = _shape(config, data, existing, weights)
    torch.set_num_threads(config.threads)
    if world.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    if world.is_first:
        config.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(config.folder)
        if data.tokenizer is not None:
            with contextlib.suppress(shutil.SameFileError):  # given as the run's own
                shutil.copyfile(data.tokenizer, config.folder / "tokenizer.json")
    rounding = precision.StochasticRounding(config.seed, world.device) if config.stochastic_rounding else None
    numbers = precision.build(config.precision, config.expert_precision, rounding)
    with Unfilled():
        model = Transformer(shape, numbers, config.recompute)
    if config.compile:
        model.compile_blocks()
    spread(model, world, config.parallel)
    shards = Shards(model, world)
    if weights is not None:
        initial.load(weights, shards.pieces(), shards.own)
    elif newest is None:
        model.initialise(config.seed, shards.fill)
        shards.require_filled()
    facts = record.make(config, data, shape, world)
    if config.init_from:
        facts["initialised_from"] = weights.about if weights else (existing or {}).get("initialised_from")
    run = Run(
        config, data, facts, model, optimizer.build(model, config.optimizer, shards), world,
        Position(next_sequence=config.first_sequence), Alarms(config.alarms, shape.top_k), Patience(config.patience),
        rounding, documents,
    )  # fmt: skip
    if newest:
        restore(run, newest)
        if world.is_first:  # where a kill came before that
            checkpoint.rotate(config.folder, config.keep_checkpoints, config.alarms.reach)
    spent = (existing or {}).get("seconds", 0.0)  # with those of steps that were lost
    run.began = time.perf_counter() - max(run.position.seconds, spent)
    write_record(run, "running")
    if world.is_first:
        _announce(run, shape, newest)
    return run


def restore(run: Run, path: Path) -> None:
    """Bring the run to a checkpoint."""
    state = checkpoint.restore(path, run.pieces, run.world)
    run.position = state.position
    run.alarms.load_state(state.alarms)
    run.patience.load_state(state.patience)


def write_record(run: Run, status: str, **more: str | None) -> dict[str, Any]:
    run.position = dataclasses.replace(run.position, seconds=run.seconds)
    written = record.now(run.record, run.position, status, **more)
    if run.world.is_first:
        record.write(run.folder, written)
    return written


def _shape(
    config: TrainConfig, data: TrainingData, existing: dict[str, Any] | None, weights: Initial | None
) -> ModelConfig:
    """As --model says; with --init-from as the model there, or, of a run that has begun, as it was recorded."""
    vocab, where = data.dataset.tokenizer.vocab_size, config.folder / "run.json"
    if weights is not None:
        initial.require_tokenizer(weights, data.dataset, config.data)
        began = ((existing or {}).get("initialised_from") or weights.about)["sha256"]
        if weights.about["sha256"] != began:
            raise DataError(
                f"{config.init_from}: not the weights that {config.folder} began with (sha256 {began[:12]}); "
                "bring those back, or give another --output"
            )
        shape = initial.shape(weights, config.model, vocab)
    elif config.init_from and existing:
        shape = from_mapping(ModelConfig, existing["model"], str(where))
    else:
        shape = resolve(config.model, vocab)
    if shape.vocab < vocab:
        raise UsageError(f"model.vocab ({shape.vocab}) is less than the data's ({vocab})")
    return shape


def _announce(run: Run, model: ModelConfig, newest: Path | None) -> None:
    config, device, counts, processes = run.config, run.device, count(model), run.world.size
    why = "given" if config.device != "auto" else "cuda is available" if device.type == "cuda" else "no cuda here"
    flops = counts.flops_per_token(config.batch.sequence) / 1e6
    name = config.init_from or name_of(config.model)
    log.info(
        f"{name}: {counts.total:,} parameters, {counts.active:,} active, "
        f"{flops:.1f} MFLOP/token; {f'{processes} processes, ' if processes > 1 else ''}"
        f"{device.type} ({why}), {config.threads} thread(s), {config.precision}; "
        f"{config.steps:,} steps of {config.batch.tokens:,} tokens"
    )
    if newest:
        log.info("resuming after step %s (%s)", f"{run.position.step:,}", newest)
    elif config.init_from:
        log.info("initialised from %s (sha256 %.12s)", config.init_from, run.record["initialised_from"]["sha256"])
