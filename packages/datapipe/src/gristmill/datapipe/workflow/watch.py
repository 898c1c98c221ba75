"""What watches over work: a time limit within the worker of a piece, and whether the cluster still answers.

Neither asks what it watches for help: the limit holds where C code keeps Python's lock, and the cluster is tried by a
plain connection, because a call into Ray can itself wait for a cluster that is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
import socket
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 1.0
CONNECT_SECONDS = 2.0
SILENT_LOOKS = 10
"""For so many looks in a row nothing may answer: half a minute, with the time that each takes."""
LIBRARIES = (sysconfig.get_path("stdlib"), "site-packages", "<frozen")
WORKER = "workflow/worker.py"
"""Where work is called, in the thread that does it."""
FRAME = re.compile(r'File "(.+)", line (\d+) in (\S+)')


@dataclass(frozen=True)
class Limit:
    """How long a piece may take, and the folder (all machines see it) for the traces of those that took longer."""

    seconds: float
    traces: Path

    def trace(self, job: str, piece: str) -> Path:
        return self.traces / (re.sub(r"[^\w.-]+", "-", f"{job}-{piece}") + ".txt")


@contextlib.contextmanager
def limited(seconds: float, trace: Path) -> Iterator[None]:
    """End this process, with all its threads' stacks in `trace`, where the body takes longer."""
    trace.parent.mkdir(parents=True, exist_ok=True)
    with trace.open("w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    trace.unlink(missing_ok=True)


def where_it_stood(trace: Path) -> str | None:
    """The innermost line of a worker's trace that is neither Python's own nor a library's; None without a trace."""
    try:
        text = trace.read_text(errors="replace")
    except OSError:
        return None
    threads = [FRAME.findall(part) for part in text.split("\n\n")]
    for frames in threads:
        at = next((at for at, frame in enumerate(frames) if frame[0].endswith(WORKER) and frame[2] == "work"), 0)
        if at:
            own = [frame for frame in frames[:at] if not any(library in frame[0] for library in LIBRARIES)]
            file, line, function = (own or frames)[0]
            return f"{file}, line {line}, in {function}"
    return "not in the work itself" if any(threads) else None


@dataclass(frozen=True)
class Service:
    """A part of a cluster without which nothing goes on."""

    name: str
    host: str
    port: int
    refusals: int
    """For so many looks in a row it may refuse connections: one that can be started again needs time for that."""


def first_gone(services: Sequence[Service], over: threading.Event) -> Service | None:
    """Wait until one of them is gone, or until `over` is set: None."""
    missed = dict.fromkeys(services, 0)
    while not over.wait(LOOK_SECONDS):
        for service in services:
            try:
                socket.create_connection((service.host, service.port), CONNECT_SECONDS).close()
                missed[service] = 0
            except OSError as error:
                missed[service] += 1
                allowed = service.refusals if isinstance(error, ConnectionRefusedError) else SILENT_LOOKS
                if missed[service] > allowed:
                    return service
    return None
