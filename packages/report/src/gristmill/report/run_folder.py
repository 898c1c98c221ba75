"""A run folder as one JSON-able value. Every part may be absent: its panel then says what is missing and who makes it.

Nothing here assumes a finished run, so the same function serves a page about a run that is still going on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import read_json, read_object
from gristmill.report import comparison, duplicates, measures, workflow
from gristmill.report.asked import AskedWrong
from gristmill.report.columns import Array, NotThere, Rows, open_file, open_rows, read_file, selection, set_aside
from gristmill.report.heads import audit, scores
from gristmill.report.heads import bundles as heads
from gristmill.report.live_run import LiveRun
from gristmill.report.reading import rules, samples
from gristmill.report.shards import artifacts
from gristmill.report.training import summary, trainings

T = TypeVar("T")
Panel = dict[str, Any]
Labels = tuple[Array, list[str]]
Kept = Callable[[str, tuple[str, ...], Callable[[], Any]], Any]
BY_ROW = ("documents", "annotations", "selection", "labels", "audit", "heads", "thresholds", "duplicates")
SPLITS = ("fit", "select", "certify", "audit")  # of the graded sample, in the order in which the scorer uses them
NO_DIMENSIONS = {"mass", "seconds", "weight"}  # columns of grades that are no grade, though they are floats
EXAMPLES_PER_REASON, QUARANTINE_LINES, SNIPPET = 5, 20_000, 400
NOT_AS_WRITTEN = (
    OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, pa.ArrowException,
)  # fmt: skip
"""What a file raises that is not as it should be: damaged, of another version, or anybody's."""


@dataclass(frozen=True)
class ReportData:
    """One dict per panel; {"missing", "made_by"} where the run has no such part, {"error"} where it cannot be read."""

    overview: Panel
    stages: Panel
    funnel: Panel
    measures: Panel
    scores: Panel
    oracle: Panel
    heads: Panel
    duplicates: Panel
    samples: Panel
    quarantine: Panel
    training: Panel
    comparison: Panel
    artifacts: Panel

    def to_json(self) -> str:
        return as_json(dataclasses.asdict(self))


def report_of(run: LiveRun) -> tuple[ReportData, str]:
    """All that the page of a run shows at first, and a tag that changes when it does."""
    return run.tagged("report", ("",), lambda: collect(run.folder, run.seed, run.kept))


def collect(run: Path, seed: int = 0, kept: Kept | None = None) -> ReportData:
    """Read what the page shows of `run`; documents are chosen for reading by `seed`.

    `kept(name, folders, make)` may give again what it made as long as nothing below those folders has changed: what is
    read row by row takes longest, and run.json changes every second while a run goes on.

    Raises:
        UsageError: `run` is no folder.
    """
    if not run.is_dir():
        raise UsageError(f"{run}: no such run folder; give the folder that a pipeline wrote (it holds run.json)")

    def part(name: str, folders: tuple[str, ...], make: Callable[[], T]) -> T:
        return kept(name, folders, make) if kept else make()

    by_row = part("by row", BY_ROW, lambda: _row_panels(run, seed))
    refused = part("quarantine", ("quarantine",), lambda: _attempt(lambda: _refused(run)))
    stages, quarantine = panel_of(lambda: workflow.read(run)), panel_of(lambda: _quarantine(run, *refused))
    funnel = part("funnel", ("selection",), lambda: panel_of(lambda: _funnel(run)))
    compared = panel_of(lambda: comparison.read(run))
    return ReportData(
        overview=_overview(run, stages, funnel, quarantine, compared, by_row),
        stages=stages,
        funnel=funnel,
        measures=by_row["measures"],
        scores=by_row["scores"],
        oracle=by_row["oracle"],
        heads=part("heads", ("heads", "drift"), lambda: panel_of(lambda: _heads(run))),
        duplicates=by_row["duplicates"],
        samples=by_row["samples"],
        quarantine=quarantine,
        training=panel_of(lambda: _training(run)),
        comparison=compared,
        artifacts=part("artifacts", ("shards", "published"), lambda: panel_of(lambda: artifacts.read(run))),
    )


