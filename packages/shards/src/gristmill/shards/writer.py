"""Tokenised documents into a source of shards, sources into a dataset. Files are whole or absent; manifests come last.

Documents stand in hash order, so any prefix of shards is a uniform sample and a smaller budget nests in a larger one.
Three passes: spool the input, plan the shards from keys and lengths, build each shard; the first and the last in any
number of processes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import card
from gristmill.shards.manifest import (
    MANIFEST,
    NAME_PATTERN,
    SPLITS,
    DatasetManifest,
    FileEntry,
    OrderInfo,
    ShardEntry,
    SourceEntry,
    SourceManifest,
    TokenizerInfo,
    load_dataset_manifest,
    manifest_bytes,
    one_tokenizer,
    read_source_manifest,
    source_files,
    with_content_id,
)
from gristmill.shards.mixture import load_mixture
from gristmill.shards.skeleton import between
from gristmill.shards.writing import build, spool
from gristmill.shards.writing.documents import META_COLUMNS, ColumnType, Form
from gristmill.shards.writing.processes import Each, here, processes

SHARD_TOKENS = 2**26  # 128 MiB of u16
RAMP = (2**22, 2**22, 2**23, 2**24, 2**25)  # small shards first, so that a smoke run downloads little
NAME_LENGTH = 96  # as manifest.Name has it
COLUMN_PATTERN = r"[^\W_][\w.-]{0,95}"
SPOOL_VERSION = 1
TOKENIZER = "tokenizer.json"

Parts = Iterable[pa.Table] | Mapping[str, Callable[[], Iterable[pa.Table]]]


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """What a source is, before its documents. `salt` keys the order; `valid_fraction` of the key space is held out.

    `columns`: metadata columns beyond id, file, row, tokens, score and language, by type.
    """

    name: str
    tokenizer: TokenizerInfo
    salt: str = ""
    valid_fraction: float = 0.0
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    licence: str = "unknown"
    columns: dict[str, ColumnType] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name) or len(self.name) > NAME_LENGTH:
            raise UsageError(
                f"source name {self.name!r}: use letters, digits, '.', '_' and '-' only, at most {NAME_LENGTH}"
            )
        if not 0 <= self.valid_fraction < 1:
            raise UsageError(f"source {self.name}: valid_fraction {self.valid_fraction} must be at least 0 and under 1")
        try:
            files.fingerprint([self.recipe, self.inputs])
        except (TypeError, ValueError) as error:
            raise UsageError(f"source {self.name}: recipe and inputs must be plain JSON: {error}") from None
        for column, kind in self.columns.items():
            if not re.fullmatch(COLUMN_PATTERN, column) or column in (*META_COLUMNS, "loss"):
                raise UsageError(
                    f"source {self.name}: column {column!r}: begin with a letter or digit, go on with those, '.', '_' "
                    f"and '-', and take none of {', '.join(META_COLUMNS)}, loss"
                )
            if kind not in get_args(ColumnType):
                raise UsageError(
                    f"source {self.name}: column {column} is {kind!r}; give {', '.join(get_args(ColumnType))}"
                )


def write_source(
    folder: Path,
    spec: SourceSpec,
    parts: Parts,
    *,
    workers: int = 1,
    resume_key: str = "",
    shard_tokens: int = SHARD_TOKENS,
    ramp: Sequence[int] = RAMP,
    memory_tokens: int = 2**26,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceManifest:
    """Write FOLDER/sources/NAME from tables in any order.

    Columns: id, tokens (without EOS: each document gets one), file, row; maybe score, language, `loss` (a list of 0 and
    1 per document, 1 where a token is learnt from; for all documents or none) and those of `spec.columns`.

    `parts` are tables, or by name a picklable callable that gives tables: `workers` processes then read several at a
    time. The output bytes depend only on the set of documents and the spec. A process holds a few times `memory_tokens`
    tokens or one shard, whichever is more.

    `resume_key`, a fingerprint of what the parts hold, lets the next call with the same key go on after an error or a
    kill: parts that are spooled and shards that are written are not made again. Without one every call starts afresh.
    `progress(tokens written, tokens in all)` is called from when all parts are spooled.

    The dataset that stands in `folder` stays as it is: write_manifest, which comes last, exchanges it for the new one.

    Raises:
        DataError: no document, a missing column, a null, a wrong type, an id outside the vocabulary, a loss mask that
            does not fit, a duplicate document id; or a tokenizer that is not that of the sources in `folder`.
        GristmillError: another process writes the source, or a worker was killed.
    """
    if shard_tokens < 2 or shard_tokens >= 2**32 or min(ramp, default=1) < 1:
        raise UsageError(
            f"shard sizes must be at least 2 and under 2**32 tokens, not {shard_tokens} with ramp {tuple(ramp)}"
        )
    if workers < 1 or memory_tokens < 1:
        raise UsageError(f"workers ({workers}) and memory_tokens ({memory_tokens}) must be at least 1")
    others = {name: manifest.tokenizer for name, (_path, manifest) in _written(folder).items() if name != spec.name}
    one_tokenizer({**others, spec.name: spec.tokenizer}, folder)
    target, scratch = folder / "sources" / spec.name, folder / f".spool-{spec.name}"
    form = Form(spec.tokenizer, spec.salt, spec.columns)
    named = parts if isinstance(parts, Mapping) else {"": lambda: parts}
    key = files.fingerprint(
        [SPOOL_VERSION, resume_key, spec.tokenizer.model_dump(), spec.salt, spec.columns, sorted(named)]
    )
    with spool.spool(scratch, key, keep=bool(resume_key)), processes(workers) as each:
        spooled = _spool(scratch, form, named, each if named is parts else here, memory_tokens)
        runs = [scratch / run for part in spooled for run in part.runs]
        threshold = 2**64 - int(spec.valid_fraction * 2**64)
        planned = build.plan_shards(runs, sum(part.documents for part in spooled), threshold, shard_tokens, ramp)
        if not planned:
            raise DataError(f"source {spec.name}: the input holds no document")
        entries: dict[tuple[str, int], ShardEntry] = {}
        done, total = 0, sum(shard.tokens for shard in planned)
        missing: list[build.PlannedShard] = []
        for shard in planned:
            if entry := build.built(scratch, target, shard):
                entries[shard.split, shard.number] = entry
                done += shard.tokens
            else:
                missing.append(shard)
        progress(done, total)
        for shard, entry in each(build.build_shard, [(scratch, target, runs, form, shard) for shard in missing]):
            entries[shard.split, shard.number] = entry
            done += shard.tokens
            progress(done, total)
        split = {name: [entries[s.split, s.number] for s in planned if s.split == name] for name in SPLITS}
        manifest = with_content_id(
            SourceManifest(
                name=spec.name,
                licence=spec.licence,
                tokenizer=spec.tokenizer,
                dtype=spec.tokenizer.dtype,
                order=OrderInfo(salt=spec.salt, valid_fraction=spec.valid_fraction),
                recipe=spec.recipe,
                inputs=spec.inputs,
                train=split["train"],
                valid=split["valid"],
            )
        )
        _write_bytes(target / MANIFEST, manifest_bytes(manifest))
    return manifest


def write_manifest(folder: Path, mixtures: Sequence[Path] = (), tokenizer: Path | None = None) -> DatasetManifest:
    """Collect FOLDER/sources/*, copy `mixtures` and the tokenizer.json in, write the card and, last, manifest.json.

    Sources, mixtures and the tokenizer.json that already stand in FOLDER stay listed. A source's manifest.json is what
    write_source left; the dataset lists a copy under a name that carries its hash, so that a version stands as a whole
    or not at all. What only the version before listed is removed at the end.

    Raises:
        DataError: no sources, sources of different tokenizers, a manifest that cannot be read, or a `tokenizer` that is
            not the one that wrote the shards.
        UsageError: a mixture that is no mixture.
    """
    written = _written(folder)
    if not written:
        raise DataError(f"{folder / 'sources'}: no source is written there; write_source comes first")
    manifests = {name: manifest for name, (_path, manifest) in written.items()}
    known = one_tokenizer({name: manifest.tokenizer for name, manifest in manifests.items()}, folder)
    if tokenizer is not None and files.sha256_file(tokenizer) != known.sha256:
        raise DataError(f"{tokenizer}: not the tokenizer that wrote the shards (sha256 {known.sha256[:12]})")
    texts = {path.name: path for path in (*(folder / "mixtures").glob("*.toml"), *mixtures)}
    loaded = [load_mixture(path) for _name, path in sorted(texts.items())]
    columns = [_columns(folder / "sources" / name, manifest) for name, manifest in manifests.items()]
    alike = len({str(schema) for schema in columns if schema is not None}) <= 1
    standing = folder / TOKENIZER
    if tokenizer is None and standing.is_file() and files.sha256_file(standing) == known.sha256:
        tokenizer = standing
    dataset = with_content_id(
        DatasetManifest(
            sources={name: _source_entry(folder, path) for name, (path, _manifest) in written.items()},
            mixtures=[_file_entry(f"mixtures/{name}", path) for name, path in sorted(texts.items())],
            tokenizer_file=_file_entry(TOKENIZER, tokenizer) if tokenizer is not None else None,
        )
    )
    if (folder / MANIFEST).is_file():  # while mixtures are exchanged, a manifest stands that does not list them
        _write_bytes(folder / MANIFEST, manifest_bytes(between(load_dataset_manifest(folder), dataset)))
    for path in mixtures:
        _write_bytes(folder / "mixtures" / path.name, path.read_bytes())
    if tokenizer is not None and tokenizer != standing:
        _write_bytes(standing, tokenizer.read_bytes())
    files.write_text(folder / "README.md", card.card(manifests, loaded, alike))
    _write_bytes(folder / MANIFEST, manifest_bytes(dataset))
    for name, manifest in manifests.items():
        _remove_strangers(folder / "sources" / name, manifest, Path(dataset.sources[name].path).name)
    return dataset


def _written(folder: Path) -> dict[str, tuple[Path, SourceManifest]]:
    """The sources of a folder by name: as write_source left them, else as the dataset that stands there lists them."""
    found = {path.parent.name: path for path in folder.glob(f"sources/*/{MANIFEST}")}
    if (folder / MANIFEST).is_file():
        for name, entry in load_dataset_manifest(folder).sources.items():
            path = files.safe_join(folder, entry.path)
            if path.is_file():
                found.setdefault(name, path)
    written = {name: (path, read_source_manifest(path)) for name, path in sorted(found.items())}
    for name, (path, manifest) in written.items():
        if manifest.name != name:
            raise DataError(f"{path}: names the source {manifest.name!r}, not {name!r}")
    return written


