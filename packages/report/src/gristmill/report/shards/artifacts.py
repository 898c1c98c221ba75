"""Published shards as their manifests describe them: documents, tokens and shards of each source, by split.

Nothing is counted again here; the manifests are what a reader of the shards will trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gristmill.base.files import read_json
from gristmill.report.columns import NotThere

SPLITS = ("train", "valid")


def read(run: Path) -> dict[str, Any]:
    """One entry per folder of shards/; `published` says whether the copy for the Hub is of the same content.

    Raises:
        NotThere: nothing was packed yet.
    """
    manifests = sorted((run / "shards").glob("*/manifest.json"))
    if not manifests:
        raise NotThere("shards/<name>/manifest.json", "the pack stage")
    copy = run / "published" / "manifest.json"
    published = read_json(copy).get("content_id") if copy.exists() else None
    return {"artifacts": [_artifact(path, published) for path in manifests]}


def _artifact(path: Path, published: str | None) -> dict[str, Any]:
    manifest = read_json(path)
    sources = [
        _source(name, read_json(path.parent / "sources" / name / "manifest.json"))
        for name in manifest.get("sources") or {}
        if "/" not in name and (path.parent / "sources" / name / "manifest.json").is_file()
    ]
    content = manifest.get("content_id")
    return {
        "name": path.parent.name,
        "format": manifest.get("format"),
        "content_id": content,
        "published": content is not None and content == published,
        "mixtures": [PurePosixPath(mixture["path"]).stem for mixture in manifest.get("mixtures") or []],
        "sources": sources,
    }


def _source(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    splits = {split: manifest.get(split) or [] for split in SPLITS}
    every = [shard for shards in splits.values() for shard in shards]
    return {
        "name": name,
        "documents": _documents(every),
        "tokens": sum(shard["token_count"] for shard in every),
        "valid_documents": _documents(splits["valid"]),
        "valid_tokens": sum(shard["token_count"] for shard in splits["valid"]),
        "shards": len(every),
        "dtype": manifest.get("dtype"),
        "vocabulary": (manifest.get("tokenizer") or {}).get("vocab_size"),
        "licence": manifest.get("licence"),
    }


def _documents(shards: Sequence[Mapping[str, Any]]) -> int:
    """A document that is longer than a shard has a row in each that it lies in; only its first one counts."""
    return sum(shard["document_count"] - bool(shard.get("continues")) for shard in shards)