def _attempt(make: Callable[[], T], tell: bool = False) -> tuple[T | None, Panel]:
    """What `make` gives, or None and the panel that says why there is nothing; `tell` on stderr what may be ours."""
    try:
        return make(), {}
    except NotThere as absent:
        return None, {"missing": absent.what, "made_by": absent.made_by}
    except AskedWrong:
        raise
    except GristmillError as error:
        return None, {"error": str(error)}
    except NOT_AS_WRITTEN as error:
        # Files of other programs and other versions: one that cannot be read costs its own panel, not the page.
        if tell and isinstance(error, (LookupError, TypeError, AttributeError)):
            traceback.print_exc()
        return None, {"error": f"{type(error).__name__}: {error}"}


def panel_of(make: Callable[[], Panel], tell: bool = False) -> Panel:
    """What `make` gives, or the panel that says why there is nothing. Raises AskedWrong: a question's fault."""
    made, failure = _attempt(make, tell)
    return failure if made is None else made


def _json(path: Path, run: Path, made_by: str) -> Any:
    if not path.exists():
        raise NotThere(path.relative_to(run).as_posix(), made_by)
    return read_object(path)


def _funnel(run: Path) -> Panel:
    """Left and dropped, per rule and source: documents, tokens; in the order in which the policy asks."""
    written = _json(run / "selection" / "funnel.json", run, "the select stage")
    names = ["(all)", *(name for name in written["rules"] if name != "(all)")]
    sources = list(dict.fromkeys(row["source"] for row in written["rows"]))
    left = {(row["rule"], row["source"]): row for row in written["rows"]}
    nothing = {"documents": 0, "tokens": 0}
    before = {source: left.get(("(all)", source), nothing) for source in sources}
    rules: list[Panel] = []
    for name in names:
        after = {
            source: left.get((name, source), nothing) for source in sources
        }  # no row: nothing of the source is left
        rules.append(
            {
                "rule": name,
                **{unit: sum(row[unit] for row in after.values()) for unit in ("documents", "tokens")},
                **{
                    f"dropped_{unit}": sum(before[source][unit] - after[source][unit] for source in sources)
                    for unit in ("documents", "tokens")
                },
                "by_source": {
                    source: {unit: after[source][unit] for unit in ("documents", "tokens")} for source in sources
                },
            }
        )
        before = after
    policy = run / "selection" / "policy.json"
    return {"sources": sources, "rules": rules, "policy": read_json(policy) if policy.exists() else None}


def _row_panels(run: Path, seed: int) -> dict[str, Panel]:
    rows, failure = _attempt(lambda: open_rows(run))
    source, failure = _attempt(lambda: rows.labels("documents", "source")) if rows else (None, failure)
    if rows is None or source is None:
        names = ("rows", "measures", "scores", "duplicates", "samples")
        return dict.fromkeys(names, failure) | {"oracle": panel_of(lambda: _oracle(run, None))}
    selected, unselected = _attempt(lambda: selection(rows))
    keep, reason = selected or (None, (np.full(rows.total, -1, dtype=np.int32), []))
    tokens, _ = _attempt(lambda: rows.numbers("annotations/tokens", "count"))
    calibration = calibration_of(run)
    clusters = panel_of(lambda: duplicates.read(run, rows))
    chosen = (
        panel_of(lambda: _samples(run, rows, keep, reason, source, calibration, clusters, seed))
        if keep is not None
        else unselected
    )
    return {
        "rows": {"documents": rows.total} | _kept(keep, tokens),
        "measures": panel_of(lambda: measures.kept_and_dropped(rows, keep, set_aside(reason))),
        "scores": panel_of(lambda: _scores(run, rows, source, calibration, tokens)),
        "oracle": panel_of(lambda: _oracle(run, rows)),
        "duplicates": clusters,
        "samples": chosen,
    }


