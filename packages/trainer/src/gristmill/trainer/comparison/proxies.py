"""Does one mixture teach more than another? Small runs of both at one budget, in pairs that share all but the text.

The control answers the objection that less text, read more often, is what made the difference: the second mixture, cut
at random to as much unique text as the first has. Every proxy is a run like any other: whatever ends the comparison,
the same command goes on, and does only what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.trainer.comparison import compare, proxies_plot
from gristmill.trainer.comparison.proxies_config import CONTROL, Arm, ProxiesConfig
from gristmill.trainer.data import resolve_data
from gristmill.trainer.evaluation.evaluate import evaluate
from gristmill.trainer.parallel import launch

log = logging.getLogger("gristmill.trainer")

FORMAT = "gristmill.proxies/1"


class _Planned(NamedTuple):
    arm: Arm
    dataset: Dataset
    plan: Plan


def run(config: ProxiesConfig) -> dict[str, Any]:
    """Train and score what is missing, compare, and write comparison.json and comparison.svg into the output folder.

    Raises:
        UsageError: mixtures that the data cannot fill, or that are the same; runs in the output folder that have other
            settings.
        DataError: data of different tokenizers.
    """
    if config.plot:
        proxies_plot.require_matplotlib()
    planned = [_planned(config, arm) for arm in config.arms()]
    _require_comparable(planned)
    notes = []
    if config.control and (control := _control(planned)):
        try:
            planned.append(_planned(config, control))
        except UsageError as error:
            raise UsageError(
                f"the random drop of {control.mixture}: {error}; or leave it out with --no-control"
            ) from None
        notes += _says_little(planned[-1], planned[1])
    elif config.control:
        notes.append(_no_control(planned))
    held_out = open_dataset(config.held_out or planned[1].arm.data)
    notes += _leaks(planned, held_out)
    seeds = range(config.seed, config.seed + config.seeds)
    log.info("%d proxies of %s tokens each", len(seeds) * len(planned), f"{config.trained_tokens:,}")
    folders: dict[str, list[Path]] = {one.arm.name: [] for one in planned}
    for number, (seed, one) in enumerate((seed, one) for seed in seeds for one in planned):
        proxy = config.run_of(one.arm, seed)
        log.info("proxy %d of %d: %s", number + 1, len(seeds) * len(planned), proxy.output)
        launch.train(dataclasses.replace(proxy, check_shards=proxy.check_shards and seed == config.seed))
        _evaluate(config, proxy.folder, held_out)
        folders[one.arm.name].append(proxy.folder)
    result = _result(config, planned, list(seeds), held_out, folders, notes)
    write_json(config.folder / "comparison.json", result)
    if config.plot:
        proxies_plot.draw(result, config.folder / "comparison.svg")
    return result


def _planned(config: ProxiesConfig, arm: Arm) -> _Planned:
    dataset, _mixture, plan = resolve_data(config.run_of(arm, config.seed))
    return _Planned(arm, dataset, plan)


def _require_comparable(planned: Sequence[_Planned]) -> None:
    a, b = planned
    if a.dataset.tokenizer.sha256 != b.dataset.tokenizer.sha256:
        raise DataError(
            f"{a.arm.data} and {b.arm.data} have different tokenizers ({a.dataset.tokenizer.name}, "
            f"{b.dataset.tokenizer.name}), so the same model cannot read both; tokenise one like the other"
        )
    if a.plan.sha == b.plan.sha:
        raise UsageError(f"--mixtures: {a.arm.name} and {b.arm.name} are the same text in the same order")


def _control(planned: Sequence[_Planned]) -> Arm | None:
    """The second arm with no more unique tokens of any source than the first; None where it has no more anyway."""
    a, b = (_unique_tokens(one) for one in planned)
    cut = {name: a[name] for name in sorted(a.keys() & b.keys()) if a[name] < b[name]}
    second = planned[1].arm
    return Arm(CONTROL, second.mixture, second.data, second.unique_tokens | cut) if cut else None


def _unique_tokens(one: _Planned) -> dict[str, int]:
    whole = {source.name: one.dataset.sources[source.name].split("train").token_count for source in one.plan.sources}
    return {name: min(tokens, one.arm.unique_tokens.get(name, tokens)) for name, tokens in whole.items()}


def _no_control(planned: Sequence[_Planned]) -> str:
    a, b = (one.arm.name for one in planned[:2])
    return f"No random drop: of no source does {b} have more unique text than {a}."


def _says_little(control: _Planned, whole: _Planned) -> list[str]:
    epochs, before = control.plan.epochs(), whole.arm.unique_tokens
    cut = {name for name, tokens in control.arm.unique_tokens.items() if before.get(name) != tokens}
    if any(epochs[name] > 1 for name in cut):
        return []
    return [
        "At this budget the random drop repeats nothing, so it tells little: raise --tokens, or let the mixture's "
        "target_tokens and --match-repetition repeat as the large run will."
    ]


def _leaks(planned: Sequence[_Planned], held_out: Dataset) -> list[str]:
    """A document's side is decided by its id, a salt and a fraction: by others, what is held out here is not there."""
    unlike = {
        f"{one.arm.name}'s {source.name}"
        for one in planned
        for source in one.plan.sources
        if source.name in held_out.sources
        and one.dataset.sources[source.name].manifest.order != held_out.sources[source.name].manifest.order
    }
    if not unlike:
        return []
    return [
        f"Held-out documents may have been trained on: {', '.join(sorted(unlike))} was split into train and valid by "
        "another salt or fraction."
    ]


