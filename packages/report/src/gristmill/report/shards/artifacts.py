"""Published shards as their manifests describe them: documents, tokens and shards of each source, by split.

Nothing is counted again here; the manifests are what a reader of the shards will trust.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gristmill.base.files import read_json, safe_join
from gristmill.report.columns import NotThere
from gristmill.report.shards.dataset import SPLITS, folders

RECIPE = 4_000  # characters


def read(run: Path) -> dict[str, Any]:
    """One entry per folder of shards/; `published` says whether the copy for the Hub is of the same content.

    `datasets`: the place of each one, and of that copy, as the inspector's questions name them.

    Raises:
        NotThere: nothing was packed yet.
    """
    manifests = sorted((run / "shards").glob("*/manifest.json"))
    if not manifests:
        raise NotThere("shards/<name>/manifest.json", "the pack stage")
    copy = run / "published" / "manifest.json"
    published = read_json(copy).get("content_id") if copy.exists() else None
    artifacts = [_artifact(path, published) for path in manifests]
    return {"artifacts": artifacts, "datasets": list(folders(run))}


def _artifact(path: Path, published: str | None) -> dict[str, Any]:
    manifest = read_json(path)
    read = {
        name: read_json(safe_join(path.parent, str(entry["path"])))
        for name, entry in (manifest.get("sources") or {}).items()
    }
    content = manifest.get("content_id")
    first = next(iter(read.values()), {})
    tokenizer = first.get("tokenizer") or {}
    return {
        "name": path.parent.name,
        "dataset": f"shards/{path.parent.name}",
        "format": manifest.get("format"),
        "content_id": content,
        "published": content is not None and content == published,
        "mixtures": [PurePosixPath(mixture["path"]).stem for mixture in manifest.get("mixtures") or []],
        "tokenizer": {key: tokenizer.get(key) for key in ("name", "sha256", "vocab_size", "eos_id")},
        "order": first.get("order"),
        "recipe": _recipe(read),
        "sources": [_source(name, one) for name, one in read.items()],
    }


def _recipe(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """How the documents were chosen, where it is the same for all sources: of a policy its name and its rules."""
    recipes = [one.get("recipe") for one in manifests.values()]
    recipe = recipes[0] if recipes else None
    if not isinstance(recipe, Mapping) or any(other != recipe for other in recipes):
        return None
    policy = recipe.get("policy")
    rest = {key: value for key, value in recipe.items() if key not in ("policy", "selection")}
    told = policy if isinstance(policy, Mapping) else {}
    return {
        "selection": recipe.get("selection"),
        "policy": told.get("name"),
        "rules": [rule.get("name") for rule in told.get("rules") or []],
        "other": json.dumps(rest, ensure_ascii=False)[:RECIPE] if rest else None,
    }


def _source(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    splits = {split: manifest.get(split) or [] for split in SPLITS}
    every = [shard for shards in splits.values() for shard in shards]
    return {
        "name": name,
        "documents": _count(every),
        "tokens": sum(shard["token_count"] for shard in every),
        "valid_documents": _count(splits["valid"]),
        "valid_tokens": sum(shard["token_count"] for shard in splits["valid"]),
        "shards": len(every),
        "splits": {split: len(shards) for split, shards in splits.items()},
        "inputs": len(manifest.get("inputs") or []),
        "dtype": manifest.get("dtype"),
        "vocabulary": (manifest.get("tokenizer") or {}).get("vocab_size"),
        "licence": manifest.get("licence"),
    }


def _count(shards: Sequence[Mapping[str, Any]]) -> int:
    """A document that is longer than a shard has a row in each that it lies in; only its first one counts."""
    return sum(shard["document_count"] - bool(shard.get("continues")) for shard in shards)
