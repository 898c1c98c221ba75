"""A plan, for a terminal: sources, then a line for each kind of thing that the run takes, then meshes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gristmill.base.progress import duration

KINDS = ("weights", "gradients", "optimizer", "activations", "buffers", "dispatch", "gathered")


def table(plan: Mapping[str, Any]) -> str:
    lines = [*_sources(plan["sources"]), *(f"{name:<9}{fact}" for name, fact in _facts(plan).items())]
    if len(meshes := plan.get("meshes", [plan])) > 1:
        lines += ["", *_meshes(meshes)]
    lines += [f"assumed: {text}" for text in plan.get("assumptions", [])]
    lines += [f"warning: {text}" for text in plan["warnings"]]
    return "\n".join(lines)


def size(bytes: float) -> str:
    return f"{bytes / 1e9:,.2f} GB" if bytes >= 1e9 else f"{bytes / 1e6:,.2f} MB"


def _sources(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield f"{'source':<20}{'share':>8}{'tokens':>18}{'unique tokens':>18}{'epochs':>9}{'at most':>9}"
    for row in rows:
        yield (
            f"{row['source']:<20.20}{row['share']:>8.1%}{row['tokens']:>18,}{row['unique_tokens']:>18,}"
            f"{row['epochs']:>9.2f}{row['max_epochs']:>9g}"
        )
    yield ""


def _facts(plan: Mapping[str, Any]) -> dict[str, str]:
    model, memory, time, cost = (plan[name] for name in ("model", "memory", "time", "cost"))
    machine, checkpoints = plan["machine"], plan["checkpoints"]
    many = machine.get("gpus", 1) > 1
    of = f" of {plan['mixture']}" if plan["mixture"] else ""
    kinds = ", ".join(f"{name} {size(memory[name])}" for name in KINDS if memory[name])
    facts = {
        "budget": f"{plan['tokens']:,} tokens{of} in {plan['steps']:,} steps, {plan['batch_tokens']:,} tokens each, in "
        f"windows of {plan['sequence']:,}",
        "model": f"{model['name']}: {model['parameters']:,} parameters, {model['active_parameters']:,} active; "
        f"{model['tokens_per_active_parameter']:,.3g} tokens for each active one",
    }
    if many:
        mesh, node = _mesh(plan["mesh"]), machine["gpus_per_node"]
        facts["mesh"] = f"{machine['gpus']} {machine['name']}: {mesh}, {node} to a node"
    if memory.get("most_dispatch") and not memory["dispatch"]:
        kinds += f"; at another moment dispatch {size(memory['most_dispatch'])}"
    each = " on each GPU" if many else ""
    facts["memory"] = f"{size(memory['total'])}{each}: {kinds} ({memory['assumes']})"
    if "micro" in plan:
        most = "" if plan["largest_micro"] is None else f"; at most {plan['largest_micro']} fit"
        facts["passes"] = f"{plan['micro']} windows at a time{most}"
    facts["disk"] = f"{checkpoints['kept']} checkpoints of {size(checkpoints['bytes'])}, and one while it is written"
    facts["work"] = f"{plan['flops']:.3g} FLOP"
    if many:
        step, sent = time["step"], {name: one for name, one in plan["traffic"].items() if name != "total"}
        told = [
            f"{name} {size(one['inside'])} within a node, {size(one['between'])} between nodes"
            for name, one in sent.items()
        ]
        facts["sent"] = "; ".join(told) + "; by each GPU in a step"
        muon = f", Muon's products {step['optimizer']:.3g} s" if step["optimizer"] else ""
        facts["step"] = (
            f"{step['seconds']:.3g} s: arithmetic {step['compute']:.3g} s, weights and gradients "
            f"{step['weights_and_gradients']:.3g} s, tokens {step['tokens']:.3g} s{muon}; "
            f"{time['tokens_per_second_per_gpu']:,.0f} tokens/s and GPU, {time['mfu']:.1%} of its peak"
        )
    if time["seconds"] is not None:
        how = f"{time['gpu_hours']:,.0f} GPU hours" if many else time["how"]
        facts["time"] = f"{duration(time['seconds'])} at {time['tokens_per_second']:,.0f} tokens/s ({how})"
    if cost:
        facts["cost"] = f"{cost['total']:,.2f}, at {cost['price_per_hour']:g} an hour" + (" and GPU" if many else "")
    return facts


def _meshes(entries: list[dict[str, Any]]) -> Iterator[str]:
    priced = entries[0]["cost"] is not None
    yield (
        f"{'mesh':<28}{'windows':>8}{'at most':>8}{'memory':>11}{'in node':>14}{'between nodes':>14}{'step':>9}"
        f"{'tokens/s/GPU':>14}{'MFU':>7}{'GPU hours':>12}" + (f"{'cost':>14}" if priced else "")
    )
    for entry in entries:
        time, sent = entry["time"], entry["traffic"]["total"]
        cost = f"{entry['cost']['total']:>14,.0f}" if priced else ""
        largest = "-" if entry["largest_micro"] is None else entry["largest_micro"]
        short = f"  {size(entry['short'])} short" if entry["short"] else ""
        yield (
            f"{_mesh(entry['mesh']):<28}{entry['micro']:>8}{largest:>8}{size(entry['memory']['total']):>11}"
            f"{size(sent['inside']):>14}{size(sent['between']):>14}{time['step']['seconds']:>8.3g}s"
            f"{time['tokens_per_second_per_gpu']:>14,.0f}{time['mfu']:>7.1%}{time['gpu_hours']:>12,.0f}{cost}{short}"
        )
    yield ""


def _mesh(mesh: Mapping[str, Any]) -> str:
    return f"ep={mesh['ep']},dp={mesh['dp']}" + (",data=replicate" if mesh["data"] == "replicate" else "")
