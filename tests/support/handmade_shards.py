"""A small dataset whose manifests and files a test writes anew, with hashes that are right."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import DataError
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

TOKENIZER = TokenizerInfo(name="ids", sha256="0" * 64, vocab_size=50_000, eos_id=0)
Value = dict[str, Any]
Change = Callable[[Value], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of which some continue, a validation split, and a source with masks."""
    root = tmp_path_factory.mktemp("good")
    draw = np.random.default_rng(0)
    for name, count, masked in (("plain", 40, False), ("chat", 9, True)):
        tokens = [draw.integers(1, 50_000, n).tolist() for n in draw.integers(0, 400, count)]
        rows = {"id": [f"é{i}" for i in range(count)], "tokens": tokens, "file": ["f"] * count, "row": range(count)}
        rows |= {"loss": [[i % 2 for i in range(len(ids))] for ids in tokens]} if masked else {}
        spec = SourceSpec(name, TOKENIZER, "s", 0.2, {"quality": [0.5, None, {"ü": True}]})
        write_source(root, spec, [pa.table(rows)], shard_tokens=300, ramp=(100,))
    write_manifest(root)
    assert any(shard.continues for shard in open_dataset(root).sources["plain"].manifest.train)
    assert open_dataset(root).sources["plain"].manifest.valid
    open_dataset(root).verify()
    return root


@pytest.fixture
def root(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def content_id(value: Value) -> str:
    """As docs/format.md spells it; of what has no UTF-8, whatever."""
    text = json.dumps(
        {key: item for key, item in value.items() if key != "content_id"},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_path(root: Path, source: str = "plain") -> Path:
    return root / json.loads((root / "manifest.json").read_text())["sources"][source]["path"]


def source_value(root: Path, source: str = "plain") -> tuple[Path, Value]:
    path = source_path(root, source)
    return path, json.loads(path.read_text())


def put(root: Path, data: bytes, source: str = "plain") -> None:
    """Exchange a source's manifest, and make the hash above it right."""
    source_path(root, source).write_bytes(data)
    top = json.loads((root / "manifest.json").read_text())
    top["sources"][source]["sha256"] = hashlib.sha256(data).hexdigest()
    put_top(root, top)


def put_top(root: Path, top: Value) -> None:
    top["content_id"] = content_id(top)
    (root / "manifest.json").write_text(json.dumps(top))


def edit(root: Path, change: Change, source: str = "plain") -> None:
    _path, value = source_value(root, source)
    change(value)
    value["content_id"] = content_id(value)
    put(root, json.dumps(value).encode(), source)


def replace(root: Path, part: str, data: bytes, i: int = 0, source: str = "plain", **changes: Any) -> Path:
    """Exchange a file of train shard i and all that its manifest says of it, as an attacker would."""
    path, value = source_value(root, source)
    shard = value["train"][i]
    victim = path.parent / shard[part]["path"]
    victim.write_bytes(data)
    shard[part] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    shard |= changes
    if part == "tokens":  # the ends name them
        ends = path.parent / shard["ends"]["path"]
        raw = bytearray(ends.read_bytes())
        raw[32:64] = bytes.fromhex(shard["tokens"]["sha256"])
        ends.write_bytes(raw)
        shard["ends"]["sha256"] = hashlib.sha256(raw).hexdigest()
    edit(root, lambda old: old.update(value), source)
    return victim


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(root)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def train(root: Path, source: str = "plain") -> Any:
    return open_dataset(root).sources[source].split("train")
