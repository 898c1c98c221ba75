"""Which documents repeat which: how large a run's clusters are, what the largest hold, which source repeats which.

Columns of the whole run are read one at a time, text only of the few documents that are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.config import check_range
from gristmill.base.errors import DataError, GristmillError
from gristmill.base.files import write_json
from gristmill.base.terminal import shown
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.duplicate_samples import EXCERPT, choose, difference, read_documents
from gristmill.datapipe.workflow.stage import Inputs, Step, open_run

ANNOTATIONS = ("exact", "same_url", "near", "semantic")
LINE = 100
MOST_SOURCES = 24
"""As many sources are told apart; the rest, those with the fewest documents, count as one."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Codes:
    """A column of few names: a code per row, -1 for null, and the names in order of first appearance."""

    codes: NDArray[np.int32]
    names: list[str]


class DuplicateReport(Step):
    """duplicates/report.json: what duplicate_report() finds, for each of some annotations."""

    name, folder, version = "duplicate_report", "duplicates", 1

    def __init__(self, annotations: Sequence[str], limit: int = 20) -> None:
        self._annotations = tuple(annotations)
        self.requires = ("documents", "tokens", "selection", *self._annotations)
        self.config = {"limit": limit}

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        reports = [duplicate_report(inputs, name, self.config["limit"]) for name in self._annotations]
        write_json(out / "report.json", {"annotations": reports})
        return {f"{report['annotation']}_duplicates": report["duplicates"] for report in reports}


