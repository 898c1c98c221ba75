"""Small batches first: the windows of a step double, stage by stage, over the first share of the budget.

Every stage reads the same number of whole batches of full size. So steps, windows and tokens follow from one another,
and wherever a full batch may begin, a smaller one does too.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from gristmill.base.errors import UsageError


class Stage(NamedTuple):
    steps: int
    windows: int
    """Of each step."""


def stages(windows: int, first: int, share: float, batches: int) -> list[Stage]:
    """A budget of `batches` of `windows` windows, as stages: from `first` windows a step (0: no ramp) up to `windows`,
    over `share` of the budget.

    Raises:
        UsageError: `first` is not `windows` halved a few times, or a stage would be shorter than one full batch.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"batch.ramp_share must be between 0 and 1 (got {share})")
    doubled = (first << power for power in range(63))
    sizes = list(itertools.takewhile(lambda size: size < windows, doubled)) if first > 0 else []
    if first and (first < 1 or first << len(sizes) != windows):
        raise UsageError(
            f"batch.ramp_from ({first}): windows double up to batch.sequences ({windows}); give that, halved some times"
        )
    each = int(share * batches) // len(sizes) if sizes else 0
    if sizes and not each:
        raise UsageError(
            f"batch.ramp_share ({share}) of {batches} full batches is not one for each of {len(sizes)} stages; raise "
            "it, or begin with more windows (batch.ramp_from)"
        )
    ramp = [Stage(each * windows // size, size) for size in sizes]
    return [*ramp, Stage(batches - each * len(sizes), windows)]
