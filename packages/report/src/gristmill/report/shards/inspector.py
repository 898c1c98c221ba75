"""What a page asks of packed shards: a window of tokens as text, what a shard holds, whether it is what is listed."""

from __future__ import annotations

from typing import Any

import numpy as np

from gristmill.base.errors import DataError
from gristmill.base.files import sha256_file
from gristmill.report.asked import Asked, AskedWrong
from gristmill.report.columns import Array, NotThere
from gristmill.report.live_run import LiveRun
from gristmill.report.shards.dataset import SPLITS, Dataset, Shard, Source, fault_of, folders
from gristmill.report.shards.pieces import Vocabulary, runs

SIZES = (64, 128, 256, 512, 1024)
SHARDS_SHOWN = 200
HASHED = 2**31  # bytes that one question may hash: eight shards of the usual greatest size


def window(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """Tokens of a shard from a place on: a token's offset (`at`), a document's number from 1 on, or its `id`.

    A window never begins in the middle of nothing: an offset beyond the shard is its last window.
    """
    dataset, source = _opened(run, asked)
    size = int(asked.choice("size", [str(size) for size in SIZES], "256"))
    document = asked.text("id")
    if document:
        named = [source, *(dataset.source(name) for name in dataset.sources if name != source.name)]
        found = next((place for one in named if (place := one.find(document))), None)
        if found is None:
            return {"nowhere": f"No document of this dataset has the id {document}."}
        shard, row = found
        at = int(shard.ends()[row - 1]) if row else 0
    else:
        shard = _shard(source, asked)
        number = asked.integer("document", 0, 0, shard.document_count)
        at = asked.integer("at", 0, 0, 2**32)
        at = (int(shard.ends()[number - 2]) if number > 1 else 0) if number else min(at, shard.token_count - 1)
    return _window(run, asked, dataset, shard, at, size)


def facts(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """One shard: what it holds, how long its documents are, and its files beside what the manifest lists."""
    shard = _shard(_opened(run, asked)[1], asked)
    files = [
        {"part": part, "path": one["path"], "bytes": one["bytes"], "sha256": one["sha256"],
         "fault": fault_of(shard.place(part), int(one["bytes"]))}
        for part, one in shard.files
    ]  # fmt: skip
    lengths = np.diff(shard.ends().astype(np.int64), prepend=0)
    return {
        **_place(shard),
        "largest_id": shard.entry.get("max_id"),
        "vocabulary": (shard.source.manifest.get("tokenizer") or {}).get("vocab_size"),
        "shortest": lengths.min(), "median": np.median(lengths), "longest": lengths.max(), "mean": lengths.mean(),
        "lengths": _by_powers(lengths),
        "files": files,
    }  # fmt: skip


def listing(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """The shards of a source in order, the first ones only; but the size of every file of all is compared."""
    _, source = _opened(run, asked)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    files = 0
    for shard in (shard for split in SPLITS for shard in source.shards(split)):
        wrong = [
            f"{one['path']}: {fault}"
            for part, one in shard.files
            if (fault := fault_of(shard.place(part), int(one["bytes"])))
        ]
        files += sum(1 for _ in shard.files)
        faults += wrong
        rows.append(
            {"split": shard.split, "number": shard.number, "documents": shard.document_count,
             "tokens": shard.token_count, "bytes": sum(one["bytes"] for _, one in shard.files),
             "continues": bool(shard.entry.get("continues")), "faults": len(wrong)}
        )  # fmt: skip
    rest = {"total": len(rows), "files": files, "faults": faults[:SHARDS_SHOWN], "faulty": len(faults)}
    return {"source": source.name, "shards": rows[:SHARDS_SHOWN], **rest}


def check(run: LiveRun, asked: Asked) -> dict[str, Any]:
    """The hash of each file of one shard beside the one that is listed."""
    shard = _shard(_opened(run, asked)[1], asked)
    total = sum(int(one["bytes"]) for _, one in shard.files)
    if total > HASHED:
        return {"too_large": total, "limit": HASHED}
    found: list[dict[str, Any]] = []
    for part, one in shard.files:
        path = shard.place(part)
        fault = fault_of(path, int(one["bytes"]))
        own = None if fault else sha256_file(path)
        found.append({"part": part, "path": one["path"], "fault": fault, "sha256": own, "listed": one["sha256"]})
    return {**_place(shard), "bytes": total, "files": found}


def _window(run: LiveRun, asked: Asked, dataset: Dataset, shard: Shard, at: int, size: int) -> dict[str, Any]:
    tokens, ends = shard.tokens(), shard.ends()
    stop = min(at + size, len(tokens))
    ids = tokens[at:stop].tolist()
    low, high = int(np.searchsorted(ends, at, "right")), int(np.searchsorted(ends, stop, "left")) + 1
    starts = np.concatenate([[0], ends[low : high - 1]]) if low == 0 else ends[low - 1 : high - 1]
    documents = [
        {"row": low + index, "start": int(start), "end": int(end),
         "continues": low + index == 0 and bool(shard.entry.get("continues")),
         "goes_on": low + index == shard.document_count - 1 and shard.goes_on, **_told(record)}
        for index, (start, end, record) in enumerate(zip(starts, ends[low:high], shard.records(low, high)))
    ]  # fmt: skip
    learnt = shard.learnt()
    breaks = {int(start) - at for start in starts}
    return {
        **_place(shard),
        "at": at, "size": size, "ids": ids, "documents": documents,
        "learnt": None if learnt is None else learnt[at:stop].tolist(),
        **_decoded(run, asked, dataset, shard.source, ids, breaks),
    }  # fmt: skip


def _decoded(
    run: LiveRun, asked: Asked, dataset: Dataset, source: Source, ids: list[int], breaks: set[int]
) -> dict[str, Any]:
    key = _key(run, asked)
    try:
        vocabulary = run.kept(f"vocabulary {key}", [key], lambda: Vocabulary(dataset.tokenizer()))
        if dataset.manifest["tokenizer_file"]["sha256"] != source.manifest["tokenizer"]["sha256"]:
            raise DataError("tokenizer.json is not the one that made these ids")
    except (NotThere, DataError, LookupError, TypeError) as error:
        return {"runs": None, "undecoded": f"Ids only: {error}."}
    own = [vocabulary.bytes_of(number) for number in ids]
    return {"runs": runs(ids, breaks, vocabulary), "bytes": [None if one is None else one.hex(" ") for one in own]}


def _opened(run: LiveRun, asked: Asked) -> tuple[Dataset, Source]:
    key = _key(run, asked)
    dataset = run.kept(f"dataset {key}", [key], lambda: Dataset(folders(run.folder)[key]))
    name = asked.choice("source", dataset.sources, dataset.sources[0])
    return dataset, dataset.source(name)


def _key(run: LiveRun, asked: Asked) -> str:
    found = list(folders(run.folder))
    if not found:
        raise NotThere("shards/<name>/manifest.json", "the pack stage")
    return asked.choice("dataset", found, found[0])


def _shard(source: Source, asked: Asked) -> Shard:
    first = next((split for split in SPLITS if source.shards(split)), "train")
    shards = source.shards(asked.choice("split", SPLITS, first))
    if not shards:
        raise AskedWrong(f"split: {source.name} has no shard there")
    return shards[asked.integer("shard", 0, 0, len(shards) - 1)]


def _place(shard: Shard) -> dict[str, Any]:
    return {
        "source": shard.source.name, "split": shard.split, "shard": shard.number,
        "tokens": shard.token_count, "document_count": shard.document_count,
    }  # fmt: skip


def _told(record: dict[str, Any]) -> dict[str, Any]:
    """A row of metadata: what names the document, and what was measured of it."""
    named = ("id", "file", "row", "tokens")
    values = {name: value for name, value in record.items() if name not in named and value is not None}
    return {"id": record["id"], "file": record["file"], "file_row": record["row"], "values": values}


def _by_powers(lengths: Array) -> list[dict[str, int]]:
    """How many documents have 1, 2 to 3, 4 to 7, ... tokens."""
    power = np.floor(np.log2(lengths)).astype(np.int64)
    counts = np.bincount(power)
    first = int(power.min())
    return [{"from": 2**i, "to": 2 ** (i + 1) - 1, "count": int(counts[i])} for i in range(first, len(counts))]
