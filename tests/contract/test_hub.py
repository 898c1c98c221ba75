"""The real Hub client against a small Hub on loopback: publishing, fetching, reading inputs, and being cut off.

The client reads its settings when it is imported, so each step is a process of its own, as for a user.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hub_server import Hub

from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

TOKEN = "hf_TopSecretTokenOfTheTests"
BYTES = TokenizerInfo(name="bytes", sha256=hashlib.sha256(b"bytes").hexdigest(), vocab_size=257, eos_id=256)
MIXTURE = '[mixture]\nname = "all"\n[mixture.weights]\n"*" = 1\n'
NAME = "org/name"
URI = f"hf://datasets/{NAME}"
SHARDS = "from gristmill.shards.cli import main; main()"
DISCOVER = """
import json, sys
from gristmill.base.cli import guarded
from gristmill.datapipe.ingest.inputs import discover
def action():
    for given in sys.argv[1:]:
        print(json.dumps({file.name: file.path.read_text() for file in discover((given,))}))
sys.exit(guarded("datapipe", action))
"""
OPEN = """
import sys
from gristmill.base.cli import guarded
from gristmill.shards.reader import open_dataset
sys.exit(guarded("trainer", lambda: print(open_dataset(sys.argv[1]).verify())))
"""
HASTE = "import time; nap = time.sleep; time.sleep = lambda seconds: nap(seconds / 20)\n"  # pauses before new attempts
Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TOKEN) as server:
        yield server


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """Runs code with arguments as a user of `hub` would; looks for the token in all that it says."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": TOKEN,
        "GRISTMILL_CACHE": str(tmp_path / "cache"),
    }

    def run(code: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HASTE + code, *map(str, arguments)]
        environment = inherited | settings | changes
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    names = sorted(topics)
    write_source(root, SourceSpec("a", BYTES, valid_fraction=0.2), [documents(names[:12])], ramp=(9_000,))
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
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def one_line(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """The exit code, and one line of error among what the client says of its own."""
    assert done.returncode == code, done
    (error,) = (line for line in done.stderr.splitlines() if line.startswith(("shards: ", "datapipe: ", "trainer: ")))
    assert re.search(message, error), error


def whole_or_absent(folder: Path, published: Path) -> None:
    """After a failure: no manifest, and what stands under its own name is as it was published."""
    there = {path: data for path, data in tree(folder).items() if not path.startswith(".arriving/")}
    assert "manifest.json" not in there
    assert there.items() <= tree(published).items()


def test_the_small_hub_is_one_to_its_client(hub: Hub, client: Client) -> None:
    sha = hub.put("org/corpus", {"a.txt": b"a", "data/b.parquet": b"PAR1"})
    asked = """
import sys, huggingface_hub
api = huggingface_hub.HfApi()
files = api.list_repo_tree("org/corpus", repo_type="dataset", recursive=True)
print(api.whoami()["name"], [(file.path, file.size, file.lfs is not None) for file in files])
folder = huggingface_hub.snapshot_download("org/corpus", repo_type="dataset", revision=sys.argv[1])
print(open(folder + "/a.txt").read(), open(folder + "/data/b.parquet").read())
"""
    done = client(asked, sha[:7])
    files = [(".gitattributes", 21, False), ("a.txt", 1, False), ("data/b.parquet", 4, True)]
    assert done.stdout == f"tester {files}\na PAR1\n"


def test_push_and_pull_keep_every_byte_and_the_manifest_is_committed_last(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    done = client(SHARDS, "push", published, URI)
    assert (done.returncode, done.stdout) == (0, URI + "\n")
    _initial, *commits = hub.repositories[NAME].commits
    assert [commit.changed for commit in commits[-1:]] == [("manifest.json",)]
    assert sorted(path for commit in commits for path in commit.changed) == list(tree(published))
    assert len(hub.objects) == len(hub.seen("PUT /store")) > 10
    done = client(SHARDS, "pull", URI, tmp_path / "back")
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'back'}: a, b  content ")
    assert tree(tmp_path / "back") == tree(published)
    assert not any(request.token for request in hub.seen("/store/"))  # the token stays on the Hub's own host
    # Once more in both directions: nothing moves.
    hub.requests.clear()
    assert client(SHARDS, "push", published, URI).returncode == 0
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert not hub.seen("/store/|/commit/|info/lfs")
    assert hub.repositories[NAME].commits[1:] == commits


def test_a_new_version_sends_what_differs_and_the_old_one_can_be_pulled(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    first = hub.put(NAME, tree(published))
    newer = tmp_path / "newer"
    shutil.copytree(published, newer)
    write_source(newer, SourceSpec("c", BYTES), [documents(sorted(topics)[18:20])])
    write_manifest(newer)
    assert client(SHARDS, "push", newer, URI).returncode == 0
    assert len(hub.seen("PUT /store")) == 3  # tokens, ends and metadata of source c
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(newer)
    assert client(SHARDS, "pull", f"{URI}@{first}", tmp_path / "back").returncode == 0
    assert open_dataset(tmp_path / "back").manifest == open_dataset(published).manifest


def test_busy_answers_are_waited_out(hub: Hub, client: Client, published: Path, tmp_path: Path) -> None:
    hub.fail("POST /api/repos/create", status=429)
    hub.fail("POST .*/batch", status=429)
    hub.fail("PUT /store/", status=500, times=2)
    hub.fail("POST .*/commit/", status=500)
    hub.fail("GET /api/datasets/", status=500)
    hub.fail("HEAD .*/manifest.json", status=429)
    hub.fail("GET /store/", status=429, times=2)
    assert client(SHARDS, "push", published, URI).returncode == 0
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert hub.faults_left == 0
    assert tree(tmp_path / "back") == tree(published)


def test_a_commit_whose_answer_is_lost_is_made_again(hub: Hub, client: Client, published: Path) -> None:
    hub.fail("POST .*/commit/", "drop download", times=1)
    assert client(SHARDS, "push", published, URI).returncode == 0
    assert hub.repositories[NAME].commits[-1].changed == ("manifest.json",)
    assert sorted(hub.repositories[NAME].commits[-1].files) == sorted([*tree(published), ".gitattributes"])


def test_an_upload_that_is_dropped_is_sent_again(hub: Hub, client: Client, published: Path, tmp_path: Path) -> None:
    largest = max(published.rglob("*"), key=lambda path: path.stat().st_size)
    hub.fail(f"PUT /store/{hashlib.sha256(largest.read_bytes()).hexdigest()}", "drop upload", times=2)
    assert client(SHARDS, "push", published, URI).returncode == 0
    assert hub.faults_left == 0 and len(hub.seen("PUT /store/")) == len(hub.objects) + 2
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)


def test_a_push_that_is_refused_promises_nothing_and_a_second_one_completes_it(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    victim = "sources/b/tokens/000/00000.u16"
    oid = hashlib.sha256((published / victim).read_bytes()).hexdigest()
    hub.fail(f"PUT /store/{oid}", status=403)
    one_line(client(SHARDS, "push", published, URI), 1, f"{URI}: .*{victim}.*403.*the same command goes on from here")
    assert not any("manifest.json" in commit.files for commit in hub.repositories[NAME].commits)
    one_line(client(SHARDS, "pull", URI, tmp_path / "early"), 3, r"manifest\.json")
    kept = set(hub.objects)
    hub.requests.clear()
    assert client(SHARDS, "push", published, URI).returncode == 0
    assert {request.path.removeprefix("/store/") for request in hub.seen("PUT /store/")}.isdisjoint(kept)
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)


def test_a_download_that_is_cut_goes_on_where_it_was(hub: Hub, client: Client, tmp_path: Path) -> None:
    """With one shard of more than twice the 10 MiB that the client takes at a time."""
    folder = tmp_path / "large"
    tokens = pa.ListArray.from_arrays([0, 11 * 2**20], pa.array(np.arange(11 * 2**20) % 251, pa.uint16()))
    one = pa.table({"id": ["long"], "tokens": tokens, "file": ["x.jsonl"], "row": [0]})
    write_source(folder, SourceSpec("a", BYTES), [one], ramp=())
    write_manifest(folder)
    hub.put(NAME, tree(folder))
    large = max(hub.objects, key=lambda oid: len(hub.objects[oid]))
    hub.fail(f"GET /store/{large}", "drop download")
    hub.fail("GET .*/sources/a/manifest.json", "drop download")
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert [request.start for request in hub.seen(f"GET /store/{large}")] == [0, 10 * 2**20]
    assert hub.faults_left == 0
    assert tree(tmp_path / "back") == tree(folder)


def test_half_a_file_never_passes_as_whole(hub: Hub, client: Client, published: Path, tmp_path: Path) -> None:
    """Answers that look complete but are short, as from a broken proxy, for longer than the client has patience."""
    hub.put(NAME, tree(published))
    victim = "sources/a/tokens/000/00000.u16"
    oid = hashlib.sha256((published / victim).read_bytes()).hexdigest()
    hub.fail(f"GET /store/{oid}", "short download", times=3)
    one_line(client(SHARDS, "pull", URI, tmp_path / "back"), 1, f"{URI}: .*size.*the same command goes on from here")
    whole_or_absent(tmp_path / "back", published)
    assert victim not in tree(tmp_path / "back")
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)


