"""What an import found: settings of ours, each with the key that it came from; and every key that none came from.

One idea: a foreign key is mapped, or told of by name. What is left when all readers have taken theirs is unknown.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gristmill.base.config import from_mapping
from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.config import resolve

WHOLE = 2**31 - 1
VOCAB = 65_536  # stands for the data's, which an import does not know, where shapes are checked
MOST_LAYERS = 10_000
UNTOLD_STEPS = 1000


class Batch(NamedTuple):
    """Windows of a step, of one forward and backward pass of one rank, such passes of a step, and ranks that read
    different windows. None: not told."""

    sequences: int | None = None
    micro: int | None = None
    accumulation: int | None = None
    ranks: int | None = None


class Length(NamedTuple):
    """Of a run: tokens of a window, and either steps or windows in all. None: not told."""

    sequence: int | None = None
    steps: int | None = None
    windows: int | None = None


@dataclass(frozen=True)
class Schedule:
    """A learning rate's way. Warm-up and the part that falls (wsd) are in steps, windows or shares of the run."""

    style: str  # cosine, linear, wsd or constant
    peak: float
    least: float = 0.0
    warmup: tuple[float, str] = (0.0, "steps")
    decay: tuple[float, str] = (0.2, "share")
    shape: str = "linear"


@dataclass
class Imported:
    """Settings are dotted names of TrainConfig (model.width); a part's own option is model.options/KIND.OPTION."""

    where: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # by setting: what it came from
    unsupported: dict[str, str] = field(default_factory=dict)  # by their key: why, or what to do instead
    meaningless: dict[str, str] = field(default_factory=dict)  # by their key: why nothing here is like it
    differs: list[str] = field(default_factory=list)  # what is otherwise here, though no key says so
    batch: Batch = field(default_factory=lambda: Batch())
    length: Length = field(default_factory=lambda: Length())
    schedule: Schedule | None = None

    def set(self, name: str, value: Any, source: str) -> None:
        self.settings[name] = value
        self.sources[name] = source

    def config(self) -> TrainConfig:
        """
        Raises:
            UsageError: settings that do not fit together.
        """
        config = from_mapping(TrainConfig, self.nested(), self.where)
        resolve(config.model, VOCAB)
        return config

    def nested(self) -> dict[str, Any]:
        """As the TOML file has it."""
        result: dict[str, Any] = {}
        for name, value in self.settings.items():
            *sections, last = _path(name)
            place = result
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return result

    def toml(self) -> str:
        """The run file: in comments above, what did not come along; behind each setting, the key that it came from."""
        lines = [f"# Made by trainer config import from {shown(self.where)}."]
        lines += [f"# {line}" if line else "#" for line in self.told().splitlines()]
        nested, sections = self.nested(), {"": {}}
        for name in self.settings:
            *before, last = _path(name)
            sections.setdefault(".".join(before), {})[last] = name
        for section, names in sections.items():
            if section:
                lines += ["", f"[{section}]"]
            place = nested
            for part in filter(None, section.split(".")):
                place = place[part]
            for last, name in names.items():
                key = last if last.replace("_", "").isalnum() else json.dumps(last)
                lines.append(f"{key} = {_spelt(place[last])}  # {shown(self.sources[name])}")
        return "\n".join(lines) + "\n"

    def told(self) -> str:
        """What a reader should know before a run: keys that were not mapped, and what is otherwise here."""
        parts = (
            ("not supported", [f"{key}: {why}" for key, why in self.unsupported.items()]),
            ("without meaning here", [f"{key}: {why}" for key, why in self.meaningless.items()]),
            ("otherwise here", self.differs),
        )
        lines: list[str] = []
        for title, entries in parts:
            if entries:
                lines += [f"{title}:", *(f"  {shown(entry)}" for entry in entries)]
        return "\n".join(lines)


def _path(name: str) -> list[str]:
    """Options have dots in their names."""
    section, slash, option = name.partition("/")
    return [*section.split("."), option] if slash else section.split(".")


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_spelt, value))}]"
    if isinstance(value, str):
        return json.dumps(shown(value), ensure_ascii=False)
    return repr(value)


# Numbers --------------------------------------------------------------------------------------------------------------


def whole(where: str, key: str, given: Any, least: int = 0, most: int = WHOLE) -> int:
    """A whole number, given as one or spelt as one."""
    try:
        number = float(given) if not isinstance(given, (bool, list, dict)) else math.nan
        value = int(given) if isinstance(given, (int, str)) and "e" not in str(given).lower() else int(number)
    except (TypeError, ValueError, OverflowError):
        number = value = math.nan
    if number != value or not least <= value <= most:
        raise UsageError(f"{where}: {shown(key)}: {_short(given)} is not a whole number from {least} to {most}")
    return int(value)