def _kept(keep: Array | None, tokens: Array | None) -> Panel:
    out: Panel = {}
    if keep is not None:
        out["documents_kept"] = int(keep.sum())
    if tokens is not None:
        out["tokens"] = int(np.nansum(tokens))
        if keep is not None:
            out["tokens_kept"] = int(np.nansum(tokens[keep]))
    return out


def _samples(
    run: Path,
    rows: Rows,
    keep: Array,
    reason: Labels,
    source: Labels,
    calibration: Mapping[str, Any],
    clusters: Panel,
    seed: int,
) -> Panel:
    policy = policy_of(run)
    bounds = rules.thresholds(policy, calibration, rows)
    asked = rules.checks(policy, calibration, source[1], rows)
    order = [rule["name"] for rule in policy.get("rules") or []]
    views = samples.choose(rows, keep, reason, source, bounds, seed, order)
    members = [row for stage in clusters.get("stages", []) for group in stage["largest"] for row in group["members"]]
    wanted = {row for view in views for row in (*view["kept"], *view["dropped"])} | set(members)
    documents = samples.read(rows, sorted(wanted), keep, reason, asked, rules.edits(policy, rows))
    return {"seed": seed, "views": views, "rules": asked, "documents": documents}


def policy_of(run: Path) -> dict[str, Any]:
    """The policy as the selection applied it; empty before there is one."""
    path = run / "selection" / "policy.json"
    return read_json(path) if path.exists() else {}


def _scores(run: Path, rows: Rows, source: Labels, calibration: Mapping[str, Any], tokens: Array | None) -> Panel:
    promises = heads.read_promises(run, calibration)
    return scores.histograms(scores.Scores(rows, source, calibration, tokens), promises)


def calibration_of(run: Path) -> dict[str, Any]:
    """{source: {"tau_drop", "tau_keep", ...}}; empty where there is none that can be read (the heads panel says so)."""
    return _attempt(lambda: heads.read_thresholds(run))[0] or {}


def _oracle(run: Path, rows: Rows | None) -> Panel:
    paths = sorted((run / "labels" / "grades").glob("part-*.parquet"))
    if not paths:
        raise NotThere("labels/grades/", "the grade stage (the oracle)")
    schema = open_file(paths[0]).schema_arrow
    dimensions = [
        field.name for field in schema if pa.types.is_floating(field.type) and field.name not in NO_DIMENSIONS
    ]
    columns = [*dimensions, *(name for name in ("status", "engine") if name in schema.names)]
    grades = pa.concat_tables(read_file(path, columns) for path in paths)
    values = {name: grades.column(name).to_numpy().astype(np.float64) for name in dimensions}
    sample_paths = sorted((run / "labels" / "sample").glob("part-*.parquet"))
    agreed, splits = None, {}
    if sample_paths:
        table = pa.concat_tables(read_file(path, ["row", "split"]) for path in sample_paths)
        split = table.column("split").to_pylist()
        splits = {name: split.count(name) for name in sorted(set(split), key=_split_order)}
        if rows is not None and "quality" in values and len(split) == grades.num_rows:
            agreed = measures.agreement(table.column("row").to_numpy(), values["quality"], split, rows)
    return {
        "graded": grades.num_rows,
        "splits": splits,
        **{name: _counts(grades.column(name).to_pylist()) for name in columns if name not in dimensions},
        "dimensions": [
            {
                "name": name,
                "graded": int(np.isfinite(column).sum()),
                "mean": float(np.nanmean(column)) if np.isfinite(column).any() else None,
                "bars": measures.histogram(column),
            }
            for name, column in values.items()
        ],
        "agreement": agreed,
        "audit": panel_of(lambda: audit.read(run)),
    }


