"""Users of a small Hub on loopback, each step in a process of its own: the client reads its settings when it is
imported."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest
from tests.support.hub_server import Hub

from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

BYTES = TokenizerInfo(name="bytes", sha256=hashlib.sha256(b"bytes").hexdigest(), vocab_size=257, eos_id=256)
MIXTURE = '[mixture]\nname = "all"\n[mixture.weights]\n"*" = 1\n'
NAME = "org/name"
URI = f"hf://datasets/{NAME}"
SHARDS = "from gristmill.shards.cli import main; main()"
HASTE = "import time; nap = time.sleep; time.sleep = lambda seconds: nap(seconds / 100)\n"  # pauses before new attempts
Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """Runs code with arguments as a user of `hub` would; looks for the token in all that it says."""
    settings = hub.environment(tmp_path / "hf-home") | {"GRISTMILL_CACHE": str(tmp_path / "cache")}

    def run(code: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HASTE + code, *map(str, arguments)]
        done = subprocess.run(command, env=settings | changes, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert hub.token not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    names = sorted(topics)
    small = {"shard_tokens": 12_000, "ramp": (4_000, 8_000)}
    write_source(root, SourceSpec("a", BYTES, valid_fraction=0.2), [documents(names[:12])], **small)
    write_source(root, SourceSpec("b", BYTES), [documents(names[12:18])])
    (root / "all.toml").write_text(MIXTURE)
    write_manifest(root, [root / "all.toml"])
    (root / "all.toml").unlink()
    return root


def documents(names: list[str]) -> pa.Table:
    tokens = pa.array([list(topics[name].encode()) for name in names], pa.list_(pa.uint16()))
    rows = list(range(len(names)))
    return pa.table({"id": names, "tokens": tokens, "file": ["topics.jsonl"] * len(names), "row": rows})


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the locks and what the writer keeps for itself."""
    every = set(folder.rglob("*")) - set(folder.glob("sources/*/manifest.json"))
    paths = (path for path in sorted(every) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def one_line(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """The exit code, and one line of error among what the client says of its own."""
    assert done.returncode == code, done
    (error,) = (line for line in done.stderr.splitlines() if line.startswith(("shards: ", "datapipe: ", "trainer: ")))
    assert re.search(message, error), error