def real(where: str, key: str, given: Any, least: float = 0.0, most: float = 1e30) -> float:
    try:
        value = float(given) if not isinstance(given, (bool, list, dict)) else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not least <= value <= most:
        raise UsageError(f"{where}: {shown(key)}: {_short(given)} is not a number from {least:g} to {most:g}")
    return value


def truth(where: str, key: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if str(given).lower() in ("true", "false"):
        return str(given).lower() == "true"
    raise UsageError(f"{where}: {shown(key)}: {_short(given)} is neither true nor false")


def _short(given: Any) -> str:
    return shown(f"{given!r:.60}") if given not in ([], "", None) else "nothing"


# Batches and steps ----------------------------------------------------------------------------------------------------


def solve(where: str, batch: Batch, least_ranks: int = 1) -> tuple[Batch, str]:
    """All four, from those that are told, by sequences = micro x accumulation x ranks; and what had to be assumed.

    Args:
        least_ranks: that there must have been, for what else is told.

    Raises:
        UsageError: they contradict one another, or are too few.
    """
    sequences, micro, accumulation, ranks = batch
    assumed = ""
    if sequences is None:
        if micro is None or ranks is None:
            raise UsageError(
                f"{where}: how many windows a step has is not told, and follows from the micro-batch and the number "
                "of GPUs alone; give --ranks N"
            )
        accumulation = accumulation or 1
        return Batch(micro * accumulation * ranks, micro, accumulation, ranks), assumed
    if ranks is None:
        if micro is not None and accumulation is not None:
            ranks = _divided(where, batch, micro * accumulation)
        else:
            ranks, assumed = least_ranks, f"as on {least_ranks} GPU{'s' * (least_ranks > 1)}; give --ranks N for others"
    if micro is not None:
        assumed = ""  # of no consequence
    else:
        micro = _divided(where, batch, (accumulation or 1) * ranks)
    rest = _divided(where, batch, micro * ranks)
    if accumulation not in (None, rest):
        raise UsageError(
            f"{where}: {_sum(batch)}: micro-batch x accumulation x GPUs is not the batch; mend one of them"
        )
    return Batch(sequences, micro, rest, ranks), assumed


def _divided(where: str, batch: Batch, by: int) -> int:
    assert batch.sequences is not None
    if batch.sequences % by:
        raise UsageError(f"{where}: {_sum(batch)}: the batch is no multiple of {by}; give another --ranks N")
    return batch.sequences // by


def _sum(batch: Batch) -> str:
    told = zip(("batch", "micro-batch", "accumulation", "GPUs"), batch)
    return ", ".join(f"{name} {value}" for name, value in told if value is not None)


def finish(imported: Imported, least_ranks: int = 1) -> None:
    """What follows from several keys: the batch, the budget, and the learning rate's shares of it.

    Raises:
        UsageError: they contradict one another, or are too few.
    """
    sequence, steps, windows = imported.length
    batch = imported.batch
    if batch.sequences is not None or batch.micro is not None:
        batch, assumed = solve(imported.where, batch, least_ranks)
        source = "micro-batch x accumulation x ranks"
        imported.set("batch.sequences", batch.sequences, source)
        imported.set("batch.micro", batch.micro, "of one rank")
        if assumed:
            imported.differs.append(f"batch.micro is {batch.micro}, {assumed}")
    if sequence is None:
        sequence = BatchConfig().sequence
        imported.differs.append(f"windows have {sequence} tokens, our default: give --sequence N for others")
    imported.set("batch.sequence", sequence, "tokens of a window")
    each = batch.sequences or BatchConfig().sequences
    if steps is None:
        steps = windows // each if windows is not None else None
    if not steps:
        steps = UNTOLD_STEPS
        imported.differs.append(f"how long it trains is not told: {steps:,} steps stand there; set tokens")
    imported.set("tokens", steps * each * sequence, f"{steps:,} steps x {each:,} windows x {sequence:,} tokens")
    if imported.schedule is not None:
        _set_schedule(imported, imported.schedule, steps, each)


def _set_schedule(imported: Imported, schedule: Schedule, steps: int, each: int) -> None:
    """Shares of the run. A constant rate is a line that falls to itself."""
    source, constant = f"{schedule.style}, over {steps:,} steps", schedule.style == "constant"

    def share(length: tuple[float, str]) -> float:
        value, unit = length
        return min(value / {"steps": steps, "windows": steps * each, "share": 1}[unit], 1.0)

    warmup = share(schedule.warmup)
    imported.set("optimizer.learning_rate", schedule.peak, source)
    imported.set("optimizer.schedule", "linear" if constant else schedule.style, source)
    imported.set("optimizer.warmup", round(warmup, 9), source)
    imported.set("optimizer.final", 1.0 if constant else round(min(schedule.least / schedule.peak, 1.0), 9), source)
    if schedule.style == "wsd":
        imported.set("optimizer.decay", round(min(share(schedule.decay), 1 - warmup), 9), source)
        imported.set("optimizer.decay_shape", schedule.shape, source)
