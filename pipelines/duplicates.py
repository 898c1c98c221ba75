"""Which nodes look for duplicates: exact and near ones always, other kinds where the policy reads what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup.index import Recipe, SignatureIndex
from gristmill.datapipe.dedup.semantic import SemanticConfig
from gristmill.datapipe.policy import Policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.duplicates import duplicate_nodes, url_nodes
from gristmill.datapipe.stages.known import Known, KnownConfig
from gristmill.datapipe.stages.repeats import line_nodes, paragraph_nodes, substring_nodes
from gristmill.datapipe.stages.semantic import semantic_nodes
from gristmill.datapipe.workflow.stage import Node
from gristmill.scorer.pooled import PooledConfig
from measures import setups
from nodes import States

CLUSTERED = ("exact", "same_url", "near", "semantic")
OF_SURVIVORS = ("lines", "paragraphs", "substrings", "semantic")
"""Annotations that look only at what the policy's rules before them keep: what is cut must stand in a document that
stays, and states are expensive."""
LATER = (*OF_SURVIVORS, "tokens", "scores")
"""What is not known yet when those look."""


@dataclass(frozen=True)
class DuplicateConfigs:
    """What this machine has to find duplicates with; how they are measured, the policy says."""

    known: KnownConfig = field(default_factory=KnownConfig)
    states: PooledConfig = field(default_factory=PooledConfig)


def duplicate_stages(policy: Policy, config: DuplicateConfigs, backbone: Path | None) -> list[Node]:
    """The nodes that find what the policy reads of duplicates.

    Raises:
        UsageError: the policy reads `known` and there is no index, or `semantic` and there is no backbone.
    """
    wanted = {*policy.annotations(), *policy.edited_by()}
    setup = setups(policy)
    nodes = duplicate_nodes(setup["near"])
    if "same_url" in wanted:
        nodes += url_nodes()
    if "known" in wanted:
        if not config.known.index:
            raise UsageError(
                f"policy {policy.name!r} reads known.*: give --known.index FOLDER (datapipe index makes one)"
            )
        known = replace(config.known, index=str(Path(config.known.index).absolute()))
        SignatureIndex.open(Path(known.index)).recipe.refuse(Recipe(setup["near"].minhash), "this run", known.index)
        nodes.append(Known(known))
    if wanted & set(OF_SURVIVORS):
        nodes.append(Select(policy.before(*LATER), "unique", "unique", tokens=False))
    kinds: dict[str, Callable[[], Sequence[Node]]] = {
        "lines": lambda: line_nodes(setup["lines"]),
        "paragraphs": lambda: paragraph_nodes(setup["paragraphs"]),
        "substrings": lambda: substring_nodes(setup["substrings"]),
        "semantic": lambda: _semantic(policy, setup["semantic"], config.states, backbone),
    }
    for name, make in kinds.items():
        if name in wanted:
            nodes += make()
    return nodes


def _semantic(policy: Policy, config: SemanticConfig, states: PooledConfig, backbone: Path | None) -> list[Node]:
    if backbone is None:
        raise UsageError(f"policy {policy.name!r} reads semantic: give --backbone, the model folder that makes states")
    return [States(backbone.resolve(), states), *semantic_nodes(config)]
