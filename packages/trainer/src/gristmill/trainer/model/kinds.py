"""Kinds of a part are the modules of its package: a new file in attention/ is a new kind of attention.

Each such file has `Options`, a frozen dataclass of what only this kind reads, and the class that does it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from gristmill.base.config import from_mapping, nearest
from gristmill.base.errors import UsageError
from gristmill.trainer.model.config import ModelConfig


def names(package: str) -> list[str]:
    """Files of the package that do not begin with an underscore."""
    path = import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def find(package: str, name: str, field: str) -> ModuleType:
    """The module of a kind; `field` names the setting that asked for it.

    Raises:
        UsageError: no such kind.
    """
    if name not in names(package):
        raise UsageError(f"{field}: no kind {name!r}{nearest(name, names(package))}")
    return import_module(f"{package}.{name}")


def options(name: str, cls: type, config: ModelConfig) -> Any:
    """A kind's own options, out of config.options."""
    own = {key: value for key, value in config.options.items() if key.partition(".")[0] == name}
    return from_mapping(cls, {key.partition(".")[2]: value for key, value in own.items()}, f"model.options: {name}")


def require_known_options(config: ModelConfig, used: set[str]) -> None:
    """Refuses options of a kind that the model has not: a misspelt name would else be read by nobody."""
    for key in config.options:
        kind, _, option = key.partition(".")
        if not option or kind not in used:
            raise UsageError(
                f"model.options: {key!r} belongs to nothing in this model; write kind.option, where kind is one of "
                f"{', '.join(sorted(used))}"
            )
