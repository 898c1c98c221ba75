"""What "good" means: a rubric of graded dimensions, read from TOML and pinned by its hash.

Every dimension states its scale, its direction and its weight, so a number never travels without its meaning. A level
is asked as one symbol, which every tokenizer has as one token: the digit, or on a scale that goes above 9 a letter,
since "10" begins like "1". The symbols are only how the oracle answers: anchors, weights and scores speak of levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gristmill.base.config import from_mapping, load_toml, to_mapping
from gristmill.base.errors import UsageError
from gristmill.base.files import fingerprint

# Columns that label and score tables have beside the dimensions.
RESERVED = {
    "id", "source", "text", "weight", "split", "quality", "probe", "judge", "exit", "tokens", "status", "reply",
    "rubric", "rubric_sha", "prompt_sha", "engine", "truncated", "window", "stripped", "mass", "reason",
    "prompt_tokens", "reply_tokens", "seconds", "repeat", "repeats", "content_type", "language", "flagged", "uniform",
    "shadow", "least", "greatest", "windows", "decision", "ensemble",
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_LEVELS = len(LETTERS)


@dataclass(frozen=True)
class Dimension:
    """One question with a scale of whole levels. `lower` means that a low score is the better one."""

    name: str
    question: str
    anchors: dict[int, str]
    min: int = 0
    max: int = 4
    direction: Literal["higher", "lower"] = "higher"
    weight: float = 1.0

    @property
    def levels(self) -> tuple[int, ...]:
        return tuple(range(self.min, self.max + 1))

    @property
    def symbols(self) -> dict[str, int]:
        """What the oracle may answer, lowest first, and the level that each stands for."""
        return symbols(self.levels)

    def goodness(self, score: np.ndarray) -> np.ndarray:
        """Scores mapped to 0 (worst) .. 1 (best), direction applied. Not clamped."""
        fraction = (score - self.min) / (self.max - self.min)
        return 1.0 - fraction if self.direction == "lower" else fraction


def symbols(levels: Sequence[int]) -> dict[str, int]:
    """One character per level, lowest first: its digit, or letters from a where a level has two digits."""
    names = LETTERS if levels[-1] > 9 else [str(level) for level in levels]
    return dict(zip(names, levels))


@dataclass(frozen=True)
class Example:
    """A short text with its scores, shown to completion-style oracles before the document."""

    text: str
    scores: dict[str, int]


@dataclass(frozen=True)
class Rubric:
    """Dimensions in order, and the wording that surrounds them in a prompt."""

    name: str
    dimensions: tuple[Dimension, ...]
    instruction: str = ""
    noun: str = "Text"
    examples: tuple[Example, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    @cached_property
    def sha(self) -> str:
        """sha256 of everything in the rubric: grades made with different rubrics never mix."""
        return fingerprint(to_mapping(self))

    def quality(self, scores_ND: np.ndarray) -> np.ndarray:
        """Weighted mean of the dimensions' goodness, [N, D] -> [N] in [0, 1]. A row with a missing dimension is NaN."""
        weights_D = np.array([dimension.weight for dimension in self.dimensions])
        goodness_ND = np.stack([d.goodness(scores_ND[:, i]) for i, d in enumerate(self.dimensions)], axis=1)
        return np.clip(goodness_ND @ (weights_D / weights_D.sum()), 0.0, 1.0)


def load_rubric(path: Path) -> Rubric:
    """Read and check a rubric file.

    Raises:
        UsageError: an unknown key, a scale of over 26 levels, an anchor or example off the scale, a bad weight.
    """
    return rubric_from_mapping(load_toml(path), str(path))


def rubric_from_mapping(values: Mapping[str, Any], where: str) -> Rubric:
    """The same from plain JSON types, as stored in a bundle or in the metadata of a label file."""
    rubric = from_mapping(Rubric, values, where)
    names = rubric.names
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{where}: dimensions must be named, and each name used once (got {list(names)})")
    for dimension in rubric.dimensions:
        _check(dimension, where)
    for index, example in enumerate(rubric.examples):
        for dimension in rubric.dimensions:
            if example.scores.get(dimension.name) not in dimension.levels:
                raise UsageError(
                    f"{where}: examples[{index}].scores.{dimension.name} must be one of {dimension.levels}"
                )
    return rubric


def _check(dimension: Dimension, where: str) -> None:
    place = f"{where}: dimension {dimension.name!r}"
    if dimension.name in RESERVED or not dimension.name.isidentifier():
        raise UsageError(f"{place}: pick a name that is an identifier and none of {', '.join(sorted(RESERVED))}")
    if not 0 <= dimension.min < dimension.max or len(dimension.levels) > MOST_LEVELS:
        raise UsageError(f"{place}: the scale must be 2 to {MOST_LEVELS} whole levels from 0 up, one letter for each")
    if off := sorted(set(dimension.anchors) - set(dimension.levels)):
        raise UsageError(f"{place}: anchors for levels {off} are off the scale {dimension.min}..{dimension.max}")
    if not {dimension.min, dimension.max} <= set(dimension.anchors):
        raise UsageError(f"{place}: say in anchors what {dimension.min} and {dimension.max} mean")
    if not dimension.weight > 0:
        raise UsageError(f"{place}: weight must be above 0; leave the dimension out instead")
