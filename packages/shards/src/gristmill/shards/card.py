"""The dataset card: YAML that lets the Hub's viewer show the documents' metadata, then what is inside, as tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gristmill.shards.manifest import ShardEntry, SourceManifest

if TYPE_CHECKING:
    from gristmill.shards.mixture import Mixture

# Identifiers that the Hub's card checker knows; anything else is "other" and named in the text.
HUB_LICENCES = (
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "odbl"),
    *("gpl-2.0", "gpl-3.0", "bsd-3-clause", "mpl-2.0", "gfdl", "unlicense", "unknown", "other"),
)


def card(sources: dict[str, SourceManifest], mixtures: list[Mixture]) -> str:
    """README.md of a dataset. The same manifests and mixtures give the same text."""
    tokenizer = next(iter(sources.values())).tokenizer
    parts = [
        _front_matter(sources),
        "# Training shards\n",
        f"Tokenised with **{tokenizer.name}** ({tokenizer.vocab_size:,} ids, sha256 `{tokenizer.sha256[:12]}`). "
        "Tokens are headerless little-endian files that anything can memory-map; documents are in hash order, so any "
        "first shards are a uniform sample. `manifest.json` pins every file by sha256.\n",
        "```\nshards pull hf://datasets/ORG/NAME FOLDER\nshards verify FOLDER\n```\n",
        "## Sources\n",
        _table(
            ("source", "train tokens", "train documents", "valid tokens", "valid documents", "licence"),
            [
                (
                    name,
                    *(f"{count:,}" for shards in (source.train, source.valid) for count in _counts(shards)),
                    source.licence.replace("|", "/").replace("\n", " "),
                )
                for name, source in sources.items()
            ],
        ),
    ]
    if mixtures:
        parts += ["## Mixtures\n", *(_mixture(mixture) for mixture in mixtures)]
    parts.append("## Recipes\n")
    for name, source in sources.items():
        parts.append(f"### {name}\n")
        parts.append("```json\n" + json.dumps(source.recipe, indent=2, sort_keys=True, ensure_ascii=False) + "\n```\n")
        parts.append(f"Inputs: {len(source.inputs)}; all are listed in `sources/{name}/manifest.json`.\n")
    return "\n".join(parts)


def _front_matter(sources: dict[str, SourceManifest]) -> str:
    licences = {source.licence.lower() for source in sources.values()}
    licence = licences.pop() if len(licences) == 1 else "other"
    lines = [
        "---",
        f"license: {licence if licence in HUB_LICENCES else 'other'}",
        "tags: [pretraining, tokenized, gristmill]",
        "configs:",
    ]
    for config, pattern in [("default", "*"), *((name, name) for name in sources)]:
        held = list(sources.values()) if pattern == "*" else [sources[pattern]]
        splits = [
            ("train", "meta", any(source.train for source in held)),
            ("validation", "valid/meta", any(s.valid for s in held)),
        ]
        if not any(has for _split, _part, has in splits):
            continue
        lines += [f"- config_name: {json.dumps(config)}"]
        lines += ["  default: true"] if config == "default" else []
        lines += ["  data_files:"]
        for split, part, has in splits:
            if has:
                lines += [f"  - split: {split}", f'    path: "sources/{pattern}/{part}/**/*.parquet"']
    return "\n".join([*lines, "---", ""])


def _counts(shards: list[ShardEntry]) -> tuple[int, int]:
    return sum(shard.token_count for shard in shards), sum(shard.document_count - shard.continues for shard in shards)


def _mixture(mixture: Mixture) -> str:
    total = sum(mixture.weights.values())
    rows = [(name, f"{weight / total:.1%}", f"{mixture.epochs_of(name):g}") for name, weight in mixture.weights.items()]
    return f"### {mixture.name}\n\n{_table(('source', 'share of trained tokens', 'epochs at most'), rows)}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