def duplicate_reports(run: Path, of: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """duplicate_report() of a run folder, of one annotation or of all that it has.

    Raises:
        GristmillError: there is no run in the folder, or it has no such annotation.
        DataError: outputs of the run do not fit each other.
    """
    inputs = open_run(run)
    wanted = [of] if of else [name for name in ANNOTATIONS if inputs.parts.get(name)]
    if not wanted:
        raise GristmillError(f"{run}: no duplicates measured yet ({', '.join(ANNOTATIONS)}); run the pipeline")
    return [duplicate_report(inputs, name, limit) for name in wanted]


def duplicate_report(inputs: Inputs, annotation: str, limit: int = 20) -> dict[str, Any]:
    """Clusters of one annotation, as JSON.

    annotation; documents; clusters (of two members or more), members (documents in those) and duplicates (members but
    for one of each cluster). tokens and duplicate_tokens, null where the run counted none: tokens of the duplicates,
    where the member that the selection keeps stays, of several the first, of none the cluster's first.
    sizes: [{from, to, clusters, documents}] by powers of two. sources: [{source, documents, members, duplicates}], the
    largest first. pairs: for each source (a row) and each source (a column) how many documents of the first have a
    duplicate in the second. largest: at most `limit` clusters; see _largest().

    Raises:
        GristmillError: the run has no such annotation, or no selection yet.
        DataError: outputs of the run do not fit each other.
    """
    check_range("limit", limit, 0)
    for name in (annotation, "documents", "selection"):
        if not inputs.parts.get(name):
            found = ", ".join(name for name in ANNOTATIONS if inputs.parts.get(name)) or "none"
            raise GristmillError(f"the run has no {name!r} yet (clusters of duplicates: {found}); run the pipeline")
    source = _limited(_codes(inputs, "documents", "source"))
    total = len(source.codes)
    cluster = _clusters(inputs, annotation, total)
    keep = _column(inputs, "selection", "keep", total).to_numpy().astype(bool)
    count = np.bincount(cluster, minlength=total)
    # Members stand together, cluster by cluster: first those that the selection keeps, then by row.
    rows = np.flatnonzero(count[cluster] > 1)
    rows = rows[np.lexsort((rows, ~keep[rows], cluster[rows]))]
    names, starts = np.unique(cluster[rows], return_index=True)
    sizes = count[names]
    redundant = np.ones(len(rows), bool)
    redundant[starts] = False
    duplicates = rows[redundant]
    tokens = _column(inputs, "tokens", "count", total).to_numpy() if inputs.parts.get("tokens") else None
    largest = [rows[starts[at] : starts[at] + sizes[at]] for at in np.lexsort((names, -sizes))[:limit]]
    return {
        "annotation": annotation,
        "documents": total,
        "clusters": len(names),
        "members": len(rows),
        "duplicates": len(duplicates),
        "tokens": None if tokens is None else int(tokens.sum()),
        "duplicate_tokens": None if tokens is None else int(tokens[duplicates].sum()),
        "sizes": _sizes(sizes, total - len(rows)),
        "sources": _by_source(source, rows, duplicates),
        "pairs": _pairs(source, rows, np.repeat(np.arange(len(names)), sizes)).tolist(),
        "largest": _largest(inputs, annotation, largest, keep, source),
    }


def _sizes(sizes: Integers, alone: int) -> list[dict[str, int]]:
    bucket = np.ceil(np.log2(sizes)).astype(np.int64)  # 2, 3-4, 5-8, 9-16, ...
    many = [(2 ** (at - 1) + 1, 2**at, bucket == at) for at in range(1, int(bucket.max(initial=0)) + 1)]
    return [
        {"from": 1, "to": 1, "clusters": alone, "documents": alone},
        *({"from": low, "to": high, "clusters": int(here.sum()), "documents": int(sizes[here].sum())}
          for low, high, here in many),
    ]  # fmt: skip


def _by_source(source: Codes, rows: Integers, duplicates: Integers) -> list[dict[str, Any]]:
    counts = [np.bincount(codes, minlength=len(source.names)).tolist()
              for codes in (source.codes, source.codes[rows], source.codes[duplicates])]  # fmt: skip
    return [
        dict(zip(("source", "documents", "members", "duplicates"), values))
        for values in zip(source.names, *counts, strict=True)
    ]


def _pairs(source: Codes, rows: Integers, group: Integers) -> Integers:
    """[sources, sources] documents of one that share a cluster with another document, of the other."""
    from scipy.sparse import csr_array

    many = len(source.names)
    shape = (int(group.max(initial=-1)) + 1, many)
    held = csr_array((np.ones(len(rows), np.int64), (group, source.codes[rows])), shape=shape)
    held.sum_duplicates()
    present = held.copy()
    present.data[:] = 1
    found = (held.T @ present).toarray()
    single = np.bincount(held.indices[held.data == 1], minlength=many)
    found[np.arange(many), np.arange(many)] -= single  # who is the only one of its source repeats nobody there
    return found


# The largest clusters -------------------------------------------------------------------------------------------------


def _largest(
    inputs: Inputs, annotation: str, groups: list[Integers], keep: NDArray[np.bool_], source: Codes
) -> list[dict[str, Any]]:
    """What is shown of each cluster: its name (cluster), size, how many of each source (the most first), how many the
    selection keeps (kept), what dropped the others (dropped: rule -> documents), the least similarity that a member has
    to any it was compared with, up to three members as samples, and the difference of the first sample from another
    (null where the texts are equal so far as they were read, and of semantic duplicates)."""
    if not groups:
        return []
    reason = _codes(inputs, "selection", "reason")
    similarity = np.full(len(keep), np.nan, np.float32)
    if annotation in ("near", "semantic"):
        measured = _column(inputs, annotation, "similarity", len(keep)).cast(pa.float32())
        similarity = pc.fill_null(measured, pa.scalar(np.nan, pa.float32())).to_numpy()
    chosen = [choose(np.sort(rows), keep, similarity) for rows in groups]
    documents = read_documents(inputs, np.unique(np.concatenate(chosen)))
    found = []
    for rows, samples in zip(groups, chosen, strict=True):
        known = similarity[rows][np.isfinite(similarity[rows])]
        text, *others = [documents[row]["text"] for row in samples]
        other = next((other for other in reversed(others) if other != text), None)
        found.append(
            {
                "cluster": int(rows.min()),
                "size": len(rows),
                "sources": _counted(source, rows),
                "kept": int(keep[rows].sum()),
                "dropped": _counted(reason, rows),
                "similarity": float(known.min()) if len(known) else None,
                "samples": [
                    {
                        **{name: documents[row][name] for name in ("id", "source", "characters")},
                        "row": row,
                        "keep": bool(keep[row]),
                        "excerpt": documents[row]["text"][:EXCERPT],
                    }
                    for row in samples
                ],
                "difference": None if other is None or annotation == "semantic" else difference(text, other),
            }
        )
    return found


# Columns --------------------------------------------------------------------------------------------------------------


def _column(inputs: Inputs, node: str, name: str, rows: int) -> pa.ChunkedArray:
    table = inputs.table(node, (name,))
    if name not in table.column_names:
        raise GristmillError(f"{inputs.folders[node]}: no column {name!r}, so these are no clusters of duplicates")
    if len(table) != rows:
        raise DataError(
            f"{inputs.folders[node]}: {len(table):,} rows beside {rows:,} documents; run the pipeline again"
        )
    return table[name]


def _clusters(inputs: Inputs, annotation: str, rows: int) -> Integers:
    """[rows] the first row of each document's cluster; a document without one is alone."""
    column = _column(inputs, annotation, "cluster", rows).combine_chunks()
    alone = column.is_null().to_numpy(zero_copy_only=False)
    cluster = np.where(alone, np.arange(rows), column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
    if rows and not 0 <= cluster.min() <= cluster.max() < rows:
        raise DataError(f"{inputs.folders[annotation]}: a cluster is named by a row that the run has not")
    return cluster


def _codes(inputs: Inputs, node: str, column: str) -> Codes:
    names: dict[str, int] = {}
    codes = [np.zeros(0, np.int32)]
    for part in inputs.parts[node]:
        coded = inputs.part(node, part, (column,))[column].combine_chunks().dictionary_encode()
        known = [names.setdefault(name, len(names)) for name in coded.dictionary.to_pylist()]
        indices = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes.append(np.array([*known, -1], np.int32)[indices])
    return Codes(np.concatenate(codes), list(names))


def _limited(source: Codes) -> Codes:
    """Sources by their documents, the most first; the last of too many as one."""
    order = np.argsort(-np.bincount(source.codes, minlength=len(source.names)), kind="stable")
    names = [source.names[code] for code in order]
    rank = np.empty(len(order), np.int32)
    rank[order] = np.minimum(np.arange(len(order)), MOST_SOURCES)
    if len(names) > MOST_SOURCES:
        names = [*names[:MOST_SOURCES], f"{len(names) - MOST_SOURCES} other sources"]
    return Codes(rank[source.codes], names)


def _counted(column: Codes, rows: Integers) -> dict[str, int]:
    """How many of the rows have each name, the most first."""
    codes = column.codes[rows]
    count = np.bincount(codes[codes >= 0], minlength=len(column.names))
    return {column.names[code]: int(count[code]) for code in np.argsort(-count, kind="stable") if count[code]}


# As text --------------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    whole, many = report["documents"], report["duplicates"]
    tokens = ""
    if report["tokens"] is not None:
        tokens = f", {report['duplicate_tokens']:,} of {report['tokens']:,} tokens"
    lines = [
        f"{report['annotation']}: {many:,} of {whole:,} documents repeat another ({_share(many, whole)}){tokens}; "
        f"{report['clusters']:,} clusters hold {report['members']:,}"
    ]
    if not many:
        return lines
    lines += ["", f"  {'members':>15} {'clusters':>12} {'documents':>12}"]
    lines += [f"  {_range(size):>15} {size['clusters']:>12,} {size['documents']:>12,}" for size in report["sizes"]]
    names = [shown(source["source"]) for source in report["sources"]]
    width = max(len("repeats of"), *map(len, names))
    lines += ["", "  of the row's documents, the share that has a duplicate in the column's source:"]
    lines.append(f"  {'':<{width}} {'documents':>12} " + " ".join(f"{name[:9]:>9}" for name in names))
    lines += [
        f"  {name:<{width}} {source['documents']:>12,} "
        + " ".join(f"{_share(count, source['documents']) if count else '-':>9}" for count in counts)
        for name, source, counts in zip(names, report["sources"], report["pairs"], strict=True)
    ]
    for cluster in report["largest"]:
        sources = ", ".join(f"{shown(name)} {count:,}" for name, count in cluster["sources"].items())
        alike = "" if cluster["similarity"] is None else f", alike to {cluster['similarity']:.2f} at least"
        lines += ["", f"  {cluster['size']:,} members, {cluster['kept']:,} kept{alike}: {sources}"]
        for sample in cluster["samples"]:
            mark = "kept" if sample["keep"] else "dropped"
            lines.append(f"    {mark:<7} {shown(sample['id'])}: {shown(sample['excerpt'][:LINE])}")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _range(size: dict[str, int]) -> str:
    return f"{size['to']}" if size["from"] == size["to"] else f"{size['from']} to {size['to']}"
