"""What a run would take, before anything starts: text, steps, memory, arithmetic, time, money. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.base.progress import duration
from gristmill.shards.mixture import Mixture
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset
from gristmill.trainer.checkpoints import initial
from gristmill.trainer.data import resolve_data
from gristmill.trainer.model.config import ModelConfig, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.planning import memory, timing
from gristmill.trainer.planning.memory import Memory
from gristmill.trainer.planning.plan_config import PlanConfig
from gristmill.trainer.run_folder import pick_device
from gristmill.trainer.watch import hardware

FEWEST_TOKENS = 20  # per parameter: what dense models of a given cost learn best from (arXiv 2203.15556, table 3)


def plan(config: PlanConfig) -> dict[str, Any]:
    """The plan as JSON: mixture, sources, model, memory, time, cost, warnings.

    Raises:
        UsageError: what trainer run would refuse too; a GPU whose peak is not known, or not in this number format.
    """
    for name in ("mixture", "data"):
        if not getattr(config, name):
            raise UsageError(f"--{name} is missing; see trainer plan --help")
    dataset, mixture, order = resolve_data(config)
    vocab = dataset.tokenizer.vocab_size
    model = initial.shape(initial.find(config.init_from), config.model, vocab) if config.init_from else None
    model = model or resolve(config.model, vocab)
    counts = count(model)
    flops = counts.flops_per_token(config.batch.sequence) * config.trained_tokens
    needed = memory.estimate(model, config)
    machine, time = (
        _on_gpu(config, flops) if config.gpu else _here(config, model, needed, _document_tokens(order, dataset))
    )
    result = {
        "mixture": mixture.name,
        "data": dataset.manifest.content_id,
        "tokens": config.trained_tokens,
        "steps": config.steps,
        "batch_tokens": config.batch.tokens,
        "sources": _sources(config, mixture, order),
        "model": {
            "name": config.init_from or config.model.preset,
            "parameters": counts.total,
            "active_parameters": counts.active,
            "tokens_per_active_parameter": config.trained_tokens / counts.active,
        },
        "flops": flops,
        "memory": {**needed._asdict(), "total": needed.total, "assumes": memory.ASSUMES},
        "checkpoints": {"bytes": needed.checkpoint, "kept": config.keep_checkpoints},
        "machine": machine,
        "time": time,
        "cost": _cost(config, time["seconds"]),
    }
    return result | {"warnings": list(_warnings(result, bool(config.init_from)))}


def _sources(config: PlanConfig, mixture: Mixture, order: Plan) -> list[dict[str, Any]]:
    """A row for each; epochs are those at the end, what comes before --first-sequence among them."""
    before, after = order.token_counts(config.first_sequence), order.token_counts()
    epochs = order.epochs()
    return [
        {
            "source": source.name,
            "tokens": after[source.name] - before[source.name],
            "share": (after[source.name] - before[source.name]) / config.trained_tokens,
            "unique_tokens": source.windows * order.unit,
            "epochs": epochs[source.name],
            "max_epochs": mixture.epochs_of(source.name),
        }
        for source in order.sources
    ]


def _on_gpu(config: PlanConfig, flops: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """(machine, time)."""
    peak = hardware.of_gpu(config.gpu)
    if peak is None:
        raise UsageError(f"--gpu {config.gpu}: its peak is not known here{nearest(config.gpu, hardware.gpu_names())}")
    if "fp32" in (config.precision, config.expert_precision):
        raise UsageError(
            f"--gpu {config.gpu}: its peak is known in bf16, and products in fp32 are many times slower; give "
            "--precision bf16 (and --expert-precision bf16), or run trainer plan on that machine without --gpu"
        )
    seconds = flops / (peak.flops * config.mfu)
    how = f"{peak.name}, {peak.flops / 1e12:,.0f} TFLOP/s ({peak.source}), of which {config.mfu:.0%} is assumed"
    time = {"seconds": seconds, "tokens_per_second": config.trained_tokens / seconds, "how": how}
    return {"name": peak.name, "memory": peak.memory_gb and peak.memory_gb * 1e9}, time


def _here(
    config: PlanConfig, model: ModelConfig, needed: Memory, document_tokens: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(machine, time); no step is timed that the machine could not hold."""
    device = pick_device(config.device)
    name = f"{config.threads} CPU thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
    machine = {"name": name, "memory": _memory_of(device)}
    if not config.timed_steps or needed.total > machine["memory"]:
        return machine, {"seconds": None, "tokens_per_second": None, "how": "no step was timed"}
    step = timing.seconds_of_step(model, config, device, config.timed_steps, document_tokens)
    speed = config.batch.tokens / step
    how = f"{config.timed_steps} steps timed here, on {name}"
    return machine, {"seconds": config.trained_tokens / speed, "tokens_per_second": speed, "how": how}


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _document_tokens(order: Plan, dataset: Dataset) -> float:
    """Of the trained tokens, how many there are to a document."""
    per_token = 0.0
    for source, row in zip(order.sources, order.summary()):
        split = dataset.sources[source.name].split("train")
        per_token += float(row["share"]) * split.document_count / split.token_count
    return 1 / per_token


