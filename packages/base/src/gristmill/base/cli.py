"""How every console script behaves: typed sub-commands, one-line errors, exit codes that mean something.

0 done, 1 failed, 2 wrong usage, 3 a data check failed, 4 too much quarantined, 130 interrupted, 141 nobody reads on,
143 terminated.
stdout carries the result; progress and errors go to stderr.
"""

from __future__ import annotations

import errno
import importlib.metadata
import inspect
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import tyro

from gristmill.base.config import load, nearest
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import CANNOT_WRITE
from gristmill.base.terminal import shown

T = TypeVar("T")
Command = Callable[[list[str]], int | None]
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""A flag that may be given more than once."""
From = Annotated[str, tyro.conf.arg(name="from")]
"""A flag whose name is a keyword of Python."""
MOST_TOKENS = 2**62  # sums of a few such numbers still fit 64 bits
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_tokens(given: object) -> int:
    """A number of tokens as people write it: 1_000_000, 250M, 1.5T (K, M, B and T are powers of 1000).

    Raises:
        ValueError: it is no such number, not a whole one, or more than any file could hold.
    """
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([KMBT]?)", str(given).strip().upper())
    number = Decimal(found[1].replace("_", "")) * SCALES[found[2]] if found else Decimal("NaN")
    if not number.is_finite() or number != int(number):
        raise ValueError(f"{given!r} is no number of tokens; write 1_000_000, 250M, 1B or 1.5T")
    if number > MOST_TOKENS:
        raise ValueError(f"{given!r} is more than 2**62 tokens")
    return int(number)


# In a function's parameters or a configuration, and in its TOML file.
Tokens = Annotated[
    int,
    pydantic.BeforeValidator(parse_tokens),
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="TOKENS",
        instance_from_str=lambda words: parse_tokens(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


def typed(function: Callable[..., int | None], prog: str) -> Command:
    """A command whose flags are the parameters of `function`: its docstring is the help, its annotations the types."""

    def command(arguments: list[str]) -> int | None:
        return tyro.cli(function, args=arguments, prog=prog, description=_description(function))

    command.__doc__ = function.__doc__
    return command


def parse_config(
    cls: type[T], arguments: Sequence[str], prog: str, description: str, base: Mapping[str, Any] | None = None
) -> T:
    """`--config FILE` (TOML) under dotted overrides (`--model.layers 4`): defaults < `base` < file < command line."""
    remaining, path = _take_config(list(arguments))
    return tyro.cli(cls, args=remaining, default=load(cls, path, base), prog=prog, description=description)


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
        print(f"{name}: {shown(error)}", file=sys.stderr)  # it may name what a file from elsewhere holds
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 141  # as the shell counts SIGPIPE: who reads our output has gone, and what we were at is not done
    except OSError as error:
        if error.errno not in CANNOT_WRITE | {errno.EEXIST}:  # a file where a folder should be
            raise
        where = f"{shown(str(error.filename))}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


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
