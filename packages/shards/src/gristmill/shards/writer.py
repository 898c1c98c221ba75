"""Tokenised documents into a source of shards, sources into a dataset. Files are whole or absent; manifests come last.

Documents stand in hash order, so any prefix of shards is a uniform sample and a smaller budget nests in a larger one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import card, spool
from gristmill.shards.ends import HEADER_BYTES, ends_header
from gristmill.shards.manifest import (
    MANIFEST,
    NAME_PATTERN,
    DatasetManifest,
    FileEntry,
    OrderInfo,
    ShardEntry,
    SourceEntry,
    SourceManifest,
    TokenizerInfo,
    manifest_bytes,
    numpy_dtype,
    one_tokenizer,
    read_source_manifest,
    source_files,
    with_content_id,
)
from gristmill.shards.mixture import load_mixture

SHARD_TOKENS = 2**26  # 128 MiB of u16
RAMP = (2**22, 2**22, 2**23, 2**24, 2**25)  # small shards first, so that a smoke run downloads little
TOKENIZER = "tokenizer.json"
META_COLUMNS = ("id", "file", "row", "tokens", "score", "language")


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """What a source is, before its documents. `salt` keys the order; `valid_fraction` of the key space is held out."""

    name: str
    tokenizer: TokenizerInfo
    salt: str = ""
    valid_fraction: float = 0.0
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if not re.match(NAME_PATTERN, self.name):
            raise UsageError(f"source name {self.name!r}: use letters, digits, '.', '_' and '-' only")
        if not 0 <= self.valid_fraction < 1:
            raise UsageError(f"source {self.name}: valid_fraction {self.valid_fraction} must be at least 0 and under 1")
        try:
            files.canonical_json([self.recipe, self.inputs])
        except (TypeError, ValueError) as error:
            raise UsageError(f"source {self.name}: recipe and inputs must be plain JSON: {error}") from None


def write_source(
    folder: Path,
    spec: SourceSpec,
    batches: Iterable[pa.Table],
    *,
    shard_tokens: int = SHARD_TOKENS,
    ramp: Sequence[int] = RAMP,
    memory_tokens: int = 2**25,
) -> SourceManifest:
    """Write FOLDER/sources/NAME from tables in any order: columns id, tokens, file, row, and maybe score, language.

    Each document gets EOS at its end. The output bytes depend only on the set of documents and the spec. A shard that
    already stands there with the same bytes is left alone, so a restart writes only what is missing.

    Raises:
        DataError: a missing column, a null, an id outside the vocabulary, or a duplicate document id.
    """
    if shard_tokens < 2 or shard_tokens >= 2**32 or min(ramp, default=1) < 1:
        raise UsageError(
            f"shard sizes must be at least 2 and under 2**32 tokens, not {shard_tokens} with ramp {tuple(ramp)}"
        )
    target = folder / "sources" / spec.name
    threshold = 2**64 - int(spec.valid_fraction * 2**64)  # keys from here on are validation
    shards = {split: _Shards(target, split, spec, shard_tokens, tuple(ramp)) for split in ("train", "valid")}
    ordered = spool.in_key_order(folder / f".spool-{spec.name}", batches, spec.tokenizer, spec.salt, memory_tokens)
    for table in ordered:
        keys = table["key"].to_numpy()
        cut = len(keys) if threshold == 2**64 else int(np.searchsorted(keys, np.uint64(threshold), "left"))
        shards["train"].add(table.slice(0, cut))
        shards["valid"].add(table.slice(cut))
    manifest = with_content_id(
        SourceManifest(
            name=spec.name,
            licence=spec.licence,
            tokenizer=spec.tokenizer,
            dtype=spec.tokenizer.dtype,
            order=OrderInfo(salt=spec.salt, valid_fraction=spec.valid_fraction),
            recipe=spec.recipe,
            inputs=spec.inputs,
            train=shards["train"].finish(),
            valid=shards["valid"].finish(),
        )
    )
    _write_bytes(target / MANIFEST, manifest_bytes(manifest))
    _remove_strangers(target, manifest)
    return manifest


def write_manifest(folder: Path, mixtures: Sequence[Path] = (), tokenizer: Path | None = None) -> DatasetManifest:
    """Collect FOLDER/sources/*, copy `mixtures` and the tokenizer.json in, write the card and, last, manifest.json.

    Mixtures that already stand in FOLDER/mixtures stay listed.

    Raises:
        DataError: no sources, sources of different tokenizers, a manifest that cannot be read, or a `tokenizer` that is
            not the one that wrote the shards.
        UsageError: a mixture that is no mixture.
    """
    manifests = {path.parent.name: read_source_manifest(path) for path in sorted(folder.glob(f"sources/*/{MANIFEST}"))}
    if not manifests:
        raise DataError(f"{folder / 'sources'}: no source is written there; write_source comes first")
    for name, manifest in manifests.items():
        if manifest.name != name:
            raise DataError(f"{folder / 'sources' / name / MANIFEST}: names the source {manifest.name!r}, not {name!r}")
    known = one_tokenizer({name: manifest.tokenizer for name, manifest in manifests.items()}, folder)
    if tokenizer is not None and files.sha256_file(tokenizer) != known.sha256:
        raise DataError(f"{tokenizer}: not the tokenizer that wrote the shards (sha256 {known.sha256[:12]})")
    for path in mixtures:
        load_mixture(path)
    (folder / MANIFEST).unlink(missing_ok=True)  # until the new one stands, this is no dataset
    for path in mixtures:
        _write_bytes(folder / "mixtures" / path.name, path.read_bytes())
    if tokenizer is not None:
        _write_bytes(folder / TOKENIZER, tokenizer.read_bytes())
    copied = sorted((folder / "mixtures").glob("*.toml"))
    dataset = with_content_id(
        DatasetManifest(
            sources={name: _source_entry(folder, name) for name in manifests},
            mixtures=[_file_entry(folder, path) for path in copied],
            tokenizer_file=_file_entry(folder, folder / TOKENIZER) if tokenizer is not None else None,
        )
    )
    files.write_text(folder / "README.md", card.card(manifests, [load_mixture(path) for path in copied]))
    _write_bytes(folder / MANIFEST, manifest_bytes(dataset))
    return dataset


