"""A pipeline script in a process that is told another machine's name, or another time. For tests of leases and clocks.

    python tests/support/elsewhere.py SCRIPT [arguments of the script]

ELSEWHERE_HOST      the machine's name. Locks of the operating system then mean nothing, as on some network file systems
ELSEWHERE_STALE     seconds after which a lease that does not beat is nobody's
ELSEWHERE_CLOCK     seconds by which the wall clock is wrong; several, with commas: it jumps from one to the next, each
                    time that somebody looks
"""

from __future__ import annotations

import datetime
import fcntl
import itertools
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any


def be_elsewhere(host: str) -> None:
    socket.gethostname = lambda: host
    fcntl.flock = lambda *_: None


def be_wrong_about_the_time(offsets: list[float]) -> None:
    from gristmill.datapipe.workflow import record

    true, jumps = time.time, itertools.cycle(offsets)

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: true() + next(jumps)
    time.time_ns = lambda: int(time.time() * 1e9)
    setattr(record, "datetime", Wrong)  # noqa: B010 - compiled libraries insist on the true one, so only there


def main(script: str, arguments: list[str]) -> None:
    if host := os.environ.get("ELSEWHERE_HOST"):
        be_elsewhere(host)
    if clock := os.environ.get("ELSEWHERE_CLOCK"):
        be_wrong_about_the_time([float(offset) for offset in clock.split(",")])
    if stale := os.environ.get("ELSEWHERE_STALE"):
        from gristmill.datapipe.workflow import lock

        lock.STALE_SECONDS = float(stale)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
