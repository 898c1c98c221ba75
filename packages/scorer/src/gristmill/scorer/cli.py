"""The `scorer` command, from oracle grades to scores."""

from __future__ import annotations

from gristmill.base import cli
from gristmill.scorer.commands import heads, oracle


def _inspect(arguments: list[str]) -> int | None:
    # `scorer inspect HEADS` reads better than a flag for the only argument there is.
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--heads", *arguments]
    return cli.typed(heads.inspect, "scorer inspect")(arguments)


_inspect.__doc__ = heads.inspect.__doc__


def main() -> None:
    commands = {
        "label": cli.typed(oracle.label, "scorer label"),
        "audit-oracle": cli.typed(oracle.audit_oracle, "scorer audit-oracle"),
        "train-heads": cli.typed(heads.train_heads, "scorer train-heads"),
        "calibrate": cli.typed(heads.calibrate, "scorer calibrate"),
        "score": cli.typed(heads.score, "scorer score"),
        "inspect": _inspect,
    }
    cli.main("scorer", commands, "Oracle grades distilled into a probe and a judge on a frozen backbone.")
