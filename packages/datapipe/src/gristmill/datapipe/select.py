"""Selection: the policy applied to a run's annotations, row-aligned with the documents, and the funnel it makes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json, read_object, write_json
from gristmill.datapipe.policy import QUARANTINED, Decision, Policy, as_json, decide
from gristmill.datapipe.workflow.aligned import write_aligned
from gristmill.datapipe.workflow.quarantine import aligned_marks
from gristmill.datapipe.workflow.stage import Inputs, Step


class Select(Step):
    """selection/: keep, reason, weight per document; funnel.json and policy.json beside them.

    The reason is the rule that dropped the document, or QUARANTINED.
    Without `tokens` it stands before the text is edited and tokenised, and its funnel counts none.
    """

    version = 2

    def __init__(
        self, policy: Policy, name: str = "selection", folder: str = "selection", calibrated: bool = False,
        tokens: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.folder, self.config = name, folder, policy.asking() if tokens else policy
        extra = (*(("tokens",) if tokens else ()), *policy.annotations(), *(("thresholds",) if calibrated else ()))
        self.requires = tuple(dict.fromkeys(("documents", *extra)))

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        policy: Policy = self.config
        decision = apply(policy, inputs)
        names = np.array([*(rule.name for rule in policy.rule), QUARANTINED])
        reason = pa.array(names[decision.reason], pa.string(), mask=decision.reason < 0)
        keep = decision.reason < 0
        sources = sources_of(inputs)
        tokens = tokens_of(inputs) if "tokens" in self.requires else np.zeros(len(sources), np.int32)
        write_aligned(inputs, "documents", out, {"keep": keep, "reason": reason, "weight": keep.astype(np.float32)})
        write_json(out / "policy.json", as_json(policy, decision))
        write_json(out / "funnel.json", funnel(policy, sources, tokens, decision.reason))
        counts: dict[str, float] = {"documents": len(keep), "kept": int(keep.sum())}
        if aside := int((decision.reason == len(policy.rule)).sum()):
            counts["quarantined"] = aside
        return counts | ({"tokens_kept": int(tokens[keep].sum())} if "tokens" in self.requires else {})


def written_policy(run: Path) -> dict[str, Any]:
    """RUN/selection/policy.json as Select wrote it: the policy, and its rules with the numbers that were applied.

    Raises:
        GristmillError: the run has no selection yet.
        DataError: the file is damaged.
    """
    path = run / "selection" / "policy.json"
    if not path.exists():
        raise GristmillError(f"{run}: no selection yet; run the pipeline first")
    mend = f"delete the folder {path.parent}, and run the pipeline to have it made again"
    return read_object(path, mend, policy=dict, rules=list)


def sources_of(inputs: Inputs) -> NDArray[np.str_]:
    return inputs.table("documents", ("source",))["source"].to_numpy().astype(str)


def tokens_of(inputs: Inputs) -> NDArray[np.int32]:
    return inputs.table("tokens", ("count",))["count"].to_numpy()


def apply(policy: Policy, inputs: Inputs) -> Decision:
    """What the policy decides about each document of a run, from what the stages measured.

    Set aside are those that are marked in an annotation which the policy's rules or edits read, or in what that was
    made of.

    Raises:
        GristmillError: the policy reads a column that the run has not, or a threshold that calibration did not find.
    """
    thresholds = inputs.folders.get("thresholds")
    groups = read_json(thresholds / "calibration.json")["groups"] if thresholds else {}

    def column(annotation: str, name: str) -> pa.ChunkedArray:
        try:
            return inputs.table(annotation, (name,))[name]
        except (KeyError, pa.ArrowInvalid):
            raise GristmillError(f"policy {policy.name!r}: there is no column {annotation}.{name}") from None

    def resolve(name: str, source: str) -> float | None:
        group = groups.get(source) or groups.get("(all)")
        if group is None or name not in group:
            raise GristmillError(f"policy {policy.name!r}: calibration.json has no {name!r} for source {source!r}")
        return group[name]

    sources, read = sources_of(inputs), (*policy.annotations(), *policy.edited_by())
    return decide(policy, sources, column, resolve, _marked(inputs, read, len(sources)))


def _marked(inputs: Inputs, names: Iterable[str], documents: int) -> NDArray[np.bool_]:
    """Which documents are marked in any of these annotations."""
    aside, start = np.zeros(documents, bool), 0
    for part, marks in zip(inputs.parts["documents"], aligned_marks(inputs, "documents", names), strict=True):
        aside[start + np.array(list(marks), np.int64)] = True
        start += pq.read_metadata(inputs.folders["documents"] / part).num_rows
    return aside


def funnel(
    policy: Policy, sources: NDArray[np.str_], tokens: NDArray[np.int32], reason: NDArray[np.int16]
) -> dict[str, object]:
    """Documents and tokens left after each rule, by source; and before all rules, where any are QUARANTINED."""
    rows = []
    aside = reason == len(policy.rule)
    steps = [("(all)", np.ones(len(reason), bool)), *([(QUARANTINED, ~aside)] if aside.any() else [])]
    steps += [(rule.name, ~aside & ((reason < 0) | (reason > index))) for index, rule in enumerate(policy.rule)]
    for name, left in steps:
        for source in np.unique(sources):
            here = left & (sources == source)
            rows.append(
                {"rule": name, "source": str(source), "documents": int(here.sum()), "tokens": int(tokens[here].sum())}
            )
    return {"rules": [name for name, _ in steps[1:]], "rows": rows}
