"""The training loop, as one page reads: open, agree with what is there, step, log, validate, save, finish.

One idea: a run's whole state is its newest checkpoint. Whatever ends a run, the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.base.progress import Progress
from gristmill.shards.loader import Batches
from gristmill.trainer import checkpoint, evaluate
from gristmill.trainer.checkpoint import Position
from gristmill.trainer.config import TrainConfig, differences
from gristmill.trainer.data import Document, TrainingData, held_out, open_training, to_example
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import adamw
from gristmill.trainer.optim.schedule import learning_rate
from gristmill.trainer.run_folder import FORMAT, pick_device, read_run
from gristmill.trainer.step import StepResult, train_step
from gristmill.trainer.trackers.jsonl import EventLog

log = logging.getLogger("gristmill.trainer")


@dataclass
class _Run:
    """A run under way: what does not change, and `position`, which does."""

    config: TrainConfig
    data: TrainingData
    record: dict[str, Any]  # run.json
    model: Transformer
    optimizer: torch.optim.Optimizer
    position: Position
    rounding: precision.StochasticRounding | None = None
    held_out: list[Document] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.config.folder


def train(config: TrainConfig) -> dict[str, Any]:
    """Train to the end of the budget, or on from where the run in config.output stands; answers run.json's content.

    A finished run is left as it is. SIGTERM or Ctrl-C saves a checkpoint after the current step, then ends with
    SystemExit(143) or KeyboardInterrupt.

    Raises:
        UsageError: config.output holds a run with another configuration, or the configuration is not possible.
        DataError: the shards or the checkpoint are damaged, or are not those the run began with.
        GristmillError: the loss or the gradient is not finite.
    """
    config.require_paths()
    data = open_training(config)
    model_config = resolve(config.model, data.dataset.tokenizer.vocab_size)
    if model_config.vocab < data.dataset.tokenizer.vocab_size:
        raise UsageError(
            f"model.vocab ({model_config.vocab}) is less than the data's ({data.dataset.tokenizer.vocab_size})"
        )
    existing = _existing(config, data)
    if existing and existing["status"] == "done":
        log.info("%s: already done (%s tokens); nothing to do", config.folder, f"{existing['tokens']:,}")
        return existing
    with _stop_after_step() as stopped:
        run = _open(config, data, model_config)
        try:
            _run_steps(run, stopped)
        except BaseException as error:
            failed = isinstance(error, Exception)  # else a signal
            _write_record(run, "failed" if failed else "interrupted", str(error) if failed else None)
            raise
        _write_record(run, "done")
    return run.record


def resume(folder: Path) -> dict[str, Any]:
    """Go on with the run in `folder`, with the configuration stored there."""
    stored = read_run(folder)["config"] | {"output": str(folder)}
    return train(from_mapping(TrainConfig, stored, str(folder / "run.json")))


def _existing(config: TrainConfig, data: TrainingData) -> dict[str, Any] | None:
    """The run.json that is there already; refused if it is another run's."""
    path = config.folder / "run.json"
    if not path.exists():
        return None
    existing = read_json(path)
    if existing.get("format") != FORMAT:
        raise UsageError(f"{path}: not a training run (format {existing.get('format')!r}); give another --output")
    if changed := differences(existing["config"], config):
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


def _open(config: TrainConfig, data: TrainingData, model_config: ModelConfig) -> _Run:
    """Build model and optimiser, and bring both to the newest checkpoint if there is one."""
    device = pick_device(config.device)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.folder.mkdir(parents=True, exist_ok=True)
    for leftover in config.folder.glob("checkpoints/.step-*"):  # of a process killed while it saved
        shutil.rmtree(leftover)
    if data.tokenizer is not None:
        shutil.copyfile(data.tokenizer, config.folder / "tokenizer.json")
    rounding = precision.StochasticRounding(config.seed, device) if config.stochastic_rounding else None
    numbers = precision.build(config.precision, config.expert_precision, rounding)
    model = Transformer(model_config, numbers, config.recompute)
    model.initialise(config.seed)
    model.to(device)
    if config.compile:
        model.compile_blocks()
    optimizer = adamw.build(model, config.optimizer)
    newest = checkpoint.latest(config.folder)
    position = checkpoint.restore(newest, model, optimizer) if newest else Position()
    run = _Run(config, data, _record(config, data, model_config, device), model, optimizer, position, rounding)
    if config.validate_tokens:
        sources = [source.name for source in data.plan.sources]
        run.held_out = held_out(data.dataset, "valid", config.validate_tokens, data.tokenizer, sources)
    _write_record(run, "running")
    _announce(config, model_config, device)
    if newest:
        log.info("resuming after step %s (%s)", f"{position.step:,}", newest)
    return run


def _announce(config: TrainConfig, model: ModelConfig, device: torch.device) -> None:
    why = "given" if config.device != "auto" else "cuda is available" if device.type == "cuda" else "no cuda here"
    counts = count(model)
    flops = counts.flops_per_token(config.batch.sequence) / 1e6
    log.info(
        f"{config.model.preset}: {counts.total:,} parameters, {counts.active:,} active, "
        f"{flops:.1f} MFLOP/token; {device.type} ({why}), {config.threads} thread(s), {config.precision}; "
        f"{config.steps:,} steps of {config.batch.tokens:,} tokens"
    )


