"""A small dataset with documents, its next version, and places to publish it to."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import fsspec
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gristmill.base import cli as base_cli
from gristmill.base import files
from gristmill.shards import cli
from gristmill.shards.importers.command import import_
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import Dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

MIXTURE = '[mixture]\nname = "all"\n[mixture.weights]\n"*" = 1\n'
NAMES = sorted(topics)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate([*alphabet, "<|endoftext|>"])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    made.save(str(path))
    return path


def info(tokenizer: Path) -> TokenizerInfo:
    return TokenizerInfo(name="bytes", sha256=files.sha256_file(tokenizer), vocab_size=257, eos_id=256)


def documents(tokenizer: Path, names: list[str], **columns: pa.Array) -> pa.Table:
    encode = Tokenizer.from_file(str(tokenizer)).encode
    fixed = {
        "id": names,
        "tokens": pa.array([encode(topics.get(name, name)).ids for name in names], pa.list_(pa.uint16())),
        "file": ["topics.jsonl"] * len(names),
        "row": list(range(len(names))),
        "score": pa.array([len(name) / 10 for name in names], pa.float32()),
    }
    return pa.table(fixed | columns)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    root = tmp_path_factory.mktemp("made")
    spec = SourceSpec("a", info(tokenizer), valid_fraction=0.1)
    small = {"shard_tokens": 9_000, "ramp": ()}
    write_source(root / "published", spec, [documents(tokenizer, NAMES[:20])], **small)
    write_source(root / "published", SourceSpec("b", info(tokenizer)), [documents(tokenizer, NAMES[20:40])], **small)
    (root / "all.toml").write_text(MIXTURE)
    write_manifest(root / "published", [root / "all.toml"], tokenizer)
    return root / "published"


@pytest.fixture
def published(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "published"))


@pytest.fixture
def newer(made: Path, tmp_path: Path, tokenizer: Path) -> Path:
    """Another version: source a as before, b with other documents, a mixture less."""
    root = Path(shutil.copytree(made, tmp_path / "newer"))
    write_source(root, SourceSpec("b", info(tokenizer)), [documents(tokenizer, NAMES[30:45])], shard_tokens=9_000)
    (root / "mixtures/all.toml").unlink()
    write_manifest(root)
    return root


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    yield f"memory://{tmp_path.name}/data"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the lock and what the writer keeps for itself."""
    every = set(folder.rglob("*")) - set(folder.glob("sources/*/manifest.json"))
    paths = (path for path in sorted(every) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def flip(path: Path) -> bytes:
    """Alter the file; what it was before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    return whole


def run(*arguments: str) -> int:
    functions = (cli.inspect, cli.verify, cli.plan, cli.push, cli.pull, cli.explain, import_)
    commands = {f.__name__.rstrip("_"): base_cli.typed(f, f"shards {f.__name__}") for f in functions}
    return base_cli.run("shards", commands, "about", list(arguments))


def tokens_of(dataset: Dataset) -> list[bytes]:
    splits = [split for source in dataset.sources.values() for split in source.splits.values()]
    return [split.tokens(i).tobytes() for split in splits for i in range(len(split.shards))]
