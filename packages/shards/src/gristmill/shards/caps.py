"""Sources that are too small for their share: refused with what is missing, or held at what they have.

Both are settled on a plan before training starts.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from gristmill.base.errors import UsageError
from gristmill.shards.mixture import Mixture
from gristmill.shards.order import MAX_PERIOD
from gristmill.shards.phase import Phase, blended
from gristmill.shards.plan import Plan, PlannedSource

QUANTA = (10_000, 100_000)  # computed shares (of "*", redistributed, best fit) are rounded to so many parts


def rounded(
    shares: dict[str, Fraction], capped: frozenset[str] = frozenset(), quantum: int | None = None
) -> dict[str, int]:
    """Shares (sum 1) as integers of sum `quantum`, by largest remainder: capped ones down, the others at least 1.

    Without a `quantum` the coarser of QUANTA, unless a share is so small that it would be off by over a hundredth.
    """
    if quantum is None:
        quantum = QUANTA[0] if min(shares.values()) * QUANTA[0] >= 50 else QUANTA[1]
    parts = {name: share * quantum for name, share in shares.items()}
    weights = {name: int(part) if name in capped else max(int(part), 1) for name, part in parts.items()}
    by_remainder = sorted((n for n in parts if n not in capped), key=lambda n: (int(parts[n]) - parts[n], n))
    for place in range(max(quantum - sum(weights.values()), 0) if by_remainder else 0):
        weights[by_remainder[place % len(by_remainder)]] += 1
    return {name: weight for name, weight in weights.items() if weight}


def _capacity(mixture: Mixture, source: PlannedSource) -> int:
    """Units that a source gives within its epochs."""
    return int(source.windows * mixture.epochs_of(source.name))


def redistributed(mixture: Mixture, base: Plan) -> Plan:
    """Water-filling, phase by phase: sources that would run out are held at what they have left, the rest share what
    is left in proportion. Within a phase the shares are constant, unlike those of a loader that drops a source when it
    ends.
    """
    left = {source.name: _capacity(mixture, source) for source in base.sources}
    names = [source.name for source in base.sources]
    ends = [phase.first_unit for phase in base.phases[1:]] + [sum(base.units().values())]
    phases: list[Phase] = []
    for phase, end in zip(base.phases, ends):
        weights = {name: weight for name, weight in zip(names, phase.weights) if weight}
        filled = _water_filled(mixture, weights, left, end - phase.first_unit, base.unit)
        phases.append(dataclasses.replace(phase, weights=tuple(filled.get(name, 0) for name in names)))
        for name, used in zip(names, blended(phases[-1].weights, end - phase.first_unit).tolist()):
            left[name] -= used
    return dataclasses.replace(base, phases=tuple(phases))


def _water_filled(
    mixture: Mixture, weights: dict[str, int], capacity: dict[str, int], total: int, unit: int
) -> dict[str, int]:
    """Weights for `total` units of which no source gives more than its capacity; the same weights where that holds."""

    def over(some: dict[str, int]) -> set[str]:
        whole = sum(some.values())
        return {name for name, weight in some.items() if weight * total > capacity[name] * whole}

    if not over(weights):
        return weights
    for quantum in QUANTA:
        capped: set[str] = set()
        while len(capped) < len(weights):
            left = Fraction(total - sum(capacity[name] for name in capped))
            free = sum(weight for name, weight in weights.items() if name not in capped)
            shares = {
                name: Fraction(capacity[name], total) if name in capped else left * weight / free / total
                for name, weight in weights.items()
            }
            held = rounded(shares, frozenset(capped), quantum)
            more = {name for name, share in shares.items() if share * total > capacity[name]} | over(held)
            if not more - capped:
                return held
            capped |= more
    have = sum(capacity[name] for name in weights)
    if have >= total and have // math.gcd(*(capacity[name] for name in weights)) <= MAX_PERIOD:
        return {name: capacity[name] for name in weights if capacity[name]}  # all at their caps, near enough
    raise UsageError(
        f"mixture {mixture.name}: all sources together hold {have * unit:,} tokens within max_epochs, too few for "
        f"{total * unit:,}: {max(total - have, 0) * unit:,} short, or too near for shares of 1/{QUANTA[-1]:,}. "
        "Lower the budget, or raise max_epochs"
    )


def refuse_shortage(mixture: Mixture, resolved: Plan) -> None:
    need = resolved.units()
    for index, source in enumerate(resolved.sources):
        capacity = _capacity(mixture, source)
        if need[source.name] <= capacity:
            continue
        share = resolved.token_counts()[source.name] / resolved.tokens
        advice = "Lower the budget"
        if len(resolved.phases) == 1:
            weights = np.array(resolved.phases[0].weights)
            capacities = [_capacity(mixture, some) for some in resolved.sources]
            largest = min(c * int(weights.sum()) // int(w) for c, w in zip(capacities, weights))
            advice += f" to about {largest * resolved.unit:,}"
        phases = [p.name for p in resolved.phases if p.weights[index]] if len(resolved.phases) > 1 else []
        raise UsageError(
            f"mixture {mixture.name}: source {source.name} runs out{' in phase ' + phases[-1] if phases else ''}: "
            f"{share:.1%} of {resolved.tokens:,} tokens is {need[source.name] * resolved.unit:,}, but "
            f"{mixture.epochs_of(source.name):g} epochs hold {capacity * resolved.unit:,}: "
            f"{(need[source.name] - capacity) * resolved.unit:,} short. {advice}, raise max_epochs, or set "
            "on_exhausted to 'redistribute' or 'repeat'"
        )