class _Shards:
    """Fills the shards of one split, one after the other. A shard is held in memory until it is full, then written."""

    def __init__(self, target: Path, split: str, spec: SourceSpec, shard_tokens: int, ramp: tuple[int, ...]) -> None:
        self.target, self.spec, self.shard_tokens, self.ramp = target, spec, shard_tokens, ramp
        self.prefix = "" if split == "train" else f"{split}/"
        self.entries: list[ShardEntry] = []
        self._clear()

    def _clear(self, continues: bool = False) -> None:
        self.tokens: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.rows: list[pa.Table] = []
        self.held, self.continues = 0, continues

    @property
    def room(self) -> int:
        index = len(self.entries)
        size = min(self.ramp[index], self.shard_tokens) if index < len(self.ramp) else self.shard_tokens
        return size - self.held

    def add(self, table: pa.Table) -> None:
        """Append documents in order, starting a new shard whenever the next document does not fit."""
        if not table.num_rows:
            return
        flat, ends = _flatten(table, self.spec)
        row, rows = 0, table.num_rows
        while row < rows:
            offset = int(ends[row - 1]) if row else 0
            stop = int(np.searchsorted(ends, offset + self.room, "right"))
            length = int(ends[row]) - offset
            if stop <= row and self.held:
                self._close()
                continue
            if stop <= row and length > self.shard_tokens:
                self._split(table.slice(row, 1), flat[offset : int(ends[row])])
                row += 1
                continue
            stop = max(stop, row + 1)  # a document longer than a shard of the ramp, but not than a full one
            self._hold(
                table.slice(row, stop - row),
                flat[offset : int(ends[stop - 1])],
                np.diff(ends[row:stop], prepend=offset),
            )
            row = stop

    def finish(self) -> list[ShardEntry]:
        if self.held:
            self._close()
        return self.entries

    def _hold(self, rows: pa.Table, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.rows.append(rows)
        self.tokens.append(tokens)
        self.lengths.append(lengths)
        self.held += len(tokens)

    def _split(self, row: pa.Table, tokens: np.ndarray) -> None:
        """A document longer than a shard: pieces in consecutive shards, each but the first flagged `continues`."""
        for start in range(0, len(tokens), self.shard_tokens):
            if start:
                self._close()
                self.continues = True
            piece = tokens[start : start + self.shard_tokens]
            self._hold(row, piece, np.array([len(piece)]))

    def _close(self) -> None:
        number = len(self.entries)
        stem = f"{number // 1000:03d}/{number:05d}"
        tokens, lengths = np.concatenate(self.tokens), np.concatenate(self.lengths)
        rows = pa.concat_tables(self.rows).combine_chunks()
        keys = rows["key"].to_numpy()
        token_bytes = tokens.astype(numpy_dtype(self.spec.tokenizer.dtype), copy=False).data.cast("B")
        token_file = self._put(f"{self.prefix}tokens/{stem}.{self.spec.tokenizer.dtype}", token_bytes)
        header = ends_header(self.spec.tokenizer.dtype, len(tokens), len(lengths), token_file.sha256)
        ends = np.cumsum(lengths).astype("<u4")
        entry = ShardEntry(
            tokens=token_file,
            ends=self._put(f"{self.prefix}ends/{stem}.u32", header + ends.tobytes()),
            meta=self._put(f"{self.prefix}meta/{stem}.parquet", _meta_bytes(rows, lengths)),
            token_count=len(tokens),
            document_count=len(lengths),
            max_id=int(tokens.max()),
            key_low=f"{int(keys[0]):016x}",
            key_high=f"{int(keys[-1]):016x}",
            continues=self.continues,
        )
        assert entry.ends.bytes == HEADER_BYTES + 4 * len(lengths)
        self.entries.append(entry)
        self._clear()

    def _put(self, relative: str, data: bytes | memoryview) -> FileEntry:
        entry = FileEntry(path=relative, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        path = self.target / relative
        if not (path.is_file() and path.stat().st_size == entry.bytes and files.sha256_file(path) == entry.sha256):
            (self.target / MANIFEST).unlink(missing_ok=True)  # what it says of this file is about to be untrue
            _write_bytes(path, data)
        return entry


def _flatten(table: pa.Table, spec: SourceSpec) -> tuple[np.ndarray, np.ndarray]:
    """The table's tokens as one array with EOS after each document, and the documents' end offsets in it."""
    lengths = spool.list_lengths(table)
    values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["tokens"].chunks])
    ends = np.cumsum(lengths.astype(np.int64) + 1)
    flat = np.empty(len(values) + len(ends), values.dtype)
    is_text = np.ones(len(flat), bool)
    is_text[ends - 1] = False
    flat[is_text] = values
    flat[ends - 1] = spec.tokenizer.eos_id
    return flat, ends


def _meta_bytes(rows: pa.Table, lengths: np.ndarray) -> pa.Buffer | bytes:
    table = rows.drop_columns(["tokens"]).append_column("tokens", pa.array(lengths, pa.int32())).select(META_COLUMNS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=2**16)
    return sink.getvalue().to_pybytes()


def _remove_strangers(target: Path, manifest: SourceManifest) -> None:
    """Delete shard files of an earlier, larger version of the source that the manifest does not list."""
    listed = {entry.path for entry in source_files(manifest)}
    for part in ("tokens", "ends", "meta", "valid"):
        for path in sorted((target / part).rglob("*")):
            if path.is_file() and path.relative_to(target).as_posix() not in listed:
                path.unlink()


def _write_bytes(path: Path, data: bytes | memoryview) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _file_entry(root: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=files.sha256_file(path))


def _source_entry(root: Path, name: str) -> SourceEntry:
    relative = f"sources/{name}/{MANIFEST}"
    return SourceEntry(path=relative, sha256=files.sha256_file(root / relative))
