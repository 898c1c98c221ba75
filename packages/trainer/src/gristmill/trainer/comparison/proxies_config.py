"""What `trainer compare --mixtures` is asked: two mixtures, seeds, and one training run's settings for all proxies.

No torch here, so that --help is quick.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.config import TrainConfig

CONTROL = "random-drop"


class Arm(NamedTuple):
    """One side of the comparison: what all its proxies train on."""

    name: str
    mixture: str
    data: str
    unique_tokens: dict[str, int]


@dataclass(frozen=True)
class ProxiesConfig(TrainConfig):
    """Proxies to compare: all that `trainer run` takes, for every one of them, and what they differ in."""

    mixtures: str = ""
    """Two mixtures, MIXTURE,MIXTURE: the one that the verdict is about, then the one it is held against. MIXTURE@DATA
    for one in another folder than --data; NAME=MIXTURE@DATA gives it a name."""
    seeds: int = 3
    """Pairs: seeds --seed, --seed + 1, ... are of the initial weights, and of the data order unless --data-seed is
    given."""
    held_out: str = ""
    """Shards whose valid split all proxies are scored on; "": those of the second mixture."""
    held_out_tokens: int | None = None
    """Of each source, whole documents up to so many tokens; None: all."""
    control: bool = True
    """Train a third arm: the second mixture, cut at random to as many unique tokens of each source as the first has."""
    plot: bool = True
    """Draw the differences, to comparison.svg in the output folder."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("seeds", self.seeds, 1)
        if self.mixture:
            raise UsageError("--mixture is of one run; name both in --mixtures")
        if self.patience.validations:
            raise UsageError("--patience would end some proxies before others; leave it out: budgets are to be equal")

    def arms(self) -> tuple[Arm, Arm]:
        """
        Raises:
            UsageError: not two, no data, or no two names.
        """
        given = [text.strip() for text in self.mixtures.split(",")]
        if len(given) != 2 or not all(given):
            raise UsageError(f"--mixtures {self.mixtures}: give two, as MIXTURE,MIXTURE or MIXTURE@DATA,MIXTURE@DATA")
        if not self.output:
            raise UsageError("--output is missing; see trainer compare --mixtures --help")
        parts = [_parts(text, self.data) for text in given]
        names = next((each for each in _names(parts) if len(set(each)) == 2), None)
        if names is None:
            raise UsageError(f"--mixtures {self.mixtures}: two of one name; give NAME=MIXTURE@DATA")
        one, other = (Arm(name, mixture, data, self.unique_tokens) for name, (_, mixture, data) in zip(names, parts))
        if wrong := [name for name in names if "/" in name or name.startswith(".") or name == CONTROL]:
            raise UsageError(f"--mixtures: {wrong[0]!r} cannot be a name here; give NAME=MIXTURE@DATA")
        return one, other

    def run_of(self, arm: Arm, seed: int) -> TrainConfig:
        """The training run of one proxy."""
        shared: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        own = {
            "mixture": arm.mixture,
            "data": arm.data,
            "unique_tokens": arm.unique_tokens,
            "output": str(self.folder / f"{arm.name}-seed{seed}"),
            "seed": seed,
            "data_seed": seed if self.data_seed is None else self.data_seed,
        }
        return TrainConfig(**shared | own)


def _parts(text: str, data: str) -> tuple[str, str, str]:
    """(name, or "", mixture, data) of NAME=MIXTURE@DATA; a URI of data may hold = and @ itself."""
    head, _, place = text.partition("@")
    name, _, mixture = head.rpartition("=")
    if not (place or data):
        raise UsageError(f"--mixtures {text}: where is its data? Give --data, or {text}@DATA")
    return name, mixture, place or data


def _names(parts: list[tuple[str, str, str]]) -> list[list[str]]:
    """What the arms could be called, best first: as given, by mixture, by the data's folder."""
    stems = [PurePosixPath(mixture).name.removesuffix(".toml") for _, mixture, _ in parts]
    given = [name or stem for (name, _, _), stem in zip(parts, stems)]
    folders = [PurePosixPath(data.partition("@")[0]).name for _, _, data in parts]
    return [given, folders, [f"{stem}-{folder}" for stem, folder in zip(stems, folders)]]
