"""The dataset card: YAML that lets the Hub's viewer show the documents' metadata, then what is inside, as tables.

Names, licences and recipes come from elsewhere: they stand in code spans and ASCII JSON, where no markup is read.
"""

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
ALL_SOURCES = ("default", "all", "all-sources")  # the config of all sources: the first name that no source has
LONGEST = 120  # characters of a name or licence that are shown


def card(sources: dict[str, SourceManifest], mixtures: list[Mixture], alike: bool = True) -> str:
    """README.md of a dataset. The same manifests and mixtures give the same text.

    `alike`: all sources have the same metadata columns, so that one config can show them all.
    """
    tokenizer = next(iter(sources.values())).tokenizer
    parts = [
        _front_matter(sources, alike),
        "# Training shards\n",
        f"Tokenised with {_code(tokenizer.name)} ({tokenizer.vocab_size:,} ids, sha256 `{tokenizer.sha256[:12]}`). "
        "Tokens are headerless little-endian files that anything can memory-map; documents are in hash order, so any "
        "first shards are a uniform sample. `manifest.json` pins every file by sha256.\n",
        "```\nshards pull hf://datasets/ORG/NAME FOLDER\nshards verify FOLDER\n```\n",
        "## Sources\n",
        _table(
            ("source", "train tokens", "train documents", "valid tokens", "valid documents", "loss mask", "licence"),
            [
                (
                    name,
                    *(f"{count:,}" for shards in (source.train, source.valid) for count in _counts(shards)),
                    "yes" if _is_masked(source) else "no",
                    _code(source.licence),
                )
                for name, source in sources.items()
            ],
        ),
    ]
    if masked := [name for name, source in sources.items() if _is_masked(source)]:
        parts.append(
            f"Loss masks: {', '.join(f'`{name}`' for name in masked)} hold a byte per token in `loss/`, 1 where it is "
            "learnt from; of the other sources every token is.\n"
        )
    if mixtures:
        parts += ["## Mixtures\n", *(_mixture(mixture) for mixture in mixtures)]
    parts.append("## Recipes\n")
    for name, source in sources.items():
        parts.append(f"### {name}\n")
        parts.append("```json\n" + json.dumps(source.recipe, indent=2, sort_keys=True) + "\n```\n")
        parts.append(f"Inputs: {len(source.inputs)}; all are listed in the manifest in `sources/{name}/`.\n")
    return "\n".join(parts)


def _front_matter(sources: dict[str, SourceManifest], alike: bool) -> str:
    licences = {source.licence.lower() for source in sources.values()}
    licence = licences.pop() if len(licences) == 1 else "other"
    lines = [
        "---",
        f"license: {licence if licence in HUB_LICENCES else 'other'}",
        "tags: [pretraining, tokenized, gristmill]",
    ]
    configs = {name: ([source], name) for name, source in sources.items()}
    if alike:
        whole = next(name for name in ALL_SOURCES if name not in sources)
        configs = {whole: (list(sources.values()), "*"), **configs}
    sections: list[str] = []
    for config, (held, folder) in configs.items():
        splits = [
            (split, f"sources/{folder}/{part}/**/*.parquet")
            for split, part, has in (
                ("train", "meta", any(source.train for source in held)),
                ("validation", "valid/meta", any(source.valid for source in held)),
            )
            if has
        ]
        if splits:
            first = "default" not in configs and not sections  # the name alone makes a config the default one
            sections += [f"- config_name: {json.dumps(config)}", *(["  default: true"] if first else [])]
            sections += ["  data_files:"]
            sections += [line for split, path in splits for line in (f"  - split: {split}", f'    path: "{path}"')]
    return "\n".join([*lines, *(["configs:"] if sections else []), *sections, "---", ""])


def _counts(shards: list[ShardEntry]) -> tuple[int, int]:
    return sum(shard.token_count for shard in shards), sum(shard.document_count - shard.continues for shard in shards)


def _is_masked(source: SourceManifest) -> bool:
    return any(shard.loss is not None for shard in (*source.train, *source.valid))


def _mixture(mixture: Mixture) -> str:
    shares = _shares(mixture.weights)
    rows = [(_code(name), share, f"{mixture.epochs_of(name):g}") for name, share in shares.items()]
    text = f"### {_code(mixture.name)}\n\n{_table(('source', 'share of trained tokens', 'epochs at most'), rows)}"
    if not mixture.phase:
        return text
    phases = [
        (
            _code(phase.name),
            f"{phase.from_share:.1%} of the run" if phase.from_share else f"{phase.from_tokens:,} tokens",
            ", ".join(f"{_code(name)} {share}" for name, share in _shares(phase.weights).items()) or "as before",
            f"{phase.sequence_length:,}" if phase.sequence_length else "as the run's",
        )
        for phase in mixture.phase
    ]
    return f"{text}\n{_table(('phase', 'from', 'shares', 'sequence length'), phases)}"


def _shares(weights: dict[str, int]) -> dict[str, str]:
    total = sum(weights.values())
    return {name: f"{weight / total:.1%}" for name, weight in weights.items()}


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _code(text: str) -> str:
    """The text as a code span that holds in a table: one line, no backtick, no bar, nothing invisible."""
    line = "".join(char if char.isprintable() else " " for char in text).replace("`", "'").replace("|", "/")
    line = " ".join(line.split())
    return f"`{line if len(line) <= LONGEST else line[: LONGEST - 1] + '…'}`" if line else "`-`"
