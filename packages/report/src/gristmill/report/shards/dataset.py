"""A dataset's files by their documented format (docs/format.md): headerless tokens, their ends, a row per document.

Manifests may be anybody's: no path of one leaves its folder, and nothing is mapped before its size is compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.base.errors import DataError
from gristmill.base.files import read_object, safe_join
from gristmill.report.columns import Array, NotThere, open_file

SPLITS = ("train", "valid")
TYPES = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
PARTS = ("tokens", "ends", "meta", "loss")  # the files of a shard; the last one only where a source has masks
ENDS_HEADER = struct.Struct("<8sIIQQ32s")  # magic, version, bytes per token, tokens, documents, sha256 of the tokens
DATASET, SOURCE = "gristmill.shards/1", "gristmill.source/1"


def folders(run: Path) -> dict[str, Path]:
    """The datasets of a run by their place in it: each folder of shards/, and published/."""
    found = [*sorted((run / "shards").glob("*/manifest.json")), run / "published" / "manifest.json"]
    return {path.parent.relative_to(run).as_posix(): path.parent for path in found if path.is_file()}


class Dataset:
    """Manifests are read when they are first asked for: a source that is damaged costs no other."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError: no manifest, or none of a dataset."""
        self.folder = folder
        self.manifest = _manifest(folder / "manifest.json", (folder / "manifest.json").read_bytes(), DATASET)
        if not isinstance(self.manifest.get("sources"), dict) or not self.manifest["sources"]:
            raise DataError(f"{folder / 'manifest.json'}: lists no sources; pull or write it again")
        self._read: dict[str, Source] = {}

    @property
    def sources(self) -> list[str]:
        return list(self.manifest["sources"])

    def source(self, name: str) -> Source:
        """Raises DataError: its manifest is missing, altered, or leads out of the folder."""
        if name not in self._read:
            entry = self.manifest["sources"][name]
            path = safe_join(self.folder, str(entry["path"]))
            data = _bytes(path)
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise DataError(f"{path}: altered: not the sha256 that the dataset's manifest has; pull it again")
            self._read[name] = Source(name, path.parent, _manifest(path, data, SOURCE))
        return self._read[name]

    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer.json that the dataset carries.

        Raises:
            NotThere: it carries none. DataError: it is missing, or not the one that is listed.
        """
        entry = self.manifest.get("tokenizer_file")
        if not entry:
            raise NotThere("tokenizer.json", "a dataset that is packed with its tokenizer")
        path = safe_join(self.folder, str(entry["path"]))
        if hashlib.sha256(_bytes(path)).hexdigest() != entry["sha256"]:
            raise DataError(f"{path}: altered: not the sha256 that the manifest has; ids cannot be told as text")
        return read_object(path)


@dataclass(frozen=True)
class Source:
    name: str
    folder: Path
    manifest: Mapping[str, Any]

    def shards(self, split: str) -> Sequence[Shard]:
        listed = self.manifest.get(split) or []
        return [Shard(self, split, number, entry) for number, entry in enumerate(listed)]

    def find(self, document: str) -> tuple[Shard, int] | None:
        """The shard and the row of a document. Its key says which shards can hold it; only their ids are read."""
        salt = self.manifest["order"]["salt"]
        key = hashlib.blake2b(f"{salt}|{document}".encode("utf-8", "replace")).digest()[:8].hex()
        for shard in (shard for split in SPLITS for shard in self.shards(split)):
            if shard.entry["key_low"] <= key <= shard.entry["key_high"]:
                with open_file(shard.path("meta")) as file:
                    row = pc.index(file.read(columns=["id"]).column("id"), document).as_py()
                if row >= 0:
                    return shard, row
        return None


@dataclass(frozen=True)
class Shard:
    source: Source
    split: str
    number: int
    entry: Mapping[str, Any]

    @property
    def token_count(self) -> int:
        return int(self.entry["token_count"])

    @property
    def document_count(self) -> int:
        return int(self.entry["document_count"])

    @property
    def files(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return ((part, self.entry[part]) for part in PARTS if self.entry.get(part))

    def path(self, part: str) -> Path:
        """Raises DataError: a path that leads out, a file that is missing or of another size than is listed."""
        path = self.place(part)
        if fault := fault_of(path, int(self.entry[part]["bytes"])):
            raise DataError(f"{path}: {fault}; pull or write it again")
        return path

    def place(self, part: str) -> Path:
        return safe_join(self.source.folder, str(self.entry[part]["path"]))

    def tokens(self) -> Array:
        """All token ids, memory-mapped.

        Raises:
            DataError: the file is missing, or its size is not that of so many tokens.
        """
        path, kind = self.path("tokens"), TYPES[str(self.source.manifest["dtype"])]
        if path.stat().st_size != self.token_count * kind.itemsize:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are not {self.token_count:,} tokens of {kind}")
        return np.memmap(path, kind, "r")

    def ends(self) -> Array:
        """u32 [documents]: the offset after each document's last token.

        Raises:
            DataError: the file is missing, belongs to other tokens, or its ends do not ascend to their number.
        """
        path = self.path("ends")
        data = np.memmap(path, np.uint8, "r")
        if len(data) < ENDS_HEADER.size or bytes(data[:8]) != b"TKSHARD1":
            raise DataError(f"{path}: not a file of document ends; pull or write it again")
        _, version, width, tokens, documents, sha256 = ENDS_HEADER.unpack(bytes(data[: ENDS_HEADER.size]))
        listed = (1, TYPES[str(self.source.manifest["dtype"])].itemsize, self.token_count, self.document_count)
        if (version, width, tokens, documents) != listed or sha256.hex() != self.entry["tokens"]["sha256"]:
            raise DataError(f"{path}: its header belongs to other tokens than {self.entry['tokens']['path']}")
        ends = data[ENDS_HEADER.size :].view("<u4")
        if len(ends) != documents or not documents or int(ends[-1]) != tokens or np.any(ends[1:] <= ends[:-1]):
            raise DataError(f"{path}: its ends do not ascend to its {tokens:,} tokens; pull or write it again")
        return ends

    def learnt(self) -> Array | None:
        """u8 [tokens]: 1 where the token is learnt from; None where all are."""
        return np.memmap(self.path("loss"), np.uint8, "r") if self.entry.get("loss") else None

    def records(self, low: int, high: int) -> list[dict[str, Any]]:
        """The metadata of the documents low to high - 1. Groups of rows that hold none of them are not read."""
        out: list[dict[str, Any]] = []
        with open_file(self.path("meta")) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if start < high and end > low:
                    out += _rows(file, group, max(low - start, 0), min(high, end) - start)
                start = end
        if len(out) != high - low:
            raise DataError(f"{self.place('meta')}: has no rows {low:,} to {high - 1:,}; pull or write it again")
        return out

    @functools.cached_property
    def goes_on(self) -> bool:
        """Whether the last document's next piece is in the next shard."""
        listed = self.source.manifest[self.split]
        return self.number + 1 < len(listed) and bool(listed[self.number + 1].get("continues"))


def fault_of(path: Path, size: int) -> str | None:
    """What is wrong with a file that should have so many bytes, as far as its size tells."""
    if not path.is_file():
        return "missing"
    found = path.stat().st_size
    if found == size:
        return None
    return f"{'truncated' if found < size else 'too long'}: {found:,} bytes, {size:,} are listed"


def _rows(file: pq.ParquetFile, group: int, low: int, high: int) -> list[dict[str, Any]]:
    return file.read_row_group(group).slice(low, high - low).to_pylist()


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: listed in a manifest, and missing; pull or write it again")
    return path.read_bytes()


def _manifest(path: Path, data: bytes, kind: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); pull or write it again") from None
    if not isinstance(value, dict) or value.get("format") != kind:
        raise DataError(f"{path}: not of format {kind}, which is what can be read here")
    return value
