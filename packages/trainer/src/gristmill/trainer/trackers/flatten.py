"""An event as trackers want it: numbers under names with slashes, which group them in their pages.

train/loss, norms/experts, router/entropy/layer3, validation/bits_per_byte, validation/web/bits_per_byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Histogram(NamedTuple):
    low: float
    high: float
    share: list[float]  # of what was counted, in equal bins from low to high


class Told(NamedTuple):
    numbers: dict[str, float]
    histograms: dict[str, Histogram]
    samples: list[dict[str, str]]  # prompt and text


def flatten(kind: str, values: Mapping[str, Any], layers: Sequence[int]) -> Told:
    """layers: those that have experts, for what is told by layer. What is told by expert is left out: it is too many
    curves, and stands in events.jsonl."""
    router = values.get("router") or {}
    logits: dict[str, Any] = router.get("logits") or {"share": []}
    return Told(
        dict(_numbers(kind, values, layers)),
        {
            f"router/logits/layer{layer}": Histogram(logits["low"], logits["high"], share)
            for layer, share in zip(layers, logits["share"])
        },
        values["samples"] if kind == "samples" else [],
    )


def _numbers(kind: str, values: Mapping[str, Any], layers: Sequence[int]) -> Iterator[tuple[str, float]]:
    if kind == "resume":
        return  # no curve
    if kind == "step":
        values = {key: value for key, value in values.items() if key not in ("time", "tokens_by_source")}
        inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        plain = {key: value for key, value in values.items() if key not in inner}
        values = {"train": plain, **inner}
    else:
        values = {kind: {**values, **values.get("by_source", {})}}
    for name, value in values.items():
        yield from _leaves(name, value, layers)


def _leaves(name: str, value: Any, layers: Sequence[int]) -> Iterator[tuple[str, float]]:
    match value:
        case bool() | str() | None:
            return
        case int() | float() if math.isfinite(value):
            yield name, value
        case Mapping():
            for key, inner in value.items():
                if key not in ("by_source", "logits"):
                    yield from _leaves(f"{name}/{key}", inner, layers)
        case [int() | float(), *_]:
            for layer, inner in zip(layers, value):
                yield from _leaves(f"{name}/layer{layer}", inner, layers)
