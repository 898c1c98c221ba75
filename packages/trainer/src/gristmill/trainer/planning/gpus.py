"""A run on GPUs that are not here: what each keeps and sends, and how long a step would take.

What is counted (parameters, memory, bytes, arithmetic) and what is assumed (how much of peak and links is reached, what
is done at the same time) stand apart: assumptions are named in the answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import Counts
from gristmill.trainer.optim.config import GROUPS
from gristmill.trainer.planning import measure, memory, traffic
from gristmill.trainer.planning.measure import Orthogonal
from gristmill.trainer.planning.mesh import Mesh, every
from gristmill.trainer.planning.plan_config import PlanConfig
from gristmill.trainer.planning.traffic import NOTHING, Sent, Traffic, Weights
from gristmill.trainer.watch import hardware
from gristmill.trainer.watch.hardware import Links, Peak

_NO_PRODUCTS = Orthogonal()
FILLED = 0.95  # of a GPU's memory: the rest is left to driver, NCCL, and holes between tensors


def reckon(config: PlanConfig, model: ModelConfig, counts: Counts) -> list[dict[str, Any]]:
    """An entry for each mesh that was asked for, best first: those that fit, by tokens per second.

    Raises:
        UsageError: a GPU whose peak or links are not known, or not in this number format; a mesh that cannot be.
    """
    _ = _peak(config)  # one that is not known
    experts = {model.experts_of(layer) for layer in model.moe_layers}
    meshes = config.meshes or every(config.gpus or 1, experts, config.parallel.data)
    for mesh in meshes:
        _require_possible(config, mesh, experts)
    products = measure.orthogonal(model, config) if "muon" in _optimisers(config) else _NO_PRODUCTS
    entries = [_entry(config, model, counts, products, mesh) for mesh in meshes]
    return sorted(entries, key=lambda entry: (entry["short"] > 0, -entry["time"]["tokens_per_second"]))


def _require_possible(config: PlanConfig, mesh: Mesh, experts: set[int]) -> None:
    """Raises UsageError where trainer run would."""
    if mesh.gpus == 1:
        return
    if mesh.ep > 1 and (odd := [number for number in sorted(experts) if number % mesh.ep] or (not experts and [0])):
        raise UsageError(f"mesh {mesh}: {mesh.ep} GPUs do not divide the {odd[0]} experts of a layer")
    micro = 1 if config.largest_micro else config.batch.micro
    if config.batch.sequences % (mesh.gpus * micro):
        raise UsageError(
            f"mesh {mesh}: {config.batch.sequences} windows in passes of {micro} (batch.micro) cannot be shared by "
            f"{mesh.gpus} GPUs: make batch.sequences a multiple of batch.micro x GPUs"
        )
    if "adafactor" in _optimisers(config) and (mesh.ep > 1 or mesh.data == "shard"):
        raise UsageError(f"mesh {mesh}: adafactor looks at whole weights; give ep=1,dp={mesh.gpus},data=replicate")


def _optimisers(config: PlanConfig) -> set[str]:
    return {config.optimizer.of(group).kind for group in GROUPS}


def _peak(config: PlanConfig) -> Peak:
    peak = hardware.of_gpu(config.gpu)
    if peak is None:
        raise UsageError(f"--gpu {config.gpu}: its peak is not known here{nearest(config.gpu, hardware.gpu_names())}")
    if "fp32" in (config.precision, config.expert_precision):
        raise UsageError(
            f"--gpu {config.gpu}: its peak is known in bf16, and products in fp32 are many times slower; give "
            "--precision bf16 (and --expert-precision bf16), or run trainer plan on that machine without --gpu"
        )
    return peak


def _links(config: PlanConfig, peak: Peak, mesh: Mesh) -> Links:
    known = hardware.links_of(peak.name) or Links(0.0, 0.0, "")
    given = config.inside_gb or config.between_gb
    links = Links(config.inside_gb * 1e9 or known.inside, config.between_gb * 1e9 or known.between, known.source)
    if mesh.gpus > 1 and not (links.inside and (links.between or mesh.gpus <= config.gpus_per_node)):
        raise UsageError(
            f"--gpu {config.gpu}: how fast such GPUs send is not known here; give --inside-gb and --between-gb"
        )
    return links._replace(source=f"{links.source}, or as given") if given else links


def _entry(config: PlanConfig, model: ModelConfig, counts: Counts, products: Orthogonal, mesh: Mesh) -> dict[str, Any]:
    peak = _peak(config)
    has = peak.memory_gb and peak.memory_gb * 1e9
    memory_of = memory.ByMicro(model, config, mesh)
    largest = memory_of.largest(has * FILLED) if has else None
    rows = config.batch.sequences // mesh.gpus
    micro = min(config.batch.micro, rows)
    if config.largest_micro and largest:
        micro = max(size for size in range(1, largest + 1) if rows % size == 0)
    needed = memory_of(micro)
    sent = _traffic(config, model, counts, mesh, -(-rows // micro), rows)
    item = precision.build(config.precision, config.expert_precision).dtype.itemsize
    routed = micro * config.batch.sequence * model.top_k * model.width * item
    dispatch = 2 * routed if mesh.ep > 1 else 0  # what goes, and what comes
    return {
        "machine": {"name": peak.name, "memory": has, "gpus": mesh.gpus, "gpus_per_node": config.gpus_per_node},
        "mesh": dataclasses.asdict(mesh),
        "micro": micro,
        "largest_micro": largest,
        "memory": {**needed._asdict(), "total": needed.total, "most_dispatch": dispatch, "assumes": memory.ASSUMES},
        "short": max(needed.total - has * FILLED, 0.0) if has else 0.0,
        "traffic": {name: one._asdict() for name, one in (*sent._asdict().items(), ("total", sent.total))},
        **time(config, model, counts, mesh, sent, products),
    }


def _traffic(config: PlanConfig, model: ModelConfig, counts: Counts, mesh: Mesh, passes: int, rows: int) -> Traffic:
    experts = counts.parts.get("experts", 0)
    outer = sum(counts.parts.get(name, 0) for name in ("embeddings", "head"))
    routed = rows * config.batch.sequence * model.top_k * len(model.moe_layers)
    item = precision.build(config.precision, config.expert_precision).dtype.itemsize
    weights = Weights(outer, counts.total - experts - outer, experts)
    sent = traffic.of_step(mesh, config.gpus_per_node, weights, routed * model.width * item, passes, config.recompute)
    if "muon" in _optimisers(config) and mesh.data == "shard":
        return sent._replace(weights=sent.weights.plus(traffic.of_matrices(mesh, config.gpus_per_node, weights)))
    return sent


def time(
    config: PlanConfig, model: ModelConfig, counts: Counts, mesh: Mesh, sent: Traffic = NOTHING,
    products: Orthogonal = _NO_PRODUCTS,
) -> dict[str, Any]:  # fmt: skip
    """time, assumptions and cost of the whole budget, where each GPU sends so much in a step, and Muon has these
    products to make."""
    peak = _peak(config)
    links = _links(config, peak, mesh)
    per_token = counts.flops_per_token(config.batch.sequence)
    again = (per_token - 6 * model.vocab * model.width) / 3 if config.recompute else 0.0  # all but the head, forward
    tokens = config.batch.tokens / mesh.gpus
    compute = tokens * (per_token + again) / (peak.flops * config.mfu)

    def on_links(one: Sent) -> float:
        within = one.inside / (links.inside * config.link_share) if one.inside else 0.0
        return max(within, one.between / (links.between * config.link_share) if one.between else 0.0)

    exchange, weights = on_links(sent.tokens), on_links(sent.weights.plus(sent.gradients))
    share = mesh.ep if mesh.data == "replicate" else mesh.gpus
    optimizer = products.of_a_gpu(share) / (peak.flops * config.mfu)
    step = max(compute, weights) + exchange + optimizer
    speed = config.batch.tokens / step
    seconds = config.trained_tokens / speed
    assumed = [
        f"{peak.name}: {peak.flops / 1e12:,.0f} TFLOP/s ({peak.source}), of which {config.mfu:.0%} is assumed"
        + (" while no other GPU is waited for" if mesh.gpus > 1 else "")
    ]
    if config.recompute:
        assumed.append("recomputation is one more forward pass of all layers")
    if mesh.gpus > 1:
        assumed += [
            f"a GPU sends {links.inside / 1e9:,.0f} GB/s within its node of {config.gpus_per_node}, and "
            f"{links.between / 1e9:,.0f} GB/s to others ({links.source}), of which {config.link_share:.0%} is assumed",
            "weights and gradients, in fp32, travel while layers compute: the longer of the two counts",
        ]
    if optimizer:
        assumed.append("Muon's products reach the same share of the peak; every GPU makes those of all dense matrices")
    if mesh.ep > 1:
        assumed.append("tokens travel while nothing computes, and every GPU's experts get as many as every other's")
    return {
        "time": {
            "seconds": seconds,
            "tokens_per_second": speed,
            "tokens_per_second_per_gpu": speed / mesh.gpus,
            "step": {
                "seconds": step,
                "compute": compute,
                "weights_and_gradients": weights,
                "tokens": exchange,
                "optimizer": optimizer,
            },
            "mfu": speed / mesh.gpus * per_token / peak.flops,
            "gpu_hours": seconds / 3600 * mesh.gpus,
            "how": assumed[0],
        },
        "assumptions": assumed,
        "cost": cost(config.price_per_hour, seconds, mesh.gpus),
    }


def cost(price_per_hour: float, seconds: float | None, gpus: int = 1) -> dict[str, float] | None:
    if seconds is None or not price_per_hour:
        return None
    return {"price_per_hour": price_per_hour, "total": seconds / 3600 * price_per_hour * gpus}