def test_what_was_altered_on_the_hub_is_refused_by_name(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    hub.put(NAME, tree(published))
    victim, manifest = "sources/b/meta/000/00000.parquet", "sources/b/manifest.json"
    data = (published / victim).read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    hub.objects[oid] = flip(data)
    one_line(client(SHARDS, "pull", URI, tmp_path / "back"), 3, f"{URI}: {victim} differs from its manifest")
    whole_or_absent(tmp_path / "back", published)
    hub.objects[oid] = data
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)
    hub.put(NAME, {manifest: flip((published / manifest).read_bytes())})
    one_line(client(SHARDS, "pull", URI, tmp_path / "new"), 3, rf"{manifest}: sha256 .* pull or write it again")
    assert not (tmp_path / "new/manifest.json").exists()
    hub.put(NAME, {manifest: (published / manifest).read_bytes()})
    assert client(SHARDS, "pull", URI, tmp_path / "new").returncode == 0
    assert tree(tmp_path / "new") == tree(published)


def test_a_pull_goes_on_at_a_newer_commit_without_what_came_of_the_older(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    """The client falls back on a file of the older commit where the Hub fails; that may not stand for the newer one."""
    older = tmp_path / "older"
    shutil.copytree(published, older)
    shutil.rmtree(older / "sources/a")
    write_manifest(older)
    hub.put(NAME, tree(older))
    hub.fail("GET .*/sources/b/manifest.json", status=403)
    one_line(client(SHARDS, "pull", URI, tmp_path / "back"), 1, "403")
    hub.put(NAME, tree(published))
    hub.fail("HEAD .*/manifest.json", status=500)
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)


