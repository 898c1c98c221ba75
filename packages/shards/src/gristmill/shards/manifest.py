"""What a published dataset says of itself: tokenizer, shards, checksums, provenance; the same JSON for the same data.

A manifest is the commit point of what it lists: written last, checked first. It holds no times, so equal inputs give
equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gristmill.base import files
from gristmill.base.errors import DataError
from gristmill.base.terminal import shown
from gristmill.shards.entries import (
    Count,
    Dtype,
    FileEntry,
    FilePath,
    Sha256,
    ShardEntry,
    check_distinct,
    check_shards,
    check_split,
)
from gristmill.shards.entries import numpy_dtype as numpy_dtype

DATASET_FORMAT = "gristmill.shards/1"
SOURCE_FORMAT = "gristmill.source/1"
MANIFEST = "manifest.json"
SPLITS = ("train", "valid")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=96)]
Text = Annotated[str, Field(strict=True)]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerInfo(Model):
    """The tokenizer whose ids the shards hold; `sha256` is that of its tokenizer.json."""

    name: Text
    sha256: Sha256
    vocab_size: int = Field(gt=0, le=2**32, strict=True)
    eos_id: Count

    @model_validator(mode="after")
    def _eos_in_vocabulary(self) -> TokenizerInfo:
        if self.eos_id >= self.vocab_size:
            raise ValueError(f"eos_id {self.eos_id} is outside the vocabulary of {self.vocab_size}")
        return self

    @property
    def dtype(self) -> Dtype:
        """The narrowest of u16 and u32 that holds every id."""
        return "u16" if self.vocab_size <= 2**16 else "u32"


class OrderInfo(Model):
    """How documents were put in order: by the first 8 bytes of blake2b(salt|id); the top of the keys is `valid`."""

    algorithm: Literal["blake2b-8/1"] = "blake2b-8/1"
    salt: Text
    valid_fraction: float = Field(ge=0, lt=1, strict=True)


class SourceManifest(Model):
    format: Literal["gristmill.source/1"] = SOURCE_FORMAT
    name: Name
    licence: Text
    tokenizer: TokenizerInfo
    dtype: Dtype
    order: OrderInfo
    recipe: dict[str, Any]
    inputs: list[dict[str, Any]]
    train: list[ShardEntry]
    valid: list[ShardEntry]
    content_id: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SourceManifest:
        if self.dtype != self.tokenizer.dtype:
            raise ValueError(
                f"dtype {self.dtype} is wrong for {self.tokenizer.vocab_size} ids: {self.tokenizer.dtype} expected"
            )
        splits = {"train": self.train, "valid": self.valid}
        check_shards(splits, self.dtype, self.tokenizer.vocab_size)
        check_split(splits, self.order.valid_fraction)
        check_distinct(list(source_files(self)))
        return self

    def shards(self, split: str) -> list[ShardEntry]:
        return self.train if split == "train" else self.valid


class SourceEntry(Model):
    path: FilePath
    sha256: Sha256


class DatasetManifest(Model):
    format: Literal["gristmill.shards/1"] = DATASET_FORMAT
    sources: dict[Name, SourceEntry]
    mixtures: list[FileEntry] = []
    tokenizer_file: FileEntry | None = None
    """The tokenizer.json itself, so that who trains or reads needs nothing else."""
    content_id: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> DatasetManifest:
        others = list(other_files(self))
        check_distinct([*self.sources.values(), *others])
        folders = {f"{entry.path.rpartition('/')[0]}/": name for name, entry in self.sources.items()}
        if len(folders) < len(self.sources) or "/" in folders:
            raise ValueError("sources: the manifest of each must be in a folder of its own")
        for path in (*folders, *(entry.path for entry in others)):
            at = path.find("/") + 1
            while 0 < at < len(path):
                if path[:at] in folders:
                    raise ValueError(f"{path}: is inside the folder of source {folders[path[:at]]}")
                at = path.find("/", at) + 1
        return self


M = TypeVar("M", SourceManifest, DatasetManifest)


def with_content_id(manifest: M) -> M:
    """The manifest with its content_id filled in: sha256 of its canonical JSON less content_id itself."""
    return manifest.model_copy(update={"content_id": content_id(manifest)})


def content_id(manifest: SourceManifest | DatasetManifest) -> str:
    """The content_id of what manifest_bytes writes."""
    return _content_id(manifest.model_dump(mode="json"))


def _content_id(value: dict[str, Any]) -> str:
    """Of a manifest as it is written: what it leaves out stays out.

    files.canonical_json's spelling without its walk, which JSON does not need: there are a million values.
    """
    value = {name: item for name, item in value.items() if name != "content_id"}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def load_dataset_manifest(folder: Path) -> DatasetManifest:
    """Read FOLDER/manifest.json.

    Raises:
        DataError: missing, no JSON, another format version, a wrong type, or a content_id that does not match.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no such file: not a dataset, or one whose writing or download was cut short")
    return _parse(DatasetManifest, path, path.read_bytes(), DATASET_FORMAT)


