"""What was changed between two runs that could be why documents changed fate: the policy, and what was measured."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.datapipe.run_diff_documents import Side


@dataclass(frozen=True)
class PolicyChange:
    what: str
    """A rule, RULE.KEY as its sources met it, the place of a rule in the order, an edit, or measure.KEY."""
    sources: tuple[str, ...]
    a: Any
    b: Any


@dataclass(frozen=True)
class MeasureChange:
    """A node before the selection that was not made of the same things in both runs."""

    node: str
    compared: int
    """Outputs of the same documents in both runs ..."""
    different: int
    """... and how many of them came out otherwise."""
    why: str


def policy_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[PolicyChange, ...]:
    """Rules as they were applied, with calibrated numbers; edits and [measure] as they were written."""
    applied_a, applied_b = ({rule["name"]: rule for rule in policy["rules"]} for policy in (a, b))
    written_a, written_b = ({rule["name"]: rule for rule in policy["policy"]["rule"]} for policy in (a, b))
    changes = [PolicyChange(f"rule {name}", (), written_a[name], None) for name in applied_a if name not in applied_b]
    changes += [PolicyChange(f"rule {name}", (), None, written_b[name]) for name in applied_b if name not in applied_a]
    order_a, order_b = (
        [name for name in rules if name in applied_a and name in applied_b] for rules in (applied_a, applied_b)
    )
    for name in order_a:
        moved = _moved(applied_a[name], applied_b[name])
        if not moved and written_a[name] != written_b[name]:
            moved = [PolicyChange(f"{name}, as written", (), written_a[name], written_b[name])]
        changes += moved
    blocks = difflib.SequenceMatcher(None, order_a, order_b, autojunk=False).get_matching_blocks()
    stay = {name for block in blocks for name in order_a[block.a : block.a + block.size]}
    for name in order_b:
        if name not in stay:
            places = [list(rules).index(name) + 1 for rules in (applied_a, applied_b)]
            changes.append(PolicyChange(f"place of {name}", (), *places))
    edits_a, edits_b = a["policy"]["edit"], b["policy"]["edit"]
    changes += [PolicyChange(f"edit {edit['column']}", (), edit, None) for edit in edits_a if edit not in edits_b]
    changes += [PolicyChange(f"edit {edit['column']}", (), None, edit) for edit in edits_b if edit not in edits_a]
    flat_a, flat_b = (dict(_flat(policy["policy"]["measure"], "measure")) for policy in (a, b))
    changes += [
        PolicyChange(key, (), flat_a.get(key), flat_b.get(key))
        for key in sorted({*flat_a, *flat_b})
        if flat_a.get(key) != flat_b.get(key)
    ]
    return tuple(changes)


def _moved(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[PolicyChange]:
    """What one rule asks otherwise; of sources that both runs have, those that met the same numbers together."""
    keys = [key for key in ("column", "keep", "missing") if a[key] != b[key]]
    changes = [PolicyChange(f"{a['name']}.{key}", (), a[key], b[key]) for key in keys]
    for key in ("min", "max", "allowed"):
        together: dict[str, list[str]] = {}
        for source in sorted(set(a["sources"]) & set(b["sources"])):
            one, other = a["sources"][source].get(key), b["sources"][source].get(key)
            if one != other:
                together.setdefault(repr((one, other)), []).append(source)
        for found in together.values():
            one, other = (side["sources"][found[0]].get(key) for side in (a, b))
            changes.append(PolicyChange(f"{a['name']}.{key}", tuple(found), one, other))
    return changes


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


def measure_changes(a: Side, b: Side, places: Sequence[tuple[int, int]]) -> tuple[MeasureChange, ...]:
    """Ledger entries of the nodes that the selection depends on, over the documents that both runs have in place.

    An entry's fingerprint is of a node's own identity (version, settings, model files, libraries) and of its inputs:
    where it differs and all inputs are equal, it was the identity.
    """
    nodes_a, nodes_b = ({node["name"]: node for node in side.record["nodes"]} for side in (a, b))
    before = _before("selection", nodes_a) | _before("selection", nodes_b)
    counterpart = {a.parts[one]: b.parts[other] for one, other in places}
    in_order = [(at, at) for at in range(max(len(a.parts), len(b.parts)))]
    same, same_whole = {"documents": True}, {"documents": list(places) == in_order}
    changes = []
    for name in [name for name in dict.fromkeys([*nodes_b, *nodes_a]) if name in before and name != "documents"]:
        if name not in nodes_a or name not in nodes_b:
            changes.append(MeasureChange(name, 0, 0, f"only in {'A' if name in nodes_a else 'B'}"))
            continue
        pieces_a, pieces_b = a.entries(name), b.entries(name)
        pairs = ((entry, pieces_b.get(counterpart.get(piece, "") if piece in a.sha256 else piece))
                 for piece, entry in pieces_a.items())  # fmt: skip
        compared = [(one, other) for one, other in pairs if other is not None]
        different = sum(one.sha256 != other.sha256 for one, other in compared)
        same[name] = not different
        same_whole[name] = not different and len(compared) == len(pieces_a) == len(pieces_b)
        if any(one.fingerprint != other.fingerprint for one, other in compared):
            reads = same if nodes_a[name]["kind"] == "stage" else same_whole
            inputs = ", ".join(other for other in nodes_b[name]["requires"] if not reads.get(other, False))
            own = "its own version, settings, model files or libraries"
            changes.append(MeasureChange(name, len(compared), different, f"what it reads: {inputs}" if inputs else own))
    return tuple(changes)


def _before(name: str, nodes: Mapping[str, Any]) -> set[str]:
    """All nodes that this one depends on."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(nodes.get(waiting.pop(), {}).get("requires", [])) - found
        found |= new
        waiting += new
    return found


def version_changes(a: Side, b: Side) -> dict[str, tuple[str | None, str | None]]:
    one, other = a.record["versions"], b.record["versions"]
    both = {name: (one.get(name), other.get(name)) for name in sorted({*one, *other})}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}
