"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from gristmill.trainer.optim.config import OptimizerConfig

_FALLS = {"sqrt": lambda done: 1 - math.sqrt(done), "linear": lambda done: 1 - done}


def factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """What the peak rates are multiplied by in step `step` of 1..`steps`: a line up to 1, then the schedule down to
    `final`."""
    warmup = round(config.warmup * steps)
    if step <= warmup:
        return step / warmup
    return config.final + (1 - config.final) * _SHAPES[config.schedule](config, step, warmup, steps)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of weights that have none of their own."""
    return config.learning_rate * factor(config, step, steps)


def _cosine(config: OptimizerConfig, step: int, warmup: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _linear(config: OptimizerConfig, step: int, warmup: int, steps: int) -> float:
    return 1 - (step - warmup) / max(steps - warmup, 1)


def _wsd(config: OptimizerConfig, step: int, warmup: int, steps: int) -> float:
    falling = min(max(round(config.decay * steps), 1 if config.decay else 0), steps - warmup)
    return _FALLS[config.decay_shape](max(step - (steps - falling), 0) / max(falling, 1))


_SHAPES = {"cosine": _cosine, "linear": _linear, "wsd": _wsd}