def load_source_manifest(root: Path, name: str, entry: SourceEntry) -> tuple[SourceManifest, Path]:
    """Read a source's manifest and check it against the dataset's. Returns it with the folder its paths start from.

    Raises:
        DataError: an unsafe path, a hash that differs, another format version, a wrong dtype or content_id.
    """
    path = files.safe_join(root, entry.path)
    if not path.is_file():
        raise DataError(f"{path}: no such file, but {root / MANIFEST} lists it")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise DataError(
            f"{path}: sha256 {found[:12]}, but {root / MANIFEST} says {entry.sha256[:12]}: pull or write it again"
        )
    manifest = _parse(SourceManifest, path, data, SOURCE_FORMAT)
    if manifest.name != name:
        raise DataError(f"{path}: names the source {manifest.name!r}, but {root / MANIFEST} calls it {name!r}")
    if any(file.path == path.name for file in source_files(manifest)):
        raise DataError(f"{path}: lists itself among the files of its shards")
    return manifest, path.parent


def read_source_manifest(path: Path) -> SourceManifest:
    """Read one source manifest by itself, before a dataset manifest lists it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return _parse(SourceManifest, path, path.read_bytes(), SOURCE_FORMAT)


def other_files(manifest: DatasetManifest) -> Iterator[FileEntry]:
    """What belongs to no source: mixtures and the tokenizer."""
    yield from manifest.mixtures
    if manifest.tokenizer_file is not None:
        yield manifest.tokenizer_file


def source_files(manifest: SourceManifest) -> Iterator[FileEntry]:
    for shard in (*manifest.train, *manifest.valid):
        yield from shard.files


def check_size(root: Path, entry: FileEntry) -> Path:
    """The entry's path below `root`, if a file of the right size stands there.

    Raises:
        DataError: an unsafe path, no such file, or a size that differs; the message names the file.
    """
    path = files.safe_join(root, entry.path)
    if not path.is_file():
        raise DataError(f"{path}: no such file, but its manifest lists it; pull the dataset again to complete it")
    size = path.stat().st_size
    if size < entry.bytes:
        raise DataError(f"{path}: truncated: {size:,} of {entry.bytes:,} bytes; delete it and pull or write it again")
    if size > entry.bytes:
        raise DataError(
            f"{path}: {size:,} bytes where the manifest says {entry.bytes:,}; delete it and pull or write it again"
        )
    return path


def check_file(root: Path, entry: FileEntry) -> Path:
    """check_size, then the sha256 of the whole file.

    Raises:
        DataError: as check_size, or content that was altered.
    """
    path = check_size(root, entry)
    found = files.sha256_file(path)
    if found != entry.sha256:
        raise DataError(
            f"{path}: altered: sha256 {found[:12]} where the manifest says {entry.sha256[:12]}; "
            "delete it and pull or write it again"
        )
    return path


def one_tokenizer(tokenizers: dict[str, TokenizerInfo], where: Path) -> TokenizerInfo:
    """The tokenizer that all sources share; its name may differ, what it does may not.

    Raises:
        DataError: two sources whose tokenizers differ, named.
    """
    first, expected = next(iter(tokenizers.items()))
    for name, tokenizer in tokenizers.items():
        if tokenizer.model_copy(update={"name": expected.name}) != expected:
            raise DataError(
                f"{where}: source {name} was tokenised with {shown(tokenizer.name)} ({tokenizer.sha256[:12]}), "
                f"source {first} with {shown(expected.name)} ({expected.sha256[:12]}); tokenise one of them again"
            )
    return expected


def manifest_bytes(manifest: SourceManifest | DatasetManifest) -> bytes:
    """The manifest as files.write_json writes it."""
    value = manifest.model_dump(mode="json")
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _parse(cls: type[M], path: Path, data: bytes, known_format: str) -> M:
    value, found = _json(path, data)
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object")
    said = value.get("format")
    if said != known_format:
        said = repr(said[:80]) if isinstance(said, str) else "not given"
        raise DataError(f"{path}: format is {said}, this version reads {known_format!r}; update gristmill-shards")
    if value.get("content_id") != found:
        raise DataError(
            f"{path}: content_id does not match what the manifest says; it was edited: write or pull it again"
        )
    return _validated(path, lambda: cls.model_validate(value))


def _json(path: Path, data: bytes) -> tuple[Any, str]:
    """(the value, its content_id if it is an object)"""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        return value, _content_id(value) if isinstance(value, dict) else ""
    except ValueError as error:  # also half a surrogate pair, and numbers that overflow to infinity
        raise DataError(f"{path}: not JSON ({error}); pull or write it again") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; write it again, its recipe and inputs flatter") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _validated(path: Path, build: Callable[[], M]) -> M:
    try:
        return build()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = shown(".".join(str(part)[:80] for part in first["loc"]))
        raise DataError(
            f"{path}: {where + ': ' if where else ''}{shown(first['msg'].removeprefix('Value error, '))}"
        ) from None
