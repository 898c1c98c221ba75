"""The card: `datasets`, as the Hub's viewer, finds the metadata by it, and nothing that others wrote is markup."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import yaml

from gristmill.shards.card import card
from gristmill.shards.manifest import SourceManifest, TokenizerInfo, read_source_manifest
from gristmill.shards.mixture import Mixture, MixturePhase
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

TOKENIZER = TokenizerInfo(name="ids", sha256=hashlib.sha256(b"ids").hexdigest(), vocab_size=100, eos_id=0)
SIZES = {"shard_tokens": 60, "ramp": (20,)}


def write(root: Path, name: str, count: int, licence: str = "MIT", **columns: str) -> SourceManifest:
    rows = {"id": [f"{name}-{i}" for i in range(count)], "tokens": [[1 + i % 9] * (i % 13) for i in range(count)]}
    rows |= {"file": ["f.jsonl"] * count, "row": list(range(count)), **{column: [1] * count for column in columns}}
    spec = SourceSpec(name, TOKENIZER, "s", 0.2, licence=licence, columns=columns)  # pyright: ignore[reportArgumentType]
    return write_source(root, spec, [pa.table(rows)], **SIZES)


def load(root: Path, cache: Path, *configs: str) -> dict[str, dict[str, list[str]]]:
    """config -> split -> ids, as `datasets` reads the folder by its card; no config is the default one."""
    code = """
import json, sys, datasets
root, *configs = sys.argv[1:]
found = {"": datasets.get_dataset_config_names(root)}
for config in configs:
    loaded = datasets.load_dataset(root, config or None)
    found[config or "default"] = {split: rows["id"] for split, rows in loaded.items()}
print(json.dumps(found, default=list))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), *configs],
        capture_output=True, text=True, check=False, env={**os.environ, **offline},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def front_matter(root: Path) -> dict:
    return yaml.safe_load((root / "README.md").read_text().split("---\n")[1])


def test_datasets_finds_the_metadata_of_all_sources_and_of_each(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    sizes = {"a": 60, "b-2.x": 40}
    for name, count in sizes.items():
        write(root, name, count)
    write_manifest(root)
    found = load(root, tmp_path / "cache", "", *sizes)
    assert found[""] == ["default", "a", "b-2.x"]
    for name, count in sizes.items():
        assert sorted(i for ids in found[name].values() for i in ids) == sorted(f"{name}-{i}" for i in range(count))
    for split in ("train", "validation"):
        assert sorted(found["default"][split]) == sorted(found["a"][split] + found["b-2.x"][split])
        assert found["default"][split]
    assert front_matter(root)["license"] == "mit"


def test_sources_of_different_columns_have_no_config_together(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    write(root, "a", 30, bytes="int64")
    write(root, "default", 30, licence="Apache-2.0")
    write_manifest(root)
    found = load(root, tmp_path / "cache", "", "default")
    assert found[""] == ["a", "default"]
    assert [len(ids) for ids in found["default"].values()] != [0, 0]
    assert front_matter(root)["license"] == "other"
    write(root, "a", 30)
    write_manifest(root)
    assert [config["config_name"] for config in front_matter(root)["configs"]] == ["all", "a", "default"]


def test_nothing_that_others_wrote_is_markup(tmp_path: Path) -> None:
    hostile = "x`|\n## Pwned\n<script>alert(1)</script> ![i](http://tracker) \u202e" + "y" * 300
    recipe = {"```\n# Pwned": [hostile, "\n```\n", "~~~"], "policy": {"<b>": 1}}
    tokenizer = TOKENIZER.model_copy(update={"name": hostile})
    spec = SourceSpec("a", tokenizer, licence=hostile, recipe=recipe)
    write_source(tmp_path, spec, [pa.table({"id": ["a"], "tokens": [[1]], "file": ["f"], "row": [0]})])
    source = read_source_manifest(tmp_path / "sources/a/manifest.json")
    text = card({"a": source}, [Mixture(hostile, {hostile: 1, "*": 2}, phase=(MixturePhase(hostile, 5),))])
    lines = text.splitlines()
    assert not [line for line in lines if "Pwned" in line and line.startswith("#") and not line.startswith("### `")]
    code = json.loads(text.partition("```json\n")[2].partition("\n```\n")[0])
    assert code == recipe  # all of the recipe is inside its fence
    outside = text.partition("```json\n")[0]
    for line in outside.splitlines():
        spans = line.split("`")
        assert len(spans) % 2 == 1 or line.startswith("```")
        for plain in spans[::2]:
            assert "script" not in plain and "tracker" not in plain and "Pwned" not in plain
    assert "\u202e" not in text
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert set(tables) == {8, 4, 5}


def test_it_tells_of_mixtures_phases_and_masks(tmp_path: Path) -> None:
    rows = {"id": ["a"], "tokens": [[1, 2]], "loss": [[0, 1]], "file": ["f"], "row": [0]}
    chat = write_source(tmp_path, SourceSpec("chat", TOKENIZER, licence="CC-BY-4.0"), [pa.table(rows)])
    web = write(tmp_path, "web", 20)
    phases = (
        MixturePhase("late", from_share=0.9, weights={"chat": 1, "web": 1}),
        MixturePhase("long", 7_000_000, sequence_length=32768),
    )
    mixture = Mixture("main", {"chat": 1, "web": 3}, {"default": 4, "chat": 2}, phase=phases)
    text = card({"chat": chat, "web": web}, [mixture])
    assert "| chat | 3 | 1 | 0 | 0 | yes | `CC-BY-4.0` |" in text
    assert "Loss masks: `chat` hold a byte per token" in text
    assert "| `chat` | 25.0% | 2 |\n| `web` | 75.0% | 4 |" in text
    assert "| `late` | 90.0% of the run | `chat` 50.0%, `web` 50.0% | as the run's |" in text
    assert "| `long` | 7,000,000 tokens | as before | 32,768 |" in text
