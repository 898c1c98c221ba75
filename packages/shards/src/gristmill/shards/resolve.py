"""A mixture on a dataset becomes a plan: weights as integers, phases in units, windows of each shard, caps settled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.shards import packing
from gristmill.shards.caps import redistributed, refuse_shortage, rounded
from gristmill.shards.mixture import ALL, Mixture, MixturePhase
from gristmill.shards.phase import SPREAD, Phase
from gristmill.shards.plan import Packing, Plan, PlannedSource
from gristmill.shards.reader import Dataset


def plan(
    mixture: Mixture,
    dataset: Dataset,
    sequence_length: int,
    seed: int | None = None,
    tokens: int = 0,
    *,
    pack: Packing = "concat",
    match_repetition: bool = False,
    unique_tokens: Mapping[str, int] | None = None,
    align: int = 1,
) -> Plan:
    """Resolve the mixture on a dataset for a budget of `tokens` trained tokens (whole sequences: rounded down).

    `seed` None is the mixture's own. `unique_tokens` reads of the sources that it names only about so many tokens.
    `match_repetition` reads only the part of each source that gives this budget the epochs that `mixture.target_tokens`
    will have (arXiv 2606.07597). Either part is a random sample: documents lie in hash order. Where phases differ in
    length, their starts are rounded up to multiples of `align` tokens, so that a batch of so many never straddles one.

    Raises:
        UsageError: sources that the dataset or the mixture lacks, a source too short for one window, phases that do not
            fit, or a budget that cannot be met.
    """
    if sequence_length < 1 or tokens < sequence_length:
        raise UsageError(f"a budget of {tokens} tokens holds no sequence of {sequence_length} tokens")
    unit, bounds = _phase_bounds(mixture, sequence_length, tokens, align)
    if pack == "bestfit" and (unit != sequence_length or any(length != unit for _phase, _first, length in bounds)):
        raise UsageError(
            f"mixture {mixture.name}: best-fit rows have one length; with phases of several use concat packing"
        )
    _check_epochs(mixture, dataset)
    weights = [_resolve(mixture, phase.weights, dataset) for phase, _first, _length in bounds]
    names = [name for name in sorted(dataset.sources) if any(name in some for some in weights)]
    sources = [_planned(mixture, dataset, name, unit, pack) for name in names]
    if pack == "bestfit":
        weights = [_by_rows(some, dataset, sources, unit) for some in weights]
    sources = _cut(mixture, dataset, sources, unique_tokens or {})
    if match_repetition:
        sources = [_part(mixture, source, tokens) for source in sources]
    phases = tuple(
        Phase(phase.name, first, length, tuple(some.get(name, 0) for name in names))
        for (phase, first, length), some in zip(bounds, weights)
    )
    result = Plan.of_tokens(
        tokens, mixture.name, mixture.seed if seed is None else seed, unit, tuple(sources), phases, pack
    )
    if mixture.on_exhausted == "redistribute":
        result = redistributed(mixture, result)
    if mixture.on_exhausted != "repeat":
        refuse_shortage(mixture, result)
    return result


def _phase_bounds(
    mixture: Mixture, sequence_length: int, tokens: int, align: int
) -> tuple[int, list[tuple[MixturePhase, int, int]]]:
    """(unit, [(phase with its weights, first unit, sequence length)]) of the phases that the budget reaches.

    The unit is decided by all phases, reached or not: so a smaller budget reads the same text in the same order.
    """
    phases = [MixturePhase("pretrain" if mixture.phase else "all", weights=mixture.weights), *mixture.phase]
    lengths = [phase.sequence_length or sequence_length for phase in phases]
    unit = max(*lengths, mixture.longest_sequence)
    for length in lengths:
        if unit % length:
            raise UsageError(
                f"mixture {mixture.name}: sequences of {length} and of {unit} tokens cannot share an order; "
                f"each length must divide the longest"
            )
    step = math.lcm(unit * SPREAD, align) if len({*lengths, unit}) > 1 else unit
    bounds: list[tuple[MixturePhase, int, int]] = []
    weights = mixture.weights
    for phase, length in zip(phases, lengths):
        weights = phase.weights or weights
        start = phase.from_tokens or math.floor(phase.from_share * tokens)
        first = -(-start // step) * step
        if bounds and first <= bounds[-1][1] * unit:
            raise UsageError(
                f"mixture {mixture.name}: phase {phase.name!r} starts at {start:,} tokens (at {first:,}, rounded up to "
                f"{step:,}s), not after phase {bounds[-1][0].name!r}: leave each a longer stretch"
            )
        if start < tokens <= first:
            raise UsageError(
                f"mixture {mixture.name}: phase {phase.name!r} starts at {start:,} of {tokens:,} tokens; rounded up to "
                f"{step:,}s nothing is left of it: raise the budget, or let it start earlier"
            )
        if first < tokens:
            bounds.append((dataclasses.replace(phase, weights=weights), first // unit, length))
    return unit, bounds


def _planned(mixture: Mixture, dataset: Dataset, name: str, unit: int, pack: Packing) -> PlannedSource:
    split = dataset.sources[name].split("train")
    if pack == "concat":
        windows = tuple(max(shard.token_count - 1, 0) // unit for shard in split.shards)
    else:
        windows = tuple(
            shard.packed[str(unit)]
            if str(unit) in shard.packed
            else packing.row_counts(split.ends(i), (unit,))[str(unit)]
            for i, shard in enumerate(split.shards)
        )
    source = PlannedSource(name, dataset.sources[name].manifest.content_id, windows)
    if source.windows == 0:
        raise UsageError(
            f"mixture {mixture.name}: no train shard of source {name} holds {unit + 1} tokens; "
            "shorten the sequence or leave the source out"
        )
    return source


def _by_rows(weights: dict[str, int], dataset: Dataset, sources: Sequence[PlannedSource], unit: int) -> dict[str, int]:
    """Weights in trained tokens as weights in best-fit rows: a source that fills its rows less gets more of them."""
    fill = {
        source.name: Fraction(dataset.sources[source.name].split("train").token_count, source.windows * unit)
        for source in sources
    }
    needed = {name: weight / fill[name] for name, weight in weights.items()}
    total = sum(needed.values(), Fraction(0))
    return rounded({name: share / total for name, share in needed.items()})


def _part(mixture: Mixture, source: PlannedSource, tokens: int) -> PlannedSource:
    """The first windows of a source, as many as the budget is of the target."""
    if mixture.target_tokens < tokens:
        raise UsageError(
            f"mixture {mixture.name}: to match the repetition of a larger run, set target_tokens to its budget, at "
            f"least {tokens:,} (now {mixture.target_tokens:,})"
        )
    return _first(source, -(-source.windows * tokens // mixture.target_tokens))


def _cut(
    mixture: Mixture, dataset: Dataset, sources: Sequence[PlannedSource], tokens: Mapping[str, int]
) -> list[PlannedSource]:
    """Of each source that `tokens` names, the first windows: their share of all is that of so many tokens."""
    sizes = {source.name: dataset.sources[source.name].split("train").token_count for source in sources}
    for name, some in tokens.items():
        if name not in sizes:
            raise UsageError(f"unique_tokens: mixture {mixture.name} has no source {name!r}{nearest(name, sizes)}")
        if some < 1:
            raise UsageError(f"unique_tokens: {name} must be at least 1 (got {some})")
    return [
        _first(source, -(-source.windows * tokens[source.name] // sizes[source.name]))
        if source.name in tokens
        else source
        for source in sources
    ]


def _first(source: PlannedSource, windows: int) -> PlannedSource:
    wanted = max(windows, 1)
    kept = np.clip(wanted - source.window_starts[:-1], 0, np.asarray(source.shard_windows, np.int64))
    return dataclasses.replace(source, shard_windows=tuple(np.trim_zeros(kept, "b").tolist()))


def _check_epochs(mixture: Mixture, dataset: Dataset) -> None:
    for name in mixture.max_epochs:
        if name != "default" and name not in dataset.sources:
            raise UsageError(
                f"mixture {mixture.name}: max_epochs: the dataset has no source {name}{nearest(name, dataset.sources)}"
            )


def _resolve(mixture: Mixture, weights: dict[str, int], dataset: Dataset) -> dict[str, int]:
    """Integer weights by source name, in name order, with "*" spelled out."""
    present = sorted(dataset.sources)
    missing = sorted(set(weights) - set(present) - {ALL})
    if missing:
        raise UsageError(
            f"mixture {mixture.name}: the dataset has no source {', '.join(missing)}; it has {', '.join(present)}"
        )
    if ALL not in weights:
        return {name: weights[name] for name in present if name in weights}
    sizes = {name: dataset.sources[name].split("train").token_count for name in present if name not in weights}
    sizes = {name: size for name, size in sizes.items() if size}
    if not sizes:
        raise UsageError(
            f"mixture {mixture.name}: '*' stands for no source: all of {', '.join(present)} are named or empty"
        )
    total, all_tokens = sum(weights.values()), sum(sizes.values())
    shares = {name: Fraction(weight, total) for name, weight in weights.items() if name != ALL}
    shares |= {name: Fraction(weights[ALL] * size, total * all_tokens) for name, size in sizes.items()}
    return rounded({name: shares[name] for name in sorted(shares)})