def test_what_is_no_dataset_is_said_in_one_line(hub: Hub, client: Client, published: Path, tmp_path: Path) -> None:
    hub.put("org/corpus", {"data/a.jsonl": b"{}\n"})
    hub.put("org/private", tree(published), private=True)
    target = tmp_path / "x"
    one_line(client(SHARDS, "pull", "hf://datasets/org/none", target), 2, "org/none: no such dataset")
    one_line(client(SHARDS, "pull", "hf://datasets/org/no--name", target), 2, "org/no--name: .*name")
    one_line(client(SHARDS, "pull", "hf://datasets/org/corpus@v9", target), 2, "org/corpus@v9: .*revision")
    one_line(client(SHARDS, "pull", "hf://datasets/org/corpus", target), 3, r"org/corpus: has no manifest\.json")
    private = client(SHARDS, "pull", "hf://datasets/org/private", target, HF_TOKEN="hf_another")
    one_line(private, 2, "org/private: no such dataset, or it is private")
    refused = client(SHARDS, "push", published, URI, HF_TOKEN="hf_another")
    one_line(refused, 1, f"{URI}: .*401.*HF_TOKEN")
    assert NAME not in hub.repositories and "hf_another" not in private.stderr + refused.stderr
    assert client(SHARDS, "pull", "hf://datasets/org/private", target).returncode == 0


