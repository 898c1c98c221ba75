"""A mixture file: what share of the trained tokens each source has, and what happens when a source is too small.

All of it is settled before training: a budget that cannot be met is refused here, with how much is missing.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

from gristmill.base import config
from gristmill.base.errors import UsageError
from gristmill.shards.plan import Plan, PlannedSource
from gristmill.shards.reader import Dataset

ALL = "*"
QUANTUM = 10_000  # computed shares (of "*", or redistributed) are rounded to this many parts


@dataclasses.dataclass(frozen=True)
class Mixture:
    """`weights` are integers in trained tokens; "*" stands for all sources not named, in proportion to their tokens.

    `max_epochs` is by source, with "default" for the rest. `on_exhausted`, where a source cannot fill its share within
    its epochs: "error" refuses the plan, "repeat" reads it more often, "redistribute" gives the excess to the others.
    """

    name: str
    weights: dict[str, int]
    max_epochs: dict[str, float] = dataclasses.field(default_factory=lambda: {"default": 4.0})  # 4: arXiv 2305.16264
    on_exhausted: Literal["error", "repeat", "redistribute"] = "error"
    seed: int = 0

    def epochs_of(self, source: str) -> float:
        return self.max_epochs.get(source, self.max_epochs.get("default", 4.0))


@dataclasses.dataclass(frozen=True)
class _File:
    mixture: Mixture


def load_mixture(path_or_name: Path | str, search: Sequence[Path] = ()) -> Mixture:
    """Read a mixture from a TOML file, or by name from the first folder of `search` that has NAME.toml.

    Raises:
        UsageError: no such file or name (the known ones are listed), an unknown key, a wrong type or a weight under 1.
    """
    path = Path(path_or_name)
    if path.suffix != ".toml":
        found = [folder / f"{path_or_name}.toml" for folder in search if (folder / f"{path_or_name}.toml").is_file()]
        if not found:
            known = sorted({file.stem for folder in search for file in folder.glob("*.toml")})
            near = config.nearest(str(path_or_name), known) if known else ""
            raise UsageError(f"no mixture {str(path_or_name)!r}{near}; or give a .toml file")
        path = found[0]
    mixture = config.load(_File, path).mixture
    bad = [name for name, weight in mixture.weights.items() if weight < 1]
    if bad or not mixture.weights:
        of = f" ({', '.join(bad)})" if bad else ""
        raise UsageError(f"{path}: mixture.weights: give each source a whole number from 1 up{of}")
    wrong = [name for name, epochs in mixture.max_epochs.items() if not (epochs > 0 and math.isfinite(epochs))]
    if wrong:
        raise UsageError(f"{path}: mixture.max_epochs.{wrong[0]} must be over 0, not {mixture.max_epochs[wrong[0]]}")
    _warn_of_name(mixture, path)
    return mixture


def _warn_of_name(mixture: Mixture, path: Path) -> None:
    """A name such as web40_code20 is a promise; warn where the weights break it."""
    total = sum(mixture.weights.values())
    for source, percent in re.findall(r"([A-Za-z-]+)(\d+)(?=_|$)", mixture.name):
        share = 100 * mixture.weights.get(source, 0) / total
        if source in mixture.weights and abs(share - int(percent)) >= 0.5:
            warnings.warn(f"{path}: the name says {source} {percent} %, its weight gives {share:.1f} %", stacklevel=3)


def plan(mixture: Mixture, dataset: Dataset, sequence_length: int, seed: int | None = None, tokens: int = 0) -> Plan:
    """Resolve the mixture on a dataset for a budget of `tokens` trained tokens (whole sequences: rounded down).

    `seed` None is the mixture's own.

    Raises:
        UsageError: sources that the dataset lacks, a source too short for one window, or a budget that cannot be met.
    """
    if sequence_length < 1 or tokens < sequence_length:
        raise UsageError(f"a budget of {tokens} tokens holds no sequence of {sequence_length} tokens")
    weights = _resolve(mixture, dataset)
    sources = []
    for name, weight in weights.items():
        shards = dataset.sources[name].split("train").shards
        windows = tuple(max(shard.token_count - 1, 0) // sequence_length for shard in shards)
        source = PlannedSource(name, dataset.sources[name].manifest.content_id, weight, windows)
        if source.windows == 0:
            raise UsageError(
                f"mixture {mixture.name}: no train shard of source {name} holds {sequence_length + 1} tokens; "
                "shorten the sequence or leave the source out"
            )
        sources.append(source)
    result = Plan(
        mixture.name, mixture.seed if seed is None else seed, sequence_length, tokens // sequence_length, tuple(sources)
    )
    if mixture.on_exhausted == "redistribute":
        result = _redistributed(mixture, result)
    if mixture.on_exhausted != "repeat":
        _refuse_shortage(mixture, result)
    return result


def _resolve(mixture: Mixture, dataset: Dataset) -> dict[str, int]:
    """Integer weights by source name, in name order, with "*" spelled out."""
    present = sorted(dataset.sources)
    missing = sorted(set(mixture.weights) - set(present) - {ALL})
    if missing:
        raise UsageError(
            f"mixture {mixture.name}: the dataset has no source {', '.join(missing)}; it has {', '.join(present)}"
        )
    if ALL not in mixture.weights:
        return {name: mixture.weights[name] for name in present if name in mixture.weights}
    sizes = {name: dataset.sources[name].split("train").token_count for name in present if name not in mixture.weights}
    sizes = {name: size for name, size in sizes.items() if size}
    if not sizes:
        raise UsageError(
            f"mixture {mixture.name}: '*' stands for no source: all of {', '.join(present)} are named or empty"
        )
    total, all_tokens = sum(mixture.weights.values()), sum(sizes.values())
    shares = {name: Fraction(weight, total) for name, weight in mixture.weights.items() if name != ALL}
    shares |= {name: Fraction(mixture.weights[ALL] * size, total * all_tokens) for name, size in sizes.items()}
    return _rounded({name: shares[name] for name in sorted(shares)}, frozenset())


def _rounded(shares: dict[str, Fraction], capped: frozenset[str]) -> dict[str, int]:
    """Shares (sum 1) as integers of sum QUANTUM, at least 1 each: by largest remainder; capped ones down."""
    parts = {name: share * QUANTUM for name, share in shares.items()}
    weights = {name: max(int(part), 1) for name, part in parts.items()}
    by_remainder = sorted((n for n in parts if n not in capped), key=lambda n: (int(parts[n]) - parts[n], n))
    for place in range(max(QUANTUM - sum(weights.values()), 0)):
        weights[by_remainder[place % len(by_remainder)]] += 1
    return weights


def _capacity(mixture: Mixture, source: PlannedSource) -> int:
    return int(source.windows * mixture.epochs_of(source.name))


def _redistributed(mixture: Mixture, base: Plan) -> Plan:
    """Water-filling: sources that would run out are held at their capacity, the rest share what is left in proportion.

    The shares are constant through the run, unlike those of a loader that drops a source when it ends.
    """
    total = base.sequence_count
    capacity = {source.name: _capacity(mixture, source) for source in base.sources}
    if all(count <= capacity[name] for name, count in base.counts().items()):
        return base
    weight = {source.name: source.weight for source in base.sources}
    capped: set[str] = set()
    while True:
        left = Fraction(total - sum(capacity[name] for name in capped))
        free = sum(weight[name] for name in weight if name not in capped)
        over = {name for name in weight if name not in capped and left * weight[name] / free > capacity[name]}
        if not over:
            break
        capped |= over
        if len(capped) == len(weight):
            have = sum(capacity.values())
            raise UsageError(
                f"mixture {mixture.name}: all sources together hold {have * base.sequence_length:,} tokens within "
                f"max_epochs, {(total - have) * base.sequence_length:,} short of {base.tokens:,}: change one of them"
            )
    shares = {
        name: Fraction(capacity[name], total) if name in capped else left * weight[name] / free / total
        for name in weight
    }
    rounded = _rounded(shares, frozenset(capped))
    return dataclasses.replace(
        base, sources=tuple(dataclasses.replace(s, weight=rounded[s.name]) for s in base.sources)
    )


def _refuse_shortage(mixture: Mixture, resolved: Plan) -> None:
    schedule, length = resolved.schedule, resolved.sequence_length
    capacities = [_capacity(mixture, source) for source in resolved.sources]
    counts = resolved.counts()
    for capacity, weight, source in zip(capacities, schedule.weights, resolved.sources):
        need = counts[source.name]
        if need > capacity:
            largest = min(c * schedule.period // int(w) for c, w in zip(capacities, schedule.weights)) * length
            raise UsageError(
                f"mixture {mixture.name}: source {source.name} runs out: {weight / schedule.period:.1%} of "
                f"{resolved.tokens:,} tokens is {need * length:,}, but {mixture.epochs_of(source.name):g} epochs hold "
                f"{capacity * length:,}: {(need - capacity) * length:,} short. Lower the budget to about {largest:,}, "
                "raise max_epochs, or set on_exhausted to 'redistribute' or 'repeat'"
            )
