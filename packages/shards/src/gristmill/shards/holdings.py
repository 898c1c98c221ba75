"""What a dataset holds, as numbers and as a table for people; of a partial one, how much of it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.base.terminal import shown
from gristmill.shards.reader import Dataset
from gristmill.shards.skeleton import below, reading_files, sizes

COLUMNS = ("train_tokens", "train_documents", "valid_tokens", "valid_documents", "shards")


def about(dataset: Dataset) -> dict[str, Any]:
    """Plain JSON. `shards_here` counts shards whose tokens can be read; `partial` is null for a complete dataset."""
    entries = list(dataset.skeleton.shard_files())
    there = sizes(dataset.root, (entry.path for entry in entries)) if dataset.files.partial else {}
    here = {e.path for e in entries if there.get(e.path) == e.bytes} if dataset.files.partial else None
    partial = None
    if here is not None:
        partial = {
            "origin": dataset.files.origin,
            "bytes_here": sum(entry.bytes for entry in entries if entry.path in here),
            "bytes": sum(entry.bytes for entry in entries),
        }
    return {
        "format": dataset.manifest.format,
        "content_id": dataset.manifest.content_id,
        "tokenizer": dataset.tokenizer.model_dump(),
        "dtype": dataset.tokenizer.dtype,
        "sources": [_source(dataset, name, here) for name in dataset.sources],
        "mixtures": [entry.path for entry in dataset.manifest.mixtures],
        "partial": partial,
    }


def _source(dataset: Dataset, name: str, here: set[str] | None) -> dict[str, Any]:
    source, prefix = dataset.sources[name], dataset.skeleton.prefix(name)
    train, valid = source.split("train"), source.split("valid")
    shards = (*train.shards, *valid.shards)
    if here is None:
        readable = len(shards)
    else:
        readable = sum(all(below(prefix, entry).path in here for entry in reading_files(shard)) for shard in shards)
    return {
        "source": name,
        "train_tokens": train.token_count,
        "train_documents": train.document_count,
        "valid_tokens": valid.token_count,
        "valid_documents": valid.document_count,
        "shards": len(shards),
        "shards_here": readable,
        "licence": source.manifest.licence,
        "content_id": source.manifest.content_id,
    }


def table(name: str, about: dict[str, Any]) -> str:
    tokenizer, rows, partial = about["tokenizer"], about["sources"], about["partial"]
    columns = (*COLUMNS, "shards_here") if partial else COLUMNS
    width = max(len("source"), *(len(row["source"]) for row in rows))
    lines = [
        f"{name}  {about['format']}  content {about['content_id'][:12]}",
        f"tokenizer {shown(tokenizer['name'])}  {tokenizer['vocab_size']:,} ids  {about['dtype']}\n",
        f"{'source':<{width}}" + "".join(f"{column.replace('_', ' '):>17}" for column in columns) + "  licence",
    ]
    lines += [
        f"{row['source']:<{width}}"
        + "".join(f"{row[column]:>17,}" for column in columns)
        + f"  {shown(row['licence'])}"
        for row in rows
    ]
    if partial:
        here, shards = (sum(row[column] for row in rows) for column in ("shards_here", "shards"))
        size = f"{partial['bytes_here']:,} of {partial['bytes']:,} bytes"
        lines.append(f"\npartial: {here:,} of {shards:,} shards are here ({size})")
        lines.append(f"others are fetched from {shown(partial['origin'])} when they are asked for")
    if about["mixtures"]:
        lines.append("\nmixtures: " + ", ".join(Path(path).stem for path in about["mixtures"]))
    return "\n".join(lines)