def _spool(scratch: Path, form: Form, parts: Mapping[str, Any], each: Each, memory_tokens: int) -> list[spool.Part]:
    """The records of all parts; those that have none yet are spooled now."""
    spooled: list[spool.Part] = []
    missing: list[tuple[Any, ...]] = []
    for number, name in enumerate(sorted(parts)):
        if part := spool.finished(scratch, number):
            spooled.append(part)
        else:
            missing.append((scratch, number, parts[name], form, memory_tokens))
    spooled += each(spool.write_part, missing)
    masked = {part.loss: part for part in spooled if part.documents}
    if len(masked) > 1:
        raise spool.mixed_loss(masked[True].first, masked[False].first)
    return spooled


def _remove_strangers(target: Path, manifest: SourceManifest, listed_as: str) -> None:
    """Delete shard files and manifests of earlier versions of the source, and what a killed writer left behind."""
    listed = {entry.path for entry in source_files(manifest)} | {MANIFEST, listed_as}
    inside = [path for part in ("tokens", "ends", "meta", "loss", "valid") for path in (target / part).rglob("*")]
    for path in (*inside, *target.glob("manifest-*.json"), *target.glob(".manifest*")):
        if path.is_file() and path.relative_to(target).as_posix() not in listed:
            path.unlink()


def _write_bytes(path: Path, data: bytes) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _columns(target: Path, manifest: SourceManifest) -> pa.Schema | None:
    """The metadata columns of a source, from its first shard; None where none is there."""
    for shard in (*manifest.train, *manifest.valid):
        path = files.safe_join(target, shard.meta.path)
        if path.is_file():
            return pq.read_schema(path).remove_metadata()
    return None


def _file_entry(name: str, path: Path) -> FileEntry:
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=files.sha256_file(path))


def _source_entry(root: Path, path: Path) -> SourceEntry:
    """The entry of a source's manifest, under the name that carries its hash."""
    sha256 = files.sha256_file(path)
    named = path.with_name(f"manifest-{sha256[:8]}.json")
    if not (named.is_file() and files.sha256_file(named) == sha256):
        _write_bytes(named, path.read_bytes())
    return SourceEntry(path=named.relative_to(root).as_posix(), sha256=sha256)
