"""Selection: the policy applied to a run's annotations, row-aligned with the documents, and the funnel it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json, write_json
from gristmill.datapipe.policy import Policy, as_json, decide
from gristmill.datapipe.stages import write_aligned
from gristmill.datapipe.workflow.stage import Inputs, Step


class Select(Step):
    """selection/: keep, reason, weight per document; funnel.json and policy.json beside them."""

    version = 1

    def __init__(self, policy: Policy, name: str = "selection", folder: str = "selection", heads: bool = False) -> None:
        self.name, self.folder, self.config = name, folder, policy
        self.requires = tuple(
            dict.fromkeys(("documents", "tokens", *policy.annotations(), *(("heads",) if heads else ())))
        )

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        policy: Policy = self.config
        sources = inputs.table("documents", ("source",))["source"].to_numpy().astype(str)
        tokens = inputs.table("tokens", ("count",))["count"].to_numpy()
        groups = read_json(inputs.folders["heads"] / "calibration.json")["groups"] if "heads" in inputs.folders else {}

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

        decision = decide(policy, sources, column, resolve)
        names = np.array([rule.name for rule in policy.rule] or [""])
        reason = pa.array(names[decision.reason], pa.string(), mask=decision.reason < 0)
        keep = decision.reason < 0
        write_aligned(inputs, "documents", out, {"keep": keep, "reason": reason, "weight": keep.astype(np.float32)})
        write_json(out / "policy.json", as_json(policy, decision))
        write_json(out / "funnel.json", _funnel(policy, sources, tokens, decision.reason))
        return {"documents": len(keep), "kept": int(keep.sum()), "tokens_kept": int(tokens[keep].sum())}


def _funnel(policy: Policy, sources: np.ndarray, tokens: np.ndarray, reason: np.ndarray) -> dict[str, object]:
    """Documents and tokens left after each rule, by source."""
    rows = []
    names = ["(all)", *(rule.name for rule in policy.rule)]
    for index, name in enumerate(names):
        left = (reason < 0) | (reason >= index)
        for source in np.unique(sources):
            here = left & (sources == source)
            rows.append(
                {"rule": name, "source": str(source), "documents": int(here.sum()), "tokens": int(tokens[here].sum())}
            )
    return {"rules": names[1:], "rows": rows}


def explain(run: Path, document: str) -> list[str]:
    """Why one document was kept or dropped: rule by rule, its value against the bounds.

    Raises:
        GristmillError: no document has that id, or the run has no selection yet.
    """
    from gristmill.datapipe.workflow.stage import read_part

    if not (run / "selection" / "policy.json").exists():
        raise GristmillError(f"{run}: no selection yet; run the pipeline first")
    policy = read_json(run / "selection" / "policy.json")
    for path in sorted((run / "documents").glob("part-*.parquet")):
        ids = read_part(path, ("id",))["id"].to_pylist()
        if document in ids:
            return _explain_row(run, policy, path.name, ids.index(document))
    raise GristmillError(f"{run}: no document has the id {document!r}")


def _explain_row(run: Path, policy: dict[str, list[dict]], part: str, row: int) -> list[str]:
    from gristmill.datapipe.workflow.stage import read_part

    document = read_part(run / "documents" / part).slice(row, 1).to_pylist()[0]
    chosen = read_part(run / "selection" / part).slice(row, 1).to_pylist()[0]
    verdict = "kept" if chosen["keep"] else f"dropped by rule {chosen['reason']!r}"
    lines = [f"{document['id']}: {verdict}", f"  source {document['source']}, {document['file']} row {document['row']}"]
    for rule in policy["rules"]:
        annotation, _, name = rule["column"].partition(".")
        values = read_part(run / "annotations" / annotation / part).slice(row, 1).to_pylist()[0]
        if rule["keep"] is not None:
            lines.append(f"  {rule['name']}: cluster {values['cluster']} of {values['size']}, keeps the {rule['keep']}")
        else:
            bounds = rule["sources"].get(document["source"], {})
            told = ", ".join(
                f"{key} {json.dumps(value)}" for key, value in bounds.items() if value not in (None, [], ())
            )
            lines.append(f"  {rule['name']}: {rule['column']} = {json.dumps(values[name])} ({told or 'no bound'})")
        if rule["name"] == chosen["reason"]:
            lines[-1] += "  <- dropped here"
            break
    return lines
