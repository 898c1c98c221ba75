"""A mixture file: what share of the trained tokens each source has, by phase, and what happens when one is too small.

All of it is settled before training: a budget that cannot be met is refused here, with how much is missing.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gristmill.base import config
from gristmill.base.errors import UsageError

ALL = "*"


@dataclasses.dataclass(frozen=True)
class MixturePhase:
    """From `from_tokens` trained tokens, or `from_share` of the budget, other weights or longer sequences hold.

    Without `weights` those before go on; without `sequence_length` the run's own does.
    """

    name: str
    from_tokens: int = 0
    from_share: float = 0.0
    weights: dict[str, int] = dataclasses.field(default_factory=dict)
    sequence_length: int = 0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """`weights` are integers in trained tokens; "*" stands for all sources not named, in proportion to their tokens.

    `max_epochs` is by source, with "default" for the rest. `on_exhausted`, where a source cannot fill its share within
    its epochs: "error" refuses the plan, "repeat" reads it more often, "redistribute" gives the excess to the others.
    `target_tokens` is the budget that a smaller run stands for (match_repetition). `longest_sequence` keeps text whole
    for a phase of longer sequences that may be added later; by default the longest that the phases name.
    """

    name: str
    weights: dict[str, int]
    max_epochs: dict[str, float] = dataclasses.field(default_factory=lambda: {"default": 4.0})  # 4: arXiv 2305.16264
    on_exhausted: Literal["error", "repeat", "redistribute"] = "error"
    seed: int = 0
    target_tokens: int = 0
    longest_sequence: int = 0
    phase: tuple[MixturePhase, ...] = ()

    def epochs_of(self, source: str) -> float:
        return self.max_epochs.get(source, self.max_epochs.get("default", 4.0))


@dataclasses.dataclass(frozen=True)
class _File:
    mixture: Mixture


def load_mixture(path_or_name: Path | str, search: Sequence[Path] = ()) -> Mixture:
    """Read a mixture from a TOML file, or by name from the first folder of `search` that has NAME.toml.

    Raises:
        UsageError: no such file or name (the known ones are listed), an unknown key, a wrong type, a weight under 1, or
            phases that have no place of their own.
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
    _check(mixture, path)
    _warn_of_name(mixture, path)
    return mixture


def _check(mixture: Mixture, path: Path) -> None:
    _check_weights(mixture.weights, f"{path}: mixture.weights")
    wrong = [name for name, epochs in mixture.max_epochs.items() if not (epochs > 0 and math.isfinite(epochs))]
    if wrong:
        raise UsageError(f"{path}: mixture.max_epochs.{wrong[0]} must be over 0, not {mixture.max_epochs[wrong[0]]}")
    if mixture.target_tokens < 0 or mixture.longest_sequence < 0:
        raise UsageError(f"{path}: mixture.target_tokens and mixture.longest_sequence cannot be negative")
    for phase in mixture.phase:
        where = f"{path}: mixture.phase {phase.name!r}"
        if (phase.from_tokens > 0) == (phase.from_share > 0) or not 0 <= phase.from_share < 1 or phase.from_tokens < 0:
            raise UsageError(f"{where}: give from_tokens, from 1 up, or from_share, over 0 and under 1")
        if not (phase.weights or phase.sequence_length) or phase.sequence_length < 0:
            raise UsageError(f"{where}: changes nothing; give weights or a sequence_length")
        if phase.weights:
            _check_weights(phase.weights, f"{where}: weights")


def _check_weights(weights: Mapping[str, int], where: str) -> None:
    bad = [name for name, weight in weights.items() if weight < 1]
    if bad or not weights:
        of = f" ({', '.join(bad)})" if bad else ""
        raise UsageError(f"{where}: give each source a whole number from 1 up{of}")


def _warn_of_name(mixture: Mixture, path: Path) -> None:
    """A name such as web40_code20 is a promise; warn where the weights break it."""
    total = sum(mixture.weights.values())
    for source, percent in re.findall(r"([A-Za-z-]+)(\d+)(?=_|$)", mixture.name):
        share = 100 * mixture.weights.get(source, 0) / total
        if source in mixture.weights and abs(share - int(percent)) >= 0.5:
            warnings.warn(f"{path}: the name says {source} {percent} %, its weight gives {share:.1f} %", stacklevel=4)
