"""Which part of a DAG a run does, as command-line options of every pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gristmill.base import cli
from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.datapipe.workflow.stage import Node


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
