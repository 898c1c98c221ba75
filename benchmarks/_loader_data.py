"""What bench loader reads: a dataset of eight sources written by write_source, the same tokens as plain files for the
peers, and a dataset of 15,000 shards of which only the manifests are real.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.base import files
from gristmill.shards.manifest import (
    MANIFEST,
    DatasetManifest,
    FileEntry,
    OrderInfo,
    ShardEntry,
    SourceEntry,
    SourceManifest,
    TokenizerInfo,
    manifest_bytes,
    source_files,
    with_content_id,
)
from gristmill.shards.packing import PACKED_LENGTHS
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.writer import SHARD_TOKENS, SourceSpec, write_manifest, write_source

LENGTH = 2048
WEIGHTS = {"web": 40, "code": 20, "math": 15, "books": 10, "wiki": 7, "papers": 5, "news": 2, "law": 1}
TOKENIZER = TokenizerInfo(name="synthetic", sha256="0" * 64, vocab_size=50_000, eos_id=0)
MEAN_TOKENS = 1000  # of a document, EOS included; log-normal as web text is
SIGMA = 1.0


def document_lengths(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """int64: lengths of documents with `tokens` tokens in all, EOS not counted."""
    about = rng.lognormal(np.log(MEAN_TOKENS - 1) - SIGMA**2 / 2, SIGMA, 2 * tokens // MEAN_TOKENS + 1000)
    lengths = np.maximum(about.astype(np.int64), 1)
    count = int(np.searchsorted(np.cumsum(lengths + 1), tokens))
    return lengths[:count]


def write_dataset(folder: Path, tokens: int) -> Dataset:
    """Eight sources of about `tokens` tokens in all, as large as their weights."""
    for number, (name, weight) in enumerate(WEIGHTS.items()):
        rng = np.random.default_rng(number)
        lengths = document_lengths(rng, tokens * weight // sum(WEIGHTS.values()))
        write_source(folder, SourceSpec(name, TOKENIZER), _tables(rng, name, lengths))
    write_manifest(folder)
    return open_dataset(folder)


def _tables(rng: np.random.Generator, source: str, lengths: np.ndarray) -> Iterator[pa.Table]:
    for first in range(0, len(lengths), 4096):
        part = lengths[first : first + 4096]
        ids = rng.integers(1, TOKENIZER.vocab_size, int(part.sum()), np.uint16)
        yield documents_table(f"{source}-{first}", ids, part)


def documents_table(prefix: str, ids: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Documents as write_source takes them: the ids of all, one after the other, and how many each has."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.table(
        {
            "id": [f"{prefix}-{row}" for row in range(len(lengths))],
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(ids)),
            "file": [prefix] * len(lengths),
            "row": np.arange(len(lengths)),
        }
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """The train tokens of all sources, one after the other in the order of WEIGHTS, as our reader gives them."""

    shards: list[np.ndarray]
    bounds: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Stream:
        splits = [dataset.sources[name].split("train") for name in WEIGHTS]
        shards = [split.tokens(i) for split in splits for i in range(len(split.shards))]
        return cls(shards, np.cumsum([0, *map(len, shards)]))

    def read(self, start: int, length: int) -> np.ndarray:
        first, last = np.searchsorted(self.bounds, [start, start + length - 1], "right") - 1
        joined = np.concatenate(self.shards[first : last + 1])
        offset = start - int(self.bounds[first])
        return joined[offset : offset + length]


def write_plain(dataset: Dataset, folder: Path, windows: int) -> None:
    """FOLDER/NAME.ds, a source's train tokens and nothing else; FOLDER/NAME.npy, the lengths of its documents.

    `windows`: how many a round reads.
    """
    folder.mkdir()
    for name in WEIGHTS:
        split = dataset.sources[name].split("train")
        with (folder / f"{name}.ds").open("wb") as out:
            for shard in split.shards:
                with (split.folder / shard.tokens.path).open("rb") as tokens:
                    shutil.copyfileobj(tokens, out, 2**20)
        ends = [np.diff(split.ends(i).astype(np.int64), prepend=0) for i in range(len(split.shards))]
        np.save(folder / f"{name}.npy", np.concatenate(ends))
    order = {"length": LENGTH, "vocabulary": TOKENIZER.vocab_size, "weights": WEIGHTS, "round": windows}
    files.write_json(folder / "sources.json", order)


def write_hollow(folder: Path, tokens: int) -> int:
    """A dataset of `tokens` tokens in full shards whose files have the right sizes and hold nothing (sparse).

    Returns the number of shards.
    """
    sources: dict[str, SourceEntry] = {}
    shards = 0
    for name, weight in WEIGHTS.items():
        count = -(-tokens * weight // (sum(WEIGHTS.values()) * SHARD_TOKENS))
        source = folder / "sources" / name
        manifest = with_content_id(
            SourceManifest(
                name=name,
                licence="unknown",
                tokenizer=TOKENIZER,
                dtype=TOKENIZER.dtype,
                order=OrderInfo(salt="", valid_fraction=0),
                recipe={},
                inputs=[],
                train=[_hollow_shard(number) for number in range(count)],
                valid=[],
            )
        )
        for file in source_files(manifest):
            path = source / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                out.truncate(file.bytes)
        data = manifest_bytes(manifest)
        (source / MANIFEST).write_bytes(data)
        sources[name] = SourceEntry(path=f"sources/{name}/{MANIFEST}", sha256=hashlib.sha256(data).hexdigest())
        shards += count
    (folder / MANIFEST).write_bytes(manifest_bytes(with_content_id(DatasetManifest(sources=sources))))
    return shards


def _hollow_shard(number: int) -> ShardEntry:
    documents = SHARD_TOKENS // MEAN_TOKENS

    def file(part: str, suffix: str, size: int) -> FileEntry:
        sha256 = hashlib.sha256(f"{part} {number}".encode()).hexdigest()
        stem = f"{part}/{number // 1000:03d}/{number:05d}-{sha256[:8]}"
        return FileEntry(path=f"{stem}.{suffix}", bytes=size, sha256=sha256)

    return ShardEntry(
        tokens=file("tokens", "u16", 2 * SHARD_TOKENS),
        ends=file("ends", "u32", 64 + 4 * documents),
        meta=file("meta", "parquet", 16 * documents),
        token_count=SHARD_TOKENS,
        document_count=documents,
        max_id=TOKENIZER.vocab_size - 1,
        key_low=f"{number << 32:016x}",
        key_high=f"{(number + 1 << 32) - 1:016x}",
        packed={str(length): SHARD_TOKENS // length + 1 for length in PACKED_LENGTHS},
    )
