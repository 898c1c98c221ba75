"""What a run would take, before anything starts: text, steps, memory, arithmetic, time, money. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gristmill.base.errors import UsageError
from gristmill.shards.mixture import Mixture
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset
from gristmill.trainer.checkpoints import initial
from gristmill.trainer.data import resolve_data
from gristmill.trainer.model.config import ModelConfig, name_of, resolve
from gristmill.trainer.model.counts import count
from gristmill.trainer.planning import gpus, memory, timing
from gristmill.trainer.planning.plan_config import PlanConfig
from gristmill.trainer.planning.table import size
from gristmill.trainer.run_folder import pick_device

FEWEST_TOKENS = 20  # per parameter: what dense models of a given cost learn best from (arXiv 2203.15556, table 3)


def plan(config: PlanConfig) -> dict[str, Any]:
    """The plan as JSON: mixture, sources, model, memory, time, cost, warnings. Of several meshes, the best one's, and
    all of them under `meshes`.

    Raises:
        UsageError: what trainer run would refuse too; a GPU whose peak or links are not known, or not in this number
            format; a mesh that cannot be.
    """
    data = _data(config)
    vocab = data[0].tokenizer.vocab_size if data else None
    model = _model(config, vocab)
    counts = count(model)
    result: dict[str, Any] = {
        "mixture": data[1].name if data else None,
        "data": data[0].manifest.content_id if data else None,
        "tokens": config.trained_tokens,
        "steps": config.steps,
        "batch_tokens": config.batch.tokens,
        "sequence": config.batch.sequence,
        "sources": _sources(config, data[1], data[2]) if data else [],
        "model": {
            "name": config.init_from or name_of(config.section),
            "parameters": counts.total,
            "active_parameters": counts.active,
            "tokens_per_active_parameter": config.trained_tokens / counts.active,
        },
        "flops": counts.flops_per_token(config.batch.sequence) * config.trained_tokens,
        "checkpoints": {"bytes": memory.checkpoint(model, config), "kept": config.keep_checkpoints},
    }
    if config.gpu:
        entries = gpus.reckon(config, model, counts)
        result |= entries[0] | ({"meshes": entries} if len(entries) > 1 else {})
    else:
        result |= _here(config, model, _document_tokens(data[2], data[0]) if data else config.batch.sequence)
    return result | {"warnings": list(_warnings(result, bool(config.init_from)))}


def _data(config: PlanConfig) -> tuple[Dataset, Mixture, Plan] | None:
    for name, other in (("mixture", "data"), ("data", "mixture")):
        if getattr(config, other) and not getattr(config, name):
            raise UsageError(f"--{name} is missing beside --{other}; see trainer plan --help")
    return resolve_data(config) if config.data else None


def _model(config: PlanConfig, vocab: int | None) -> ModelConfig:
    if config.init_from:
        first = initial.find(config.init_from)
        return initial.shape(first, config.section, vocab or first.config.vocab)
    return resolve(config.section, vocab)


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


def _here(config: PlanConfig, model: ModelConfig, document_tokens: float) -> dict[str, Any]:
    """Memory, machine, time and cost; no step is timed that the machine could not hold."""
    device = pick_device(config.device)
    name = f"{config.threads} CPU thread(s)" if device.type == "cpu" else torch.cuda.get_device_name(device)
    has = _memory_of(device)
    needed = memory.estimate(model, config)
    seconds, speed, how = None, None, "no step was timed"
    if config.timed_steps and needed.total <= has:
        speed = config.batch.tokens / timing.seconds_of_step(model, config, device, config.timed_steps, document_tokens)
        seconds, how = config.trained_tokens / speed, f"{config.timed_steps} steps timed here, on {name}"
    return {
        "machine": {"name": name, "memory": has},
        "memory": {**needed._asdict(), "total": needed.total, "assumes": memory.ASSUMES},
        "time": {"seconds": seconds, "tokens_per_second": speed, "how": how},
        "cost": gpus.cost(config.price_per_hour, seconds),
    }


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
    needed, machine = plan["memory"]["total"], plan["machine"]
    has = machine["memory"]
    if has is not None and needed > has * (gpus.FILLED if "gpus" in machine else 1):
        more = ", more GPUs" if "gpus" in machine else ""
        yield (
            f"{machine['name']} has {size(has)} of memory, and a step takes {size(needed)}: try a smaller "
            f"--batch.micro, --recompute{more}, or a smaller model"
        )
