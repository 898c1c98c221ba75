"""Which part of a DAG a run does, as command-line options of every pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.base import cli
from gristmill.base.config import nearest
from gristmill.base.durations import seconds_of
from gristmill.base.errors import UsageError
from gristmill.datapipe.workflow.stage import Node
from gristmill.datapipe.workflow.watch import Limit


@dataclass(frozen=True)
class RunOptions:
    plan: bool = False
    """Say what would run and why, about how long it takes, and stop."""
    start: cli.From = ""
    """Do this node, and all that depend on it, again."""
    only: tuple[str, ...] = ()
    """Bring these nodes and what they need up to date, and nothing else."""
    force: tuple[str, ...] = ()
    """Do these nodes again; what depends on them is done again where they come out otherwise."""
    timeout: str = "2h"
    """A piece of the ingest, a stage or a shuffle that takes longer (90s, 30m, 2h, 1d) is ended and fails; the others
    go on. 0: never. Steps (training) have no limit, and --workers 0 has none."""

    def limit(self, run: Path) -> Limit | None:
        """How long a piece of work in that run folder may take. Raises UsageError where `timeout` is no duration."""
        seconds = 0.0 if self.timeout == "0" else seconds_of(self.timeout, "--timeout")
        return Limit(seconds, run / ".work" / "hung") if seconds else None

    def again(self, nodes: Sequence[Node]) -> frozenset[str]:
        """Names of the nodes that are done again whatever is there.

        Raises:
            UsageError: an option names a node that the DAG has not.
        """
        known = [node.name for node in nodes]
        for flag, names in (("from", (self.start,) if self.start else ()), ("only", self.only), ("force", self.force)):
            for name in names:
                if name not in known:
                    raise UsageError(f"--{flag} {name}: no such node{nearest(name, known)}")
        after = {self.start} if self.start else set[str]()
        for node in nodes:  # each comes after what it depends on
            if after & set(node.dependencies):
                after.add(node.name)
        return frozenset(after | set(self.force))

    def chosen(self, nodes: Sequence[Node]) -> frozenset[str]:
        """Names of the nodes that are brought up to date."""
        if not self.only:
            return frozenset(node.name for node in nodes)
        wanted = set(self.only)
        for node in reversed(nodes):
            if node.name in wanted:
                wanted |= set(node.dependencies)
        return frozenset(node.name for node in nodes if node.name in wanted)