def _run_steps(run: _Run, stopped: list[int]) -> None:
    config, first = run.config, run.position
    device = run.model.embedding_VD.device
    events = EventLog(run.folder / "events.jsonl", first.step if first.step else -1)
    disk = int(config.disk_gb * 1e9)
    batches = Batches(run.data.plan, run.data.dataset, config.batch.tokens, first.next_sequence, disk_bytes=disk)
    source = iter(batches)
    started = time.perf_counter()
    with (
        contextlib.closing(events),
        contextlib.closing(source),
        Progress("train", total=config.steps - first.step, unit="steps") as progress,
    ):
        for step in range(first.step + 1, config.steps + 1):
            before = time.perf_counter()
            example = to_example(next(source), device)
            micro = max(config.batch.micro * config.batch.sequence // example.inputs_BS.shape[1], 1)
            rate = learning_rate(config.optimizer, step, config.steps)
            if run.rounding is not None:
                run.rounding.begin(step)
            result = train_step(run.model, run.optimizer, example, micro, rate, config.optimizer.clip)
            now = time.perf_counter()
            if not (math.isfinite(result.nll) and math.isfinite(result.grad_norm)):
                raise GristmillError(_diverged(run, step, result))
            run.position = Position(
                step=step,
                next_sequence=batches.next_sequence,
                tokens=step * config.batch.tokens,
                seconds=first.seconds + now - started,
            )
            _log_step(events, run.position, result, rate, config.batch.tokens / (now - before))
            is_last = step == config.steps
            if run.held_out and (is_last or _due(step, config.validate_every)):
                events.write("validation", step, **_validate(run))
            if is_last or stopped or _due(step, config.checkpoint_every):
                _save(run, events, first.seconds + time.perf_counter() - started)
            progress.update(step - first.step, tokens=(step - first.step) * config.batch.tokens)
            if stopped and not is_last:
                log.info("stopped after step %s; trainer resume %s goes on", f"{step:,}", run.folder)
                raise KeyboardInterrupt if stopped[0] == signal.SIGINT else SystemExit(128 + stopped[0])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save(run: _Run, events: EventLog, seconds: float) -> None:
    """The event first, then the checkpoint: a crash between the two leaves an event that the next resume cuts off."""
    position = run.position
    identity = run.data.plan.identity(position.next_sequence)
    run.position = dataclasses.replace(position, seconds=seconds, plan=identity)
    events.write("checkpoint", position.step, path=f"checkpoints/step-{position.step:08d}")
    events.sync()
    checkpoint.save(run.folder, run.position, run.model, run.optimizer, run.config.keep_checkpoints)
    _write_record(run, "running")


def _validate(run: _Run) -> dict[str, Any]:
    nll = evaluate.score(run.model, run.held_out, run.config.batch.sequence, run.data.dataset.tokenizer.eos_id)
    return evaluate.summarise(run.held_out, nll)


def _log_step(events: EventLog, position: Position, result: StepResult, rate: float, tokens_per_second: float) -> None:
    events.write(
        "step",
        position.step,
        tokens=position.tokens,
        loss=result.nll,
        learning_rate=rate,
        grad_norm=result.grad_norm,
        tokens_per_second=round(tokens_per_second, 1),
        time=round(time.time(), 3),
        router=result.router and result.router._asdict(),
    )


def _diverged(run: _Run, step: int, result: StepResult) -> str:
    newest = checkpoint.latest(run.folder)
    left = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
    return (
        f"{run.folder}: step {step}: loss {result.nll}, gradient norm {result.grad_norm}: "
        f"training has diverged; {left}. "
        "Start again with a lower --optimizer.learning-rate, a longer --optimizer.warmup, or --precision fp32"
    )


def _record(config: TrainConfig, data: TrainingData, model: ModelConfig, device: torch.device) -> dict[str, Any]:
    manifest, plan, counts = data.dataset.manifest, data.plan, count(model)
    tokenizer = data.dataset.tokenizer
    return {
        "format": FORMAT,
        "status": "running",
        "config": to_mapping(config),
        "model": to_mapping(model),
        "plan": plan.record(),
        "data": {"content_id": manifest.content_id, "mixture": plan.mixture, "sources": plan.summary()},
        "tokenizer": {name: getattr(tokenizer, name) for name in ("name", "sha256", "vocab_size", "eos_id")},
        "moe_layers": model.moe_layers,
        "parameters": counts.total,
        "active_parameters": counts.active,
        "flops_per_token": counts.flops_per_token(config.batch.sequence),
        "seed": config.seed,
        "device": device.type,
        "versions": {name: version(name) for name in ("torch", "numpy", "gristmill-trainer", "gristmill-shards")},
    }


def _write_record(run: _Run, status: str, error: str | None = None) -> None:
    position = run.position
    now = {"status": status, "step": position.step, "steps": run.config.steps, "tokens": position.tokens}
    run.record |= now | {"seconds": round(position.seconds, 3), "error": error}
    write_json(run.folder / "run.json", run.record)


@contextlib.contextmanager
def _stop_after_step() -> Iterator[list[int]]:
    """A list that receives the first SIGTERM or SIGINT; a second one acts at once. Only in the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, _frame: Any) -> None:
        received.append(number)
        restore()
        log.info("signal %d: stopping after this step; again to stop at once", number)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
