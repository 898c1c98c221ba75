"""The training loop, as one page reads: step, log, judge, validate, save, finish.

One idea: a run's whole state is its newest checkpoint. Whatever ends a run, the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from gristmill.base.config import from_mapping
from gristmill.base.errors import GristmillError
from gristmill.base.progress import Progress
from gristmill.shards.loader import Batch
from gristmill.trainer import checked, record, start
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import TrainingData, to_example
from gristmill.trainer.evaluation import evaluate
from gristmill.trainer.feed import batches, tokens_by_source
from gristmill.trainer.lock import alone
from gristmill.trainer.optim.schedule import factor, learning_rate
from gristmill.trainer.parallel.world import World, joined
from gristmill.trainer.run_folder import pick_device, read_run
from gristmill.trainer.signals import stop_after_step
from gristmill.trainer.start import Run
from gristmill.trainer.step import StepResult, nothing, train_step
from gristmill.trainer.trackers.open import Trackers, find_adapters, open_trackers
from gristmill.trainer.watch import hardware
from gristmill.trainer.watch.alarms import Alert
from gristmill.trainer.watch.meter import Meter
from gristmill.trainer.watch.samples import write_samples

log = logging.getLogger("gristmill.trainer")


def train(config: TrainConfig, stop: list[int] | None = None) -> dict[str, Any]:
    """Train to the end of the budget, or on from where the run in config.output stands; answers run.json's content.

    A finished run is left as it is. SIGTERM or Ctrl-C saves a checkpoint after the current step, then ends with
    SystemExit(143) or KeyboardInterrupt; as does the number of a signal in `stop`, whenever it comes there.

    Raises:
        UsageError: config.output holds a run with another configuration, or the configuration is not possible.
        DataError: the shards or the checkpoint are damaged, or are not those the run began with.
        WriteError: a checkpoint or the log could not be written.
        GristmillError: an alarm whose policy is to stop; or another process trains there.
    """
    config.require_paths()
    find_adapters(config.trackers)
    with joined(config.parallel, pick_device(config.device)) as world:
        if not world.is_first:
            log.setLevel(logging.ERROR)  # the first one tells
        data = start.open_data(config, world)
        if config.require_check:
            checked.require(config, data)
        existing = start.agree(config, data)
        if existing and existing["status"] == "done":
            log.info("%s: already done (%s tokens); nothing to do", config.folder, f"{existing['tokens']:,}")
            return existing
        world.wait()  # until all have seen what is there
        return _train(config, data, existing, world, stop)


def _train(
    config: TrainConfig, data: TrainingData, existing: dict[str, Any] | None, world: World, stop: list[int] | None
) -> dict[str, Any]:
    with alone(config.folder) if world.is_first else contextlib.nullcontext(), stop_after_step(stop) as stopped:
        run = start.begin(config, data, existing, world)
        try:
            reason = _run_steps(run, stopped)
        except BaseException as error:
            failed = isinstance(error, Exception)  # else a signal
            status, told = ("failed", str(error)) if failed else ("interrupted", None)
            with contextlib.suppress(OSError):  # a full disk is told of already
                start.write_record(run, status, error=told)
            raise
        return start.write_record(run, "done", reason=reason)


def resume(folder: Path) -> dict[str, Any]:
    """Go on with the run in `folder`, with the configuration stored there."""
    return train(stored_config(folder))


def stored_config(folder: Path) -> TrainConfig:
    stored = read_run(folder)["config"] | {"output": str(folder)}
    return from_mapping(TrainConfig, stored, str(folder / "run.json"))


def _run_steps(run: Run, stopped: list[int]) -> str | None:
    """To the last step; answers why it was not that of the budget, if patience ended it."""
    config, first = run.config, run.position
    peak, world = hardware.of_device(run.device, run.model.precision.dtype), run.world
    run.record["hardware"] = peak and peak._asdict()
    flops_each = run.record["flops_per_token"] / world.size  # on each device, for a token of the batch
    meter = Meter(run.device, peak, flops_each, config.price_per_hour)
    begins = checkpoint.latest(run.folder) is None
    told = -1 if begins else first.step  # what was told of later steps is told again
    with (
        contextlib.closing(open_trackers(config.trackers, run.folder, run.record, told, world.is_first)) as events,
        CheckpointWriter(run.folder, config.keep_checkpoints, config.alarms.reach, world) as writer,
        contextlib.closing(batches(config, run.data, first)) as source,
        Progress("train", total=config.steps - first.step, unit="steps", quiet=not world.is_first) as progress,
    ):
        if not begins:
            where = {"device": run.device.type, "processes": world.size}
            events.write("resume", first.step, **where, time=round(time.time(), 3))
        writer.prepare(run.pieces)
        save = partial(_save, run, events, writer)
        if config.alarms.rolls_back and begins:
            save()  # something to go back to
        before = time.perf_counter()
        while run.patience.reason is None and (upcoming := next(source, None)):
            step, batch = upcoming
            writer.check()
            result = _step(run, step, batch)
            seconds = time.perf_counter() - before
            run.position = dataclasses.replace(
                run.position, step=step, next_sequence=batch.next_sequence, tokens=config.tokens_after(step)
            )
            costs = meter.read(batch.tokens_BS.size - len(batch.tokens_BS), seconds, run.seconds)
            _log_step(run, events, result, costs, tokens_by_source(run.data, batch))
            back_to = _judge(run, events, writer, result)
            is_last = step == config.steps
            is_best = bool(run.held_out) and _due(step, config.validate_every, is_last) and _validate(run, events)
            is_last = is_last or run.patience.reason is not None
            if run.data.tokenizer and config.samples.tokens and _due(step, config.samples.every, is_last):
                events.write("samples", step, samples=_samples(run))
            regular = _due(step, config.checkpoint_every, is_last)
            if scheduled := regular or is_best or back_to is not None:
                save(extra=not regular, back_to=back_to)
            progress.update(step - first.step, tokens=run.position.tokens - first.tokens)
            signalled = world.largest(stopped[0] if stopped else 0)  # all stop after the same step
            if signalled and not is_last:
                if not scheduled:
                    save(scheduled=False)
                writer.wait()
                log.info("stopped after step %s; trainer resume %s goes on", f"{step:,}", run.folder)
                raise KeyboardInterrupt if signalled == signal.SIGINT else SystemExit(128 + signalled)
            before = time.perf_counter()
    return run.patience.reason


def _due(step: int, every: int, always: bool) -> bool:
    return always or (every > 0 and step % every == 0)


def _step(run: Run, step: int, batch: Batch) -> StepResult:
    config = run.config
    example = to_example(batch, run.device)
    micro = config.rows_of_pass(example.inputs_BS.shape[1])
    before_pass = nothing if run.rounding is None else partial(run.rounding.begin, step)
    share = factor(config.optimizer, step, config.steps)
    observe = _due(step, config.health.every, False)
    return train_step(run.model, run.optimizer, example, micro, share, run.alarms.accept, observe, before_pass)


def _log_step(
    run: Run, events: Trackers, result: StepResult, costs: dict[str, float | None], read: dict[str, int]
) -> None:
    config, position = run.config, run.position
    events.write(
        "step",
        position.step,
        tokens=position.tokens,
        loss=result.nll,
        learning_rate=learning_rate(config.optimizer, position.step, config.steps),
        moved=result.moved,
        grad_norm=result.grad_norm,
        norms=result.norms,
        updates=result.updates,
        **costs,
        tokens_by_source=read,
        time=round(time.time(), 3),
        router=result.router and result.router._asdict(),
    )


def _judge(run: Run, events: Trackers, writer: CheckpointWriter, result: StepResult) -> int | None:
    """Look for what is wrong with a step, and do about it what is configured; answers the step rolled back to."""
    step = run.position.step
    loads = result.router.load if result.router else ()
    alerts = run.alarms.judge(step, result.nll, result.grad_norm, loads)
    for alert in alerts:
        log.warning("step %s: %s: %s (%s)", f"{step:,}", alert.alarm, alert.told, alert.policy)
        events.write("alarm", step, **alert._asdict())
    if not alerts or alerts[0].policy in ("warn", "skip"):
        return None
    writer.wait()  # the newest checkpoint may still be on its way
    since = min(alert.since for alert in alerts if alert.policy == alerts[0].policy)
    target = checkpoint.before(run.folder, since)
    if alerts[0].policy == "stop" or target is None:
        raise GristmillError(_stopped(run, alerts[0], target))
    position, acted = run.position, run.alarms.acted
    start.restore(run, target)
    run.position, run.alarms.acted = position, acted  # data goes on; acts count, else a run could roll back for ever
    run.alarms.collapsed = []  # steps in a row are counted from here
    back_to = checkpoint.step_of(target)
    events.write("roll_back", step, to=back_to)
    log.warning("weights are those after step %s again; the data goes on", f"{back_to:,}")
    return back_to


def _stopped(run: Run, alert: Alert, target: Path | None) -> str:
    left = f"the last good checkpoint is {target}" if target else "there is no checkpoint from before"
    mend = "Start again with a lower --optimizer.learning-rate, a longer --optimizer.warmup, or --precision fp32"
    if alert.alarm in ("router_collapse", "dead_experts"):
        mend = "Start again with another --model.router, or a larger --model.balance-loss or --model.sequence-loss"
    return (
        f"{run.folder}: step {run.position.step}: {alert.told} ({alert.alarm}); {left}. {mend}; or go on with another "
        f"--alarms.{alert.alarm.replace('_', '-')}"
    )


def _validate(run: Run, events: Trackers) -> bool:
    """Answers whether the held-out loss is the best so far, where patience waits for that."""
    eos = run.data.dataset.tokenizer.eos_id
    nll = evaluate.score(run.model, run.held_out, run.config.batch.sequence, eos, run.world)
    scores = evaluate.summarise(run.held_out, nll)
    events.write("validation", run.position.step, **scores)
    return run.patience.judge(run.position.step, scores["loss"])


def _samples(run: Run) -> list[dict[str, str]]:
    tokenizer, eos = run.data.tokenizer, run.data.dataset.tokenizer.eos_id
    assert tokenizer is not None
    config = run.config
    return write_samples(run.model, tokenizer, config.samples, eos, eos, config.seed, config.batch.sequence)


def _save(run: Run, events: Trackers, writer: CheckpointWriter, **why: Any) -> None:
    """The event first, then the checkpoint: a crash between the two leaves an event that the next resume cuts off.
    `why`: as of Run.state()."""
    at = run.position
    run.position = at = dataclasses.replace(at, plan=run.data.plan.identity(at.next_sequence), seconds=run.seconds)
    events.write("checkpoint", at.step, path=f"checkpoints/step-{at.step:08d}")
    then = partial(record.write, run.folder, record.now(run.record, at, "running"))
    writer.save(run.state(**why), run.pieces, events.sync, then)
