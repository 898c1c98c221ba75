"""How many GPUs a plan is for, and what each does: `ep` of them share the experts of a layer, and `dp` such groups read
different text. No torch here, so that --help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gristmill.base.errors import UsageError

SHARINGS = ("shard", "replicate")


@dataclass(frozen=True)
class Mesh:
    """Of ep * dp GPUs. ep and data are those of a run's `parallel` section: the ep GPUs of a group are neighbours."""

    ep: int = 1
    dp: int = 1
    data: str = "shard"

    @property
    def gpus(self) -> int:
        return self.ep * self.dp

    def __str__(self) -> str:
        return f"ep={self.ep},dp={self.dp}" + (",data=replicate" if self.data == "replicate" else "")


def parse(text: str, data: str = "shard") -> Mesh:
    """ep=8,dp=2 or ep=8,dp=2,data=replicate; what is left out is 1, and `data`.

    Raises:
        UsageError: it is no mesh.
    """
    values: dict[str, Any] = {"data": data}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        fits = value in SHARINGS if name == "data" else name in ("ep", "dp") and value.isdecimal() and int(value) > 0
        if not fits:
            raise UsageError(
                f"--mesh {text}: {part!r} is neither ep=N, dp=N nor data={'|'.join(SHARINGS)}; write ep=8,dp=2"
            )
        values[name] = value if name == "data" else int(value)
    return Mesh(**values)


def every(gpus: int, experts: set[int], data: str = "shard") -> list[Mesh]:
    """All meshes of so many GPUs whose ep divides the experts of every layer; without experts, the one of ep 1."""
    most = min(experts, default=1)
    return [
        Mesh(ep, gpus // ep, data)
        for ep in range(1, min(gpus, most) + 1)
        if gpus % ep == 0 and all(number % ep == 0 for number in experts)
    ]
