"""Flags, each taken once. What was asked for is known; what nobody asked for is left, to be told of."""

from __future__ import annotations

from typing import Any

from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown
from gristmill.trainer.config_import.flags import Flags
from gristmill.trainer.config_import.imported import real, whole

UNTOLD = "no --"


class Reader:
    def __init__(self, flags: Flags, where: str) -> None:
        self.left, self.where = dict(flags), where
        self.given, self.known = set(flags), set[str]()

    def several(self, name: str, default: list[str]) -> list[str]:
        self.known.add(name)
        given = self.left.pop(name, default)
        if not given:
            raise UsageError(f"{self.where}: --{name} needs a value (got nothing)")
        return given

    def text(self, name: str, default: str = "") -> str:
        given = self.several(name, [default])
        if len(given) > 1:
            raise UsageError(f"{self.where}: --{name} takes one value (got {shown(' '.join(given))[:60]})")
        if given[0].startswith("$"):
            told = shown(given[0])[:60]
            raise UsageError(f"{self.where}: --{name}: {told} is set nowhere in it; write its value there")
        return given[0]

    def choice(self, name: str, default: str, choices: str) -> str:
        if (value := self.text(name, default)) not in choices.split():
            raise UsageError(f"{self.where}: --{name}: {shown(value)[:60]!r} is none of {', '.join(choices.split())}")
        return value

    def on(self, name: str) -> bool:
        self.known.add(name)
        given = self.left.pop(name, None)
        if given and [one.lower() for one in given] != ["true"]:
            raise UsageError(f"{self.where}: --{name} takes no value (got {shown(given[0])[:60]!r})")
        return given is not None

    def whole(self, name: str, default: Any = None, least: int = 0, most: int = 2**31 - 1) -> Any:
        given = self.text(name)
        return whole(self.where, f"--{name}", given, least, most) if name in self.given else default

    def real(self, name: str, default: Any = None, least: float = 0.0, most: float = 1e30) -> Any:
        given = self.text(name)
        return real(self.where, f"--{name}", given, least, most) if name in self.given else default

    def source(self, *names: str) -> str:
        """What a setting came from."""
        told = [f"--{name}" for name in names if name in self.given]
        return told[0] if told else f"{UNTOLD}{names[0]}: Megatron's default"