def _evaluate(config: ProxiesConfig, folder: Path, held_out: Dataset) -> None:
    path = folder / "evaluation.json"
    wanted = {
        "data": held_out.manifest.content_id,
        "split": "valid",
        "tokens_of_each": config.held_out_tokens,
        "tokens_trained": read_json(folder / "run.json")["tokens"],
    }
    found = read_json(path) if path.exists() and (folder / "evaluation.parquet").exists() else {}
    if any(key not in found or found[key] != value for key, value in wanted.items()):
        evaluate(
            folder, str(held_out.root), "valid", config.held_out_tokens, config.tokenizer, config.device, config.threads
        )


def _result(
    config: ProxiesConfig,
    planned: Sequence[_Planned],
    seeds: list[int],
    held_out: Dataset,
    folders: Mapping[str, Sequence[Path]],
    notes: Sequence[str],
) -> dict[str, Any]:
    first, *others = [one.arm.name for one in planned]
    runs = [folder for name in folders for folder in folders[name]]
    scores = dict(zip(runs, compare.read_scores(runs)))
    sides = {name: [scores[folder] for folder in folders[name]] for name in folders}
    comparisons = [{"a": first, "b": name, "sets": compare.sets_of(sides[first], sides[name])} for name in others]
    return {
        "format": FORMAT,
        "tokens": config.trained_tokens,
        "seeds": seeds,
        "held_out": {"data": held_out.manifest.content_id, "split": "valid", "documents": len(scores[runs[0]].keys)},
        "arms": [_arm(one) for one in planned],
        "runs": [folder.name for folder in runs],
        "comparisons": comparisons,
        "verdict": verdict(comparisons),
        "note": " ".join([*_reading(len(seeds), comparisons), *notes]),
    }


def _arm(one: _Planned) -> dict[str, Any]:
    unique = {source.name: source.windows * one.plan.unit for source in one.plan.sources}
    return {
        "name": one.arm.name,
        "mixture": one.plan.mixture,
        "data": one.dataset.manifest.content_id,
        "sources": [row | {"unique_tokens": unique[str(row["source"])]} for row in one.plan.summary()],
    }


def _reading(seeds: int, comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if seeds > 1:
        yield f"Intervals cover the choice of documents and of the seed ({seeds} pairs)."
    else:
        yield "Intervals cover the choice of documents, not of the seed: one pair."
    sets = comparisons[0]["sets"]
    if few := [row["name"] for row in sets if row["documents"] < compare.FEWEST]:
        yield f"Fewer than {compare.FEWEST} documents, too few for a verdict: {', '.join(few)}."
    if len(sets) > 1:
        yield "Each set has its own 95 %; with many sets, expect one in twenty to stand out by chance."
    if len(comparisons) > 1:
        yield "The random drop is one cut, the same for all seeds."


def verdict(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """In words, on all documents, against each of the others."""
    return "; ".join(_clause(each["a"], each["b"], each["sets"][0]) for each in comparisons)


def _clause(a: str, b: str, row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    if row["verdict"] == "no difference":
        return (
            f"{a} is not shown to be better or worse than {b} "
            f"({row['difference']:+.4f} bits per byte, 95 % {low:+.4f} to {high:+.4f})"
        )
    least, most = sorted((abs(low), abs(high)))
    by = f"{abs(row['difference']):.4f} bits per byte (95 % {least:.4f} to {most:.4f})"
    return f"{a} is {row['verdict']} than {b} by {by}"


def table(result: Mapping[str, Any]) -> str:
    """For a terminal: the arms, a line for each set of documents and comparison, then the verdict."""
    lines = [f"{'trained on':<20}{'tokens':>15}{'unique tokens':>15}{'epochs':>9}"]
    for arm in result["arms"]:
        unique = sum(row["unique_tokens"] for row in arm["sources"])
        lines.append(f"{arm['name']:<20.20}{result['tokens']:>15,}{unique:>15,}{result['tokens'] / unique:>9.2f}")
    lines += ["", f"{'held out':<20}{'documents':>10}  {'bits per byte':<32}{'difference':>11}  95 % interval"]
    for each in result["comparisons"]:
        for row in each["sets"]:
            sides = f"{each['a']:.12} {row['a_bits_per_byte']:.4f}, {each['b']:.12} {row['b_bits_per_byte']:.4f}"
            interval = "[{:+.4f}, {:+.4f}]".format(*row["ci95"])
            mark = "" if row["verdict"] == "no difference" else f"  {row['verdict']}"
            lines.append(
                f"{row['name']:<20.20}{row['documents']:>10,}  {sides:<32}{row['difference']:>+11.4f}  {interval}{mark}"
            )
    return "\n".join([*lines, "", result["verdict"], result["note"]])
