"""`datapipe run` and `datapipe plan`: a pipeline is a script, and these start one as `python SCRIPT` would."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gristmill.base.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run a pipeline: what is missing or stale, or the part that --from, --only and --force name.

    Examples:
        datapipe run pipelines/filter_olmo3.py --input 'raw/*.jsonl.zst' --output runs/olmo3
        datapipe run pipelines/filter_olmo3.py --input 'raw/*.jsonl.zst' --output runs/olmo3 --from language
    """
    return _start(run, arguments)


def plan(arguments: list[str]) -> int:
    """Say what a pipeline would run, what is cached, what is stale and why, and about how long it takes.

    Examples:
        datapipe plan pipelines/filter_olmo3.py --input 'raw/*.jsonl.zst' --output runs/olmo3
    """
    return _start(plan, arguments, "--plan")


def _start(command: Callable[[list[str]], int], arguments: list[str], *more: str) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(inspect.getdoc(command))
        return 0
    script = Path(arguments[0] if arguments else "")
    if script.suffix != ".py":
        raise UsageError(f"name a pipeline's script, and then its options: datapipe {command.__name__} SCRIPT.py ...")
    if not script.is_file():
        raise UsageError(f"{script}: no such script")
    # In this process's place, so that signals, the terminal and the exit code are the script's own.
    os.execv(sys.executable, [sys.executable, str(script), *arguments[1:], *more])
