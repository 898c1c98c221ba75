"""Which nodes look for duplicates: exact and near ones always, other kinds where the policy reads what they find.

Two selections stand between them: states are made of what every rule keeps that is known by then, and repeats are
looked for in what these and the rules on semantic duplicates keep. What is cut must stand in a document that stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gristmill.base.errors import UsageError
from gristmill.datapipe.dedup.index import Recipe, SignatureIndex
from gristmill.datapipe.policy import LOOKED_AT, REPEATS, UNKNOWN, Policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.duplicates import duplicate_nodes, url_nodes
from gristmill.datapipe.stages.known import Known, KnownConfig
from gristmill.datapipe.stages.repeats import line_nodes, paragraph_nodes, substring_nodes
from gristmill.datapipe.stages.semantic import semantic_nodes
from gristmill.datapipe.workflow.stage import Node
from gristmill.scorer.config import PooledConfig
from measures import setups
from nodes import States

CLUSTERED = ("exact", "same_url", "near", "semantic")


@dataclass(frozen=True)
class DuplicateConfigs:
    """What this machine has to find duplicates with; how they are measured, the policy says."""

    known: KnownConfig = field(default_factory=KnownConfig)
    states: PooledConfig = field(default_factory=PooledConfig)


def duplicate_stages(policy: Policy, config: DuplicateConfigs, backbone: Path | None) -> list[Node]:
    """The nodes that find what the policy reads of duplicates. Says on stderr which of its rules may surprise.

    Raises:
        UsageError: the policy reads `known` and there is no index, or `semantic` and there is no backbone; or what it
            cuts could stand nowhere else.
    """
    refuse_late_choices(policy)
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
    if "semantic" in wanted:
        if backbone is None:
            raise UsageError(
                f"policy {policy.name!r} reads semantic: give --backbone, the model folder that makes states"
            )
        among = _looked_at(policy, "semantic")
        nodes += [among, States(backbone, config.states, among.name), *semantic_nodes(setup["semantic"])]
    kinds: dict[str, Callable[..., list[Node]]] = {
        "lines": line_nodes, "paragraphs": paragraph_nodes, "substrings": substring_nodes,
    }  # fmt: skip
    if wanted & set(REPEATS):
        nodes.append(_looked_at(policy, REPEATS[0]))
    nodes += [node for name, make in kinds.items() if name in wanted for node in make(setup[name])]
    for warning in warnings(policy):
        print(f"warning: {warning}", file=sys.stderr)
    return nodes


def _looked_at(policy: Policy, annotation: str) -> Select:
    name = LOOKED_AT[annotation]
    return Select(policy.looked_at(annotation), name, name, tokens=False)


def refuse_late_choices(policy: Policy) -> None:
    """That which copy of a document stays is known before repeats are looked for.

    Else both copies are looked at, all of the later one is a repeat of the first, and the first may go.

    Raises:
        UsageError: a rule keeps the best of each cluster, and an edit or a rule behind it is on repeats.
    """
    known = policy.looked_at(REPEATS[0]).rule
    for index, rule in enumerate(policy.rule):
        if rule.keep is None or rule in known:
            continue
        where = f"policy {policy.name!r}: rule {rule.name!r}: keep = {rule.keep!r} is decided by scores"
        mend = 'write keep = "longest", "newest" or "first", or'
        for edit in policy.edit:
            if edit.column.partition(".")[0] in REPEATS:
                raise UsageError(
                    f"{where}, after {edit.column} was found: the copy that stays could be the one that is cut; "
                    f"{mend} leave that [[edit]] out"
                )
        for later in policy.rule[index + 1 :]:
            if set(later.reads()) & set(REPEATS):
                raise UsageError(
                    f"{where}, after {later.column} was measured: the copy that stays could be the one that rule "
                    f"{later.name!r} drops as repeated; {mend} put that rule before this one"
                )


def warnings(policy: Policy) -> list[str]:
    """A line for each way in which the policy's rules may undo one another; see docs/duplicates.md."""
    told, read = [], {*policy.annotations(), *policy.edited_by()}
    cut = [edit.column for edit in policy.edit if edit.column.partition(".")[0] in REPEATS]
    late = [rule.name for rule in policy.rule if set(rule.reads()) & set(REPEATS)]
    if cut and late:
        told.append(
            f"policy {policy.name!r}: {_named(late)} may drop a document that holds the first copy of what "
            f"{', '.join(cut)} cuts elsewhere: such a passage stays nowhere"
        )
    for selection, unknown in UNKNOWN.items():
        names = [name for name in LOOKED_AT if name in read and LOOKED_AT[name] == selection]
        known = policy.without(*unknown).rule
        late_from = next((index for index, rule in enumerate(policy.rule) if rule not in known), len(policy.rule))
        chosen = [rule.name for rule in policy.rule[late_from:] if rule in known and rule.keep]
        if names and chosen:
            late = policy.rule[late_from].name
            told.append(
                f"policy {policy.name!r}: {_named(chosen)} chooses before {', '.join(names)} is looked for and again "
                f"behind rule {late!r}; a copy that only the second choice keeps is not measured: put {late!r} last"
            )
    return told


def _named(rules: list[str]) -> str:
    return f"rule{'s' if len(rules) > 1 else ''} {', '.join(map(repr, rules))}"
