"""SIGKILL to parts of a run at random moments, again and again, and the run brought to its end all the same.

One round is played on one run folder: first on Ray embedded in the run and then on a cluster, or the other way round.
A run that a kill ends is started again; one that survives goes on, and is killed again in another way.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tests.support.ray_cluster import PIPELINES, RayCluster
from tests.support.scripts import ROOT, environment

from gristmill.base.files import read_json

EMBEDDED, CLUSTER = "embedded", "cluster"
KINDS = ("driver", "worker", "actor", "raylet", "node")
MOVE = "move"
"""Not a kill: the run is stopped with SIGTERM, to go on on another cluster."""
START_SECONDS = 6.0
"""Of each start about so much goes by before any work does; part of the expected duration."""
PATIENCE_SECONDS = 300.0
"""A run that has not ended after so long hangs."""
ONLY_TASKS, ONLY_ACTORS = "heuristics", "scores"
"""Nodes that are done again where a run has ended before its moment came; their outputs come out the same."""


@dataclass(frozen=True)
class Demo:
    """What every run reads, and what an undisturbed one made of it."""

    inputs: Path
    oracle: str
    clean: Path
    seconds: float
    """How long the undisturbed run took."""

    def command(self, output: Path, *more: object) -> list[str]:
        script = ROOT / "tests" / "support" / "small_demo.py"
        given = ["--inputs", self.inputs, "--oracle", self.oracle, "--output", output, *more]
        return [sys.executable, str(script), *map(str, given)]

    def run(self, output: Path, workers: int) -> float:
        """Undisturbed; the seconds that it takes."""
        started, variables = time.monotonic(), environment(PYTHONPATH=PIPELINES)
        command = self.command(output, "--workers", workers)
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return time.monotonic() - started

    def expected(self, folder: Path) -> float:
        """Seconds that a run of `folder` may be expected to take, by the pieces of work that are done in it."""
        left = 1 - pieces(folder) / pieces(self.clean)
        return START_SECONDS + (self.seconds - START_SECONDS) * max(0.0, left)


@dataclass
class Kill:
    round: int
    kind: str
    ray: str
    """Embedded in the run, or a cluster."""
    attempt: int
    """Which start of the run."""
    seconds: float
    """After that start."""
    running: list[str]
    """The nodes of the DAG that were at work."""
    victim: str
    code: int | None = None
    """The run's exit code, where it ended by this kill."""

    @property
    def survived(self) -> bool:
        return self.code is None


def pieces(folder: Path) -> int:
    return len(list((folder / "ledger").glob("*/*.json")))


