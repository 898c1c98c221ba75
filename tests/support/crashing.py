"""A training loop whose machine goes away before a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.trainer import loop


def crashing_at(step: int) -> Callable[..., Any]:
    """To stand for loop.train_step: the call of that number raises OSError, those before it are the real thing."""
    real, calls = loop.train_step, []

    def train_step(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise OSError("the machine is gone")
        return real(*args, **options)

    return train_step
