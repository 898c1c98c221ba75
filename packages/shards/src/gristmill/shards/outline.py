"""What a plan will read, before it is read: shares, epochs, files and bytes; and where one of its sequences lies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gristmill.shards import packing
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset


class Piece(NamedTuple):
    """A stretch of a source's train tokens; `token_offset` counts them through its shards, as `explain` does."""

    source: str
    token_offset: int
    tokens: int


def outline(plan: Plan, dataset: Dataset) -> dict[str, Any]:
    """The plan's record, with the shards that it reads and their bytes, by source and in all."""
    record = plan.record()
    touched = plan.touched()
    for row in record["sources"]:
        split = dataset.sources[row["source"]].split("train")
        shards = [split.shards[i] for i in touched[row["source"]]]
        row["shards"], row["of_shards"] = len(shards), len(split.shards)
        row["bytes"] = sum(file.bytes for shard in shards for file in shard.files if file is not shard.meta)
    return record | {"bytes": sum(row["bytes"] for row in record["sources"])}


def table(record: dict[str, Any]) -> str:
    """The outline for people."""
    sources, phases = record["sources"], record["phases"]
    width = max(len("source"), *(len(row["source"]) for row in sources))
    lines = [
        f"mixture {record['mixture']}  {record['packing']}  seed {record['seed']}  plan {record['sha256'][:12]}",
        f"{record['tokens']:,} tokens in {record['sequences']:,} sequences; {record['bytes'] / 1e9:,.2f} GB to read",
        "",
        f"{'source':<{width}} {'share':>7} {'tokens':>18} {'epochs':>7} {'shards':>13} {'GB':>9}",
    ]
    lines += [
        f"{row['source']:<{width}} {row['share']:>7.2%} {row['tokens']:>18,} {row['epochs']:>7.3f} "
        f"{row['shards']:>6} of {row['of_shards']:<3} {row['bytes'] / 1e9:>9.2f}"
        for row in sources
    ]
    if len(phases) > 1:
        lines += ["", "phases"]
    for phase in phases if len(phases) > 1 else ():
        total = sum(phase["weights"].values())
        shares = ", ".join(f"{name} {weight / total:.1%}" for name, weight in phase["weights"].items())
        lines.append(
            f"  {phase['name']}: from token {phase['tokens_before']:,}, "
            f"sequences of {phase['sequence_length']:,}: {shares}"
        )
    return "\n".join(lines)


def pieces(plan: Plan, dataset: Dataset, k: int) -> list[Piece]:
    """The text of sequence k, in the order in which it is learnt from (the token before the first is its context).

    Raises:
        UsageError: no such sequence.
    """
    windows = plan.sequences(np.array([k]))
    name, shard = plan.sources[int(windows.source_B[0])].name, int(windows.shard_B[0])
    split = dataset.sources[name].split("train")
    before = sum(entry.token_count for entry in split.shards[:shard])
    if plan.packing == "concat":
        return [Piece(name, before + int(windows.start_B[0]) + 1, plan.length_of(k)[0])]
    rows = packing.best_fit(split.ends(shard), plan.unit, split.shards[shard].continues)
    low, high = rows.bounds[int(windows.window_B[0]) :][:2].tolist()
    return [Piece(name, before + int(rows.start[i]), int(rows.length[i])) for i in range(low, high)]