def _heads(run: Path) -> Panel:
    def with_thresholds(bundle: Panel) -> Panel:
        return bundle | {"calibration": panel_of(lambda: heads.read_calibration(run / "heads" / bundle["name"]))}

    return {
        "bundles": [with_thresholds(bundle) for bundle in heads.read(run)],
        "drift": panel_of(lambda: heads.read_drift(run)),
    }


def _refused(run: Path) -> tuple[dict[str, int], dict[str, list[Panel]]]:
    """What was refused, by reason: how many in the files' first lines, and the first ones."""
    counts: dict[str, int] = {}
    examples: dict[str, list[Panel]] = {}
    for path in sorted((run / "quarantine").glob("**/*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file):
                if number >= QUARANTINE_LINES or not line.endswith("\n"):
                    break
                entry = json.loads(line)
                # A document that a stage could not handle; else a row that ingest could not read.
                stage, detail = entry.get("stage"), entry.get("detail")
                reason = f"stage {stage}" if stage else str(entry.get("reason"))
                if stage:
                    detail = f"{entry.get('id')}: {entry.get('reason')}"
                counts[reason] = counts.get(reason, 0) + int(entry.get("rows") or 1)  # of a torn file, all its rows
                if len(examples.setdefault(reason, [])) < EXAMPLES_PER_REASON:
                    sample = entry.get("sample")
                    examples[reason].append(
                        {
                            "file": entry.get("file"),
                            "row": entry.get("row"),
                            "rows": entry.get("rows") or 1,
                            "detail": detail or None,
                            "sample": str(sample)[:SNIPPET] if sample else None,
                        }
                    )
    return counts, examples


def _quarantine(run: Path, refused: tuple[dict[str, int], dict[str, list[Panel]]] | None, failure: Panel) -> Panel:
    card = run / "run.json"
    told = (read_object(card).get("quarantine") or {}) if card.exists() else {}
    if not (run / "quarantine").is_dir() and not told:
        raise NotThere("quarantine/", "the ingest stage")
    if refused is None:
        return failure
    counts, examples = refused
    by_reason = told.get("by_reason") or counts
    unhandled = sum(count for reason, count in by_reason.items() if reason.startswith("stage "))
    return {
        "total": told.get("total", sum(by_reason.values())),
        "unhandled": unhandled,
        "documents": told.get("documents"),
        "reasons": [
            {"reason": reason, "count": count, "examples": examples.get(reason, [])}
            for reason, count in sorted(by_reason.items(), key=lambda item: -item[1])
        ],
    }


def _training(run: Path) -> Panel:
    return summary.of_all(trainings.of_run(run))


def _overview(
    run: Path, stages: Panel, funnel: Panel, quarantine: Panel, compared: Panel, by_row: dict[str, Panel]
) -> Panel:
    card = panel_of(lambda: _json(run / "run.json", run, "the pipeline's runner"))
    rows, rules = by_row.get("rows", {}), funnel.get("rules") or []
    first, last = (rules[0], rules[-1]) if rules else ({}, {})
    facts = ("status", "started_at", "finished_at", "command", "versions", "machine")
    seconds = [number for node in stages.get("nodes", []) if isinstance(number := node.get("seconds"), (int, float))]
    return {
        "name": card.get("name") or run.resolve().name,
        **{key: card.get(key) for key in facts},
        "status": stages.get("status") or card.get("status"),
        "stage_seconds": sum(seconds),
        "documents": first.get("documents", rows.get("documents")),
        "documents_kept": last.get("documents", rows.get("documents_kept")),
        "tokens": first.get("tokens", rows.get("tokens")),
        "tokens_kept": last.get("tokens", rows.get("tokens_kept")),
        "quarantined": quarantine.get("total"),
        "unhandled": quarantine.get("unhandled"),
        "verdict": comparison.verdict(compared),
    }


def _split_order(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def _counts(values: list[Any]) -> dict[str, int]:
    return {str(name): values.count(name) for name in dict.fromkeys(values)}


def as_json(value: Any) -> str:
    """ASCII JSON, whole numbers as they are, others to six digits, non-finite ones as null."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