class Round:
    """One run folder, and what is done to it. `kills` says what happened so far."""

    def __init__(self, number: int, demo: Demo, folder: Path, random: np.random.Generator) -> None:
        self.number, self.demo, self.folder, self.random = number, demo, folder, random
        self.kills: list[Kill] = []
        self._attempt = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._cluster: RayCluster | None = None
        self._family: set[psutil.Process] = set()
        self._done: dict[Path, int] = {}

    def play(self, kinds: Sequence[str] = KINDS) -> None:
        """Each kind of kill once, in a random order and on either Ray (whole nodes on a cluster); then it may end."""
        halves: dict[str, list[str]] = {EMBEDDED: [], CLUSTER: []}
        for kind in self.random.permutation(kinds):
            halves[CLUSTER if kind == "node" or self.random.random() < 0.4 else EMBEDDED].append(str(kind))
        first, second = (str(ray) for ray in self.random.permutation(list(halves)))
        events = [(kind, first) for kind in halves[first]]
        if halves[first] and halves[second]:
            events.append((MOVE, first))
        events += [(kind, second) for kind in halves[second]]
        with ExitStack() as stack:
            stack.callback(self._end_all)
            self._cluster = stack.enter_context(RayCluster())
            for index, (kind, ray) in enumerate(events):
                self._disturb(kind, ray, len(events) - index)
            while self._ended(events[-1][1]) != 0:
                pass

    def leftovers(self) -> list[psutil.Process]:
        """Workers and raylets of runs that have ended, which should have ended with them."""
        own = [process for process in self._family if "Agent" not in _title(process)]  # they take a minute or two
        return psutil.wait_procs(own, timeout=60)[1]

    # ------------------------------------------------------------------------------------------------------------

    def _disturb(self, kind: str, ray: str, left: int) -> None:
        """Wait for the next moment, and kill. The moments that are left are uniform over the time that is left: the
        first of them is the smallest of `left` uniform numbers."""
        more: list[str] = []
        while kind != MOVE or self._process is not None:
            if self._process is None:
                self._start(ray, more)
            share = 1 - self.random.random() ** (1 / left)
            until = time.monotonic() + share * self.demo.expected(self.folder)
            if self._wait(until) is None and (victim := self._victim(kind, ray)) is not None:
                self._strike(kind, ray, victim)
                return
            if self._ended(ray) == 0:  # before its moment came: part of it is done again, to be killed in that
                more = ["--force", ONLY_TASKS, ONLY_ACTORS]

    def _strike(self, kind: str, ray: str, victim: psutil.Process) -> None:
        self._note_family()
        if kind == MOVE:
            self._stop()
            return
        running, title, seconds = self._running(), _title(victim), time.monotonic() - self._started
        if kind == "node":
            self._cluster_now().lose_node(victim.pid)
        elif kind == "raylet" and ray == CLUSTER:
            self._cluster_now().lose_raylet(victim.pid)
        else:
            victim.kill()
        self.kills.append(Kill(self.number, kind, ray, self._attempt, round(seconds, 1), running, title))
        if kind == "driver":
            self._ended(ray)

    def _victim(self, kind: str, ray: str) -> psutil.Process | None:
        """A process of that kind, waited for; None where the run ended before there was one. To move, it is the run."""
        while self._wait(time.monotonic() + 0.05) is None:
            if kind in (MOVE, "driver"):
                return psutil.Process(self._run().pid)
            family = self._descendants(ray)
            if kind == "node" or (kind == "raylet" and ray == CLUSTER):
                raylets = self._cluster_now().raylets
                found = [process for process in family if process.pid in raylets]
            elif kind == "raylet":
                found = [process for process in family if _name(process) == "raylet"]
            else:
                found = [process for process in family if _is_actor(process) == (kind == "actor") and _is_busy(process)]
            if found and (victim := found[int(self.random.integers(len(found)))]).is_running():
                return victim
        return None

    def _start(self, ray: str, more: Iterable[str]) -> None:
        self._attempt += 1
        assert self._attempt < 30, f"this would go on for ever: {self.kills}"
        variables = self._cluster_now().variables if ray == CLUSTER else {}
        variables = environment(PYTHONPATH=PIPELINES, **variables)
        self.log = self.folder.with_name(f"{self.folder.name}-{self._attempt}.log")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.demo.command(self.folder, *more), stdout=log, stderr=log, env=variables, cwd=ROOT
            )
        self._started = time.monotonic()

    def _wait(self, until: float) -> int | None:
        """The run's exit code, if it ends before then."""
        process = self._run()
        while process.poll() is None and time.monotonic() < until:
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))
        return process.poll()

    def _ended(self, ray: str) -> int:
        """Wait until the run has ended; its exit code. What did not end well is put down to the last kill."""
        if self._process is None:
            self._start(ray, ())
        code = self._wait(time.monotonic() + PATIENCE_SECONDS)
        assert code is not None, f"it hangs: {self.running_and_log()}"
        self._process = None
        self._check_nothing_done_twice()
        if code:
            assert self.kills and self.kills[-1].attempt == self._attempt, f"nobody killed it: {self.running_and_log()}"
            assert self.kills[-1].code is None, f"it failed twice: {self.running_and_log()}"
            self.kills[-1].code = code
            if self.kills[-1].kind != "driver":
                self._check_last_words(code)
        return code

    def _stop(self) -> None:
        self._run().terminate()
        code = self._wait(time.monotonic() + 60)
        # The signal's own number where it comes before the program has begun to listen.
        assert code in (0, 143, -signal.SIGTERM), f"after SIGTERM: {code}, {self.running_and_log()}"
        self._process = None
        self._check_nothing_done_twice()

    def _check_nothing_done_twice(self) -> None:
        """The ledger's entries of earlier attempts stand as they were: nobody wrote them again. Shuffles aside, whose
        outputs are a way to others and may be made again for those."""
        again = {ONLY_TASKS, ONLY_ACTORS, *(node["name"] for node in self._nodes() if node["kind"] == "shuffle")}
        entries = [
            path
            for path in (self.folder / "ledger").glob("*/[!.]*.json")
            if not path.parent.name.endswith(".scattered")
        ]
        found = {path: path.stat().st_mtime_ns for path in entries if path.parent.name not in again}
        twice = [path.relative_to(self.folder) for path, when in self._done.items() if found.get(path) != when]
        assert not twice, f"done before, and again: {twice}; {self.running_and_log()}"
        self._done = found

    def _check_last_words(self, code: int) -> None:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        own = [line for line in lines if line.startswith("small_demo.py: ")]
        assert code == 1 and len(own) == 1, f"exit code {code}: {self.running_and_log()}"

    def running_and_log(self) -> str:
        return f"{self._running()} at work; {self.log}:\n" + self.log.read_text(errors="replace")[-3000:]

    def _running(self) -> list[str]:
        return [node["name"] for node in self._nodes() if node["status"] == "running"]

    def _nodes(self) -> list[dict[str, Any]]:
        record = self.folder / "run.json"
        return read_json(record)["nodes"] if record.exists() else []

    def _run(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _cluster_now(self) -> RayCluster:
        assert self._cluster is not None
        return self._cluster

    def _descendants(self, ray: str) -> list[psutil.Process]:
        parent = self._cluster_now().process if ray == CLUSTER else psutil.Process(self._run().pid)
        return parent.children(recursive=True)

    def _note_family(self) -> None:
        """Once a parent is killed, its children can no longer be told by it."""
        self._family.update(psutil.Process(self._run().pid).children(recursive=True))

    def _end_all(self) -> None:
        """Whatever happened, no process of this round stays."""
        if self._process is not None and self._process.poll() is None:
            self._note_family()
            self._process.kill()
            self._process.wait()
        for process in self._family:
            if process.is_running():
                process.kill()


def write_kills(path: Path, kills: Sequence[Kill]) -> None:
    path.write_text("".join(json.dumps({**asdict(kill), "survived": kill.survived}) + "\n" for kill in kills))


def _title(process: psutil.Process) -> str:
    """ray::NAME of what a worker is at; else the program."""
    try:
        return (process.cmdline() or [process.name()])[0].rpartition("/")[2]
    except psutil.Error:
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _is_busy(process: psutil.Process) -> bool:
    title = _title(process)
    return title.startswith("ray::") and not title.startswith(
        ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    )


def _is_actor(process: psutil.Process) -> bool:
    return re.match(r"ray::\w*Worker\b", _title(process)) is not None  # a task has its node's name


def table(kills: Sequence[Kill]) -> str:
    """Markdown: by kind, how many kills there were, and how many of them the run survived. Of rounds that ended in the
    same bytes."""
    lines = ["| killed | times | run went on | run ended, and was started again |", "|---|---|---|---|"]
    for kind in (*KINDS, "in all"):
        own = [kill for kill in kills if kind in (kill.kind, "in all")]
        went_on = sum(kill.survived for kill in own)
        lines.append(f"| {kind} | {len(own)} | {went_on} | {len(own) - went_on} |")
    rounds = len({kill.round for kill in kills})
    return "\n".join([*lines, f"{rounds} rounds, all byte-identical to the undisturbed run, every row accounted for"])
