"""How every console script behaves: typed sub-commands, one-line errors, exit codes that mean something.

0 done, 1 failed, 2 wrong usage, 3 a data check failed, 4 too much quarantined, 130 interrupted, 141 nobody reads on,
143 terminated.
stdout carries the result; progress and errors go to stderr.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gristmill.base.config import load, nearest
from gristmill.base.errors import GristmillError, UsageError

T = TypeVar("T")
Command = Callable[[list[str]], int | None]


def typed(function: Callable[..., int | None], prog: str) -> Command:
    """A command whose flags are the parameters of `function`: its docstring is the help, its annotations the types."""

    def command(arguments: list[str]) -> int | None:
        import tyro

        return tyro.cli(function, args=arguments, prog=prog, description=_description(function))

    command.__doc__ = function.__doc__
    return command


def parse_config(cls: type[T], arguments: Sequence[str], prog: str, description: str) -> T:
    """`--config FILE` (TOML) under dotted overrides (`--model.layers 4`): defaults < file < command line."""
    import tyro

    remaining, path = _take_config(list(arguments))
    return tyro.cli(cls, args=remaining, default=load(cls, path), prog=prog, description=description)


def main(name: str, commands: dict[str, Command], about: str) -> None:
    """Run the sub-command that sys.argv names and exit with its code."""
    sys.exit(run(name, commands, about, sys.argv[1:]))


def run(name: str, commands: dict[str, Command], about: str, arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(name, commands, about))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"{name} {importlib.metadata.version(f'gristmill-{name}')}")
        return 0
    return guarded(name, lambda: _dispatch(name, commands, arguments))


def guarded(name: str, action: Callable[[], int | None]) -> int:
    """Run `action`; turn the errors that a user can mend into one line on stderr and their exit code."""

    def terminate(_signal: int, _frame: Any) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, terminate)
    try:
        return action() or 0
    except GristmillError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141  # as the shell counts SIGPIPE: who reads our output has gone, and what we were at is not done


def _dispatch(name: str, commands: dict[str, Command], arguments: list[str]) -> int | None:
    command = commands.get(arguments[0])
    if command is None:
        raise UsageError(f"unknown command {arguments[0]!r}{nearest(arguments[0], commands)}")
    return command(arguments[1:])


def _description(function: Callable[..., Any]) -> str:
    """The docstring without its Args section, which tyro shows beside each flag."""
    return inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0].strip()


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise UsageError("--config needs a TOML file")
            return arguments[:index] + arguments[index + 2 :], Path(arguments[index + 1])
        if argument.startswith("--config="):
            return arguments[:index] + arguments[index + 1 :], Path(argument.removeprefix("--config="))
    return arguments, None


def _overview(name: str, commands: dict[str, Command], about: str) -> str:
    width = max(len(command) for command in commands)
    lines = [f"usage: {name} COMMAND [options]", "", inspect.cleandoc(about), "", "commands:"]
    for command, function in commands.items():
        summary = inspect.cleandoc(function.__doc__ or "").split("\n", 1)[0]
        lines.append(f"  {command:<{width}}  {summary}")
    return "\n".join([*lines, "", f"{name} COMMAND --help tells each one's options."])