CORPUS = {
    "README.md": b"# Corpus\n",
    "top.jsonl": b"top\n",
    "data/a.jsonl": b"a\n",
    "data/b.txt": b"b\n",
    "data/old/c.jsonl": b"c\n",
    "more/data/d.jsonl": b"d\n",
}
PATTERNS = {
    "": ["data/a.jsonl", "data/old/c.jsonl", "more/data/d.jsonl", "top.jsonl"],
    "/": ["data/a.jsonl", "data/old/c.jsonl", "more/data/d.jsonl", "top.jsonl"],
    "/data/a.jsonl": ["data/a.jsonl"],
    "/*.jsonl": ["top.jsonl"],
    "/data/*.jsonl": ["data/a.jsonl"],
    "/data/**/*.jsonl": ["data/a.jsonl", "data/old/c.jsonl"],
    "/**/d*.jsonl": ["more/data/d.jsonl"],
    "/**/data/*": ["data/a.jsonl", "more/data/d.jsonl"],
    "/data": ["data/a.jsonl", "data/old/c.jsonl"],
    "/data/": ["data/a.jsonl", "data/old/c.jsonl"],
    "/[tm]*.jsonl": ["top.jsonl"],
}


def test_inputs_on_the_hub_follow_patterns_and_are_pinned_to_a_commit(hub: Hub, client: Client) -> None:
    address = "hf://datasets/org/corpus"
    old = hub.put("org/corpus", CORPUS)
    done = client(DISCOVER, f"{address}/data/*.jsonl")
    assert json.loads(done.stdout) == {f"{address}@{old}/data/a.jsonl": "a\n"}
    assert {request.path.partition(old)[2] for request in hub.seen("/resolve/")} == {"/data/a.jsonl"}
    new = hub.put("org/corpus", {"data/a.jsonl": b"new\n"})
    done = client(DISCOVER, *(address + pattern for pattern in PATTERNS), f"{address}@{old[:9]}/data/a.jsonl")
    *answers, pinned = [json.loads(line) for line in done.stdout.splitlines()]
    found = {pattern: list(answer) for pattern, answer in zip(PATTERNS, answers, strict=True)}
    assert found == {pattern: [f"{address}@{new}/{file}" for file in files] for pattern, files in PATTERNS.items()}
    assert answers[0][f"{address}@{new}/data/a.jsonl"] == "new\n"
    assert pinned == {f"{address}@{old}/data/a.jsonl": "a\n"}


def test_inputs_on_the_hub_that_fail(hub: Hub, client: Client) -> None:
    hub.put("org/corpus", CORPUS)
    one_line(client(DISCOVER, "hf://datasets/org/none/*.jsonl"), 2, "--input hf://datasets/org/none: no such dataset")
    one_line(client(DISCOVER, "hf://datasets/org/corpus@v9/*.jsonl"), 2, "--input hf://.*@v9: .* no such revision")
    one_line(client(DISCOVER, "hf://datasets/org/corpus/*.txt"), 2, "nothing matches; known kinds: .jsonl")
    hub.fail("GET /api/datasets/", status=429)
    hub.fail("HEAD .*/resolve/", status=500)
    hub.fail("GET .*/resolve/", "drop download")
    assert len(json.loads(client(DISCOVER, "hf://datasets/org/corpus/data/*.jsonl").stdout)) == 1
    assert hub.faults_left == 0


def test_a_dataset_on_the_hub_opens_through_the_cache(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    hub.put(NAME, tree(published))
    assert client(OPEN, URI).returncode == 0
    assert tree(tmp_path / "cache/datasets/org--name") == tree(published)
    hub.requests.clear()
    assert client(OPEN, URI).returncode == 0
    assert not hub.seen("/store/")
    # An address on the Hub asks which commit is the newest, each time; a folder never asks anything.
    nowhere = "http://127.0.0.1:9"
    one_line(client(OPEN, URI, HF_ENDPOINT=nowhere), 1, f"{URI}: .*refused.*goes on from here")
    one_line(client(OPEN, URI, HF_HUB_OFFLINE="1"), 1, f"{URI}: .*offline")
    one_line(client(DISCOVER, f"{URI}/*.jsonl", HF_HUB_OFFLINE="1"), 1, f"{URI}: .*offline")
    assert client(OPEN, tmp_path / "cache/datasets/org--name", HF_ENDPOINT=nowhere).returncode == 0
