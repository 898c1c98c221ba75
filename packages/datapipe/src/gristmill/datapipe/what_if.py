"""What another policy would keep of a finished run, from its stored annotations: nothing is measured again."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.base.config import nearest, to_mapping
from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.policy import LOOKED_AT, QUARANTINED, Policy
from gristmill.datapipe.policy_file import load_policy, read_policy
from gristmill.datapipe.select import apply, sources_of, tokens_of, written_policy
from gristmill.datapipe.workflow.stage import Inputs, open_run


@dataclass(frozen=True)
class Share:
    """Documents and tokens that stay, as the run stands and as it would."""

    name: str
    documents: int
    documents_then: int
    tokens: int
    tokens_then: int


@dataclass(frozen=True)
class LookedAt:
    """Of an annotation that is looked for only in what other rules keep (policy.LOOKED_AT): how far its stored values
    are not those that the policy would have."""

    annotation: str
    unseen: int
    """Documents that the policy would look at and the run did not: no value is known of them."""
    needless: int
    """Documents that the run looked at and the policy would not: what others repeat of these counts as repeated."""


@dataclass(frozen=True)
class Answer:
    kept: tuple[Share, ...]
    """All, then each source."""
    quarantined: Share
    """What a stage could not handle of what the policy reads."""
    dropped: tuple[Share, ...]
    """By each rule of either policy."""
    newly_kept: tuple[str, ...]
    newly_dropped: tuple[tuple[str, str], ...]
    """A few ids (and the rule) of documents that change sides."""
    edited_otherwise: bool
    """The policy would edit the text in another way than the run did, whose tokens are counted."""
    looked_otherwise: tuple[LookedAt, ...]
    """What the policy reads of duplicates and would look for in other documents than the run did."""


def policy_of(run: Path, file: Path | None, changes: Sequence[str], without: Sequence[str]) -> Policy:
    """The run's policy, or that of `file`, with `RULE.KEY=VALUE` changes applied and some rules left out.

    Raises:
        UsageError: a change names no rule or key, or leaves a policy that makes no sense.
        GristmillError: the run has no selection yet.
    """
    policy = written_policy(run)["policy"] if file is None else to_mapping(load_policy(file).asking())
    rules = {rule["name"]: rule for rule in policy["rule"]}
    for name in without:
        if name not in rules:
            raise UsageError(f"--without {name}: the policy has no such rule{nearest(name, rules)}")
    for change in changes:
        _change(rules, change)
    policy["rule"] = [rule for rule in policy["rule"] if rule["name"] not in without]
    return read_policy(policy, "--set")


def _change(rules: dict[str, dict[str, Any]], change: str) -> None:
    path, equals, text = change.partition("=")
    name, *keys = path.strip().split(".")
    if not equals or not keys:
        raise UsageError(f"--set {change}: write RULE.KEY=VALUE, as words.min=100 or words.sources.code.min=10")
    if name not in rules:
        raise UsageError(f"--set {change}: the policy has no rule {name!r}{nearest(name, rules)}")
    place = rules[name]
    own = {key: place[key] for key in ("min", "max", "allowed") if place.get(key) not in (None, [], ())}
    for depth, key in enumerate(keys[:-1]):
        place = place.setdefault(key, dict(own) if depth == 1 else {})  # a source starts from the rule's own bounds
        if not isinstance(place, dict):
            raise UsageError(f"--set {change}: {key!r} holds no further keys")
    try:
        place[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[keys[-1]] = text  # a bare word, as in near_duplicate.keep=longest


def what_if(run: Path, policy: Policy, samples: int = 5, seed: int = 0) -> Answer:
    """How `policy` would change the run's selection.

    Raises:
        GristmillError: the policy reads a column that this run never measured, or measured in another way.
    """
    inputs, written = open_run(run), written_policy(run)["policy"]
    unknown = [name for name in policy.annotations() if name not in inputs.folders]
    if unknown:
        raise GristmillError(f"{run}: the run measured no {', '.join(unknown)}: run the pipeline with this policy")
    otherwise = [
        name for name in policy.annotations() if policy.measure.get(name, {}) != written["measure"].get(name, {})
    ]
    if otherwise:
        raise GristmillError(
            f"{run}: the policy measures {', '.join(otherwise)} in another way ([measure]) than this run did: "
            "run the pipeline with it, into another folder"
        )
    now = inputs.table("selection", ("keep", "reason"))
    names = [*(rule.name for rule in policy.rule), QUARANTINED]
    then = apply(policy, inputs).reason
    reasons = now["reason"].to_numpy(zero_copy_only=False)
    sources, tokens = sources_of(inputs), tokens_of(inputs).astype(np.int64)
    stays, would = now["keep"].to_numpy(zero_copy_only=False), then < 0

    def share(name: str, before: np.ndarray, after: np.ndarray) -> Share:
        return Share(
            name, int(before.sum()), int(after.sum()), int(tokens[before].sum()), int(tokens[after].sum())
        )  # fmt: skip

    known = dict.fromkeys([*names, *(name for name in np.unique(reasons[~stays].astype(str)))])
    by_name = {
        name: share(name, reasons == name, then == names.index(name) if name in names else np.zeros(len(then), bool))
        for name in known
    }
    quarantined = by_name.pop(QUARANTINED)
    kept = [share("(all)", stays, would)]
    kept += [share(str(s), stays & (sources == s), would & (sources == s)) for s in np.unique(sources)]
    generator = np.random.Generator(np.random.PCG64(seed))
    gained, lost = (
        np.sort(generator.permutation(np.flatnonzero(rows))[:samples]) for rows in (would & ~stays, stays & ~would)
    )
    ids = _ids(inputs, np.concatenate([gained, lost]))
    newly_dropped = tuple((ids[row], names[then[row]]) for row in lost.tolist())
    newly_kept = tuple(ids[row] for row in gained.tolist())
    edits = to_mapping(policy)["edit"]
    otherwise = looked_otherwise(inputs, read_policy(written, str(run)), policy)
    return Answer(
        tuple(kept),
        quarantined,
        tuple(by_name.values()),
        newly_kept,
        newly_dropped,
        edits != written["edit"],
        otherwise,
    )


def looked_otherwise(inputs: Inputs, written: Policy, policy: Policy) -> tuple[LookedAt, ...]:
    """What `policy` reads and would look for in other documents than the run did by the policy `written`."""
    found = []
    for name in LOOKED_AT:
        ours, theirs = policy.looked_at(name), written.looked_at(name)
        read = name in inputs.folders and name in (*policy.annotations(), *policy.edited_by())
        if read and ours.rule != theirs.rule:
            would, did = (apply(rules, inputs).reason < 0 for rules in (ours, theirs))
            found.append(LookedAt(name, int((would & ~did).sum()), int((did & ~would).sum())))
    return tuple(each for each in found if each.unseen or each.needless)


def _ids(inputs: Inputs, rows: np.ndarray) -> dict[int, str]:
    found: dict[int, str] = {}
    start = 0
    for part in inputs.parts["documents"]:
        ids = inputs.part("documents", part, ("id",))["id"]
        here = rows[(rows >= start) & (rows < start + len(ids))]
        found |= {int(row): ids[int(row) - start].as_py() for row in here}
        start += len(ids)
    return found


def table(answer: Answer) -> list[str]:
    """The answer as text."""
    from gristmill.base.terminal import shown

    aside = answer.quarantined
    width = max(
        len(name) for name in ("dropped by", *(shown(row.name) for row in (*answer.kept, aside, *answer.dropped)))
    )
    lines = []
    sections = [("kept", answer.kept), ("dropped by", answer.dropped)]
    if aside.documents or aside.documents_then:
        sections.insert(1, ("neither", (aside,)))
    for title, rows in sections:
        lines.append(f"{title:<{width}}  {'documents':>12} {'then':>12} {'change':>9} {'tokens':>15} {'then':>15}")
        lines += [
            f"{shown(row.name):<{width}}  {row.documents:>12,} {row.documents_then:>12,} "
            f"{row.documents_then - row.documents:>+9,} {row.tokens:>15,} {row.tokens_then:>15,}"
            for row in rows
        ]
    if answer.edited_otherwise:
        lines.append("tokens are counted as the run edited the text; this policy would edit it otherwise")
    lines += [
        f"{each.annotation} would be looked for in {each.unseen:,} documents that the run did not look at, and not in "
        f"{each.needless:,} that it did: only a run with this policy tells what that changes"
        for each in answer.looked_otherwise
    ]
    lines += [f"would keep  {shown(name)}" for name in answer.newly_kept]
    lines += [f"would drop  {shown(name)}  ({rule})" for name, rule in answer.newly_dropped]
    return lines