def _cost(config: PlanConfig, seconds: float | None) -> dict[str, float] | None:
    if seconds is None or not config.price_per_hour:
        return None
    return {"price_per_hour": config.price_per_hour, "total": seconds / 3600 * config.price_per_hour}


def _warnings(plan: Mapping[str, Any], has_learnt: bool) -> Iterator[str]:
    for row in plan["sources"]:
        if row["epochs"] > row["max_epochs"]:
            yield (
                f"{row['source']} is read {row['epochs']:.1f} times, and the mixture's max_epochs is "
                f"{row['max_epochs']:g}: lower the budget, or its share"
            )
    if (each := plan["model"]["tokens_per_active_parameter"]) < FEWEST_TOKENS and not has_learnt:
        yield (
            f"{each:.2g} tokens for each active parameter: for the same work a smaller model with more text learns "
            f"more (about {FEWEST_TOKENS} for dense models, arXiv 2203.15556); raise --tokens, or take a smaller model"
        )
    needed, has = plan["memory"]["total"], plan["machine"]["memory"]
    if has is not None and needed > has:
        yield (
            f"{plan['machine']['name']} has {_bytes(has)} of memory, and a step takes {_bytes(needed)}: try a "
            "smaller --batch.micro, --recompute, or a smaller model"
        )


def table(plan: Mapping[str, Any]) -> str:
    """For a terminal: sources, then a line for each kind of thing that the run takes."""
    model, memory, time, cost = (plan[name] for name in ("model", "memory", "time", "cost"))
    lines = [f"{'source':<20}{'share':>8}{'tokens':>18}{'unique tokens':>18}{'epochs':>9}{'at most':>9}"]
    lines += [
        f"{row['source']:<20.20}{row['share']:>8.1%}{row['tokens']:>18,}{row['unique_tokens']:>18,}"
        f"{row['epochs']:>9.2f}{row['max_epochs']:>9g}"
        for row in plan["sources"]
    ]
    kinds = ", ".join(f"{name} {_bytes(memory[name])}" for name in Memory._fields)
    checkpoints = plan["checkpoints"]
    facts = {
        "budget": f"{plan['tokens']:,} tokens of {plan['mixture']} in {plan['steps']:,} steps, "
        f"{plan['batch_tokens']:,} tokens each",
        "model": f"{model['name']}: {model['parameters']:,} parameters, {model['active_parameters']:,} active; "
        f"{model['tokens_per_active_parameter']:,.3g} tokens for each active one",
        "memory": f"{_bytes(memory['total'])}: {kinds} ({memory['assumes']})",
        "disk": f"{checkpoints['kept']} checkpoints of {_bytes(checkpoints['bytes'])}, and one while it is written",
        "work": f"{plan['flops']:.3g} FLOP",
    }
    if time["seconds"] is not None:
        facts["time"] = f"{duration(time['seconds'])} at {time['tokens_per_second']:,.0f} tokens/s ({time['how']})"
    if cost:
        facts["cost"] = f"{cost['total']:,.2f}, at {cost['price_per_hour']:g} an hour"
    lines += ["", *(f"{name:<8}{fact}" for name, fact in facts.items())]
    lines += [f"warning: {text}" for text in plan["warnings"]]
    return "\n".join(lines)


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
