"""The real Hub client against a small Hub on loopback: publishing, fetching, reading inputs, and being cut off.

The client reads its settings when it is imported, so each step is a process of its own, as for a user.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
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
def action():
    split = open_dataset(sys.argv[1]).sources["a"].split("train")
    print(*(len(split.tokens(int(i))) for i in sys.argv[2:]))
sys.exit(guarded("trainer", action))
"""
# Many commits of few files.
SMALL = "from gristmill.shards.remote import hub; hub.COMMIT_FILES, hub.COMMIT_OPERATIONS = 4, 6\n"
NOWHERE = "http://127.0.0.1:9"
HASTE = "import time; nap = time.sleep; time.sleep = lambda seconds: nap(seconds / 100)\n"  # pauses before new attempts
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


@pytest.fixture
def newer(published: Path, tmp_path: Path) -> Path:
    """Another version: a as before, b with other documents, c besides, no mixture."""
    root = Path(shutil.copytree(published, tmp_path / "newer"))
    write_source(root, SourceSpec("b", BYTES), [documents(sorted(topics)[14:17])])
    write_source(root, SourceSpec("c", BYTES), [documents(sorted(topics)[18:20])])
    (root / "mixtures/all.toml").unlink()
    write_manifest(root)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the locks and what the writer keeps for itself."""
    every = set(folder.rglob("*")) - set(folder.glob("sources/*/manifest.json"))
    paths = (path for path in sorted(every) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def first(folder: Path, pattern: str) -> str:
    return sorted(folder.glob(pattern))[0].relative_to(folder).as_posix()


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
    mutable = {"manifest.json", "README.md", "mixtures/all.toml"}
    assert [set(commit.changed) & mutable for commit in commits] == [set(), mutable]
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
    # The mission's way to say it.
    assert client(SHARDS, "push", published, "--repo", "org/other", "--private").stdout == "hf://datasets/org/other\n"
    assert hub.repositories["org/other"].private


def test_a_new_version_sends_what_differs_and_the_old_one_can_be_pulled(
    hub: Hub, client: Client, published: Path, newer: Path, tmp_path: Path
) -> None:
    strange = {
        "figures/a.png": b"\0png",
        "sources/notes.md": b"mine",
        "mixtures/mine.toml": b"",
        "sources/x/tokens/0": b"",
    }
    old = hub.put(NAME, tree(published) | strange)
    back = tmp_path / "back"
    assert client(SHARDS, "push", newer, URI).returncode == 0
    assert len(hub.seen("PUT /store")) == 6  # tokens, ends and metadata of sources b and c
    added, published_commit = hub.repositories[NAME].commits[-2:]
    assert (len(added.changed), added.deleted) == (8, ())  # these and their manifests
    gone = {path for path in tree(published) if path not in tree(newer)}
    assert set(published_commit.deleted) == gone and len(gone) == 5  # b's three, its manifest, and the mixture
    assert set(published_commit.files) == {*tree(newer), *strange, ".gitattributes"}
    assert client(SHARDS, "pull", URI, back).returncode == 0
    assert tree(back) == tree(newer)
    # The way back would end source c.
    mend = "has c, which the new version lacks; .* or give --replace"
    one_line(client(SHARDS, "pull", f"{URI}@{old}", back), 2, f"{back}: .*{mend}")
    one_line(client(SHARDS, "push", published, URI), 2, f"{URI}: .*{mend}")
    assert tree(back) == tree(newer) and hub.repositories[NAME].commits[-1] == published_commit
    assert client(SHARDS, "pull", f"{URI}@{old}", back, "--replace").returncode == 0
    assert tree(back) == tree(published)
    assert client(SHARDS, "push", published, URI, "--replace").returncode == 0
    assert set(hub.repositories[NAME].commits[-1].files) == {*tree(published), *strange, ".gitattributes"}


def test_a_reader_sees_the_old_version_or_the_new_one_at_every_commit(
    hub: Hub, client: Client, published: Path, newer: Path, tmp_path: Path
) -> None:
    hub.put(NAME, tree(published))
    readers: list[int] = []
    for number in range(4):  # between the commits of the push, by the repository's name
        back = tmp_path / str(number)
        pull = lambda back=back: readers.append(client(SHARDS, "pull", URI, back).returncode)  # noqa: E731
        hub.meanwhile("POST .*/commit/", pull, after=number)
    before = len(hub.repositories[NAME].commits)
    assert client(SMALL + SHARDS, "push", newer, URI).returncode == 0
    commits = hub.repositories[NAME].commits[before:]
    assert [(len(commit.changed) > 0, len(commit.deleted)) for commit in commits] == [(True, 0)] * 3 + [(False, 5)]
    old, new = tree(published), tree(newer)
    for commit in commits:
        assert client(SHARDS, "pull", f"{URI}@{commit.sha}", tmp_path / "at").returncode == 0
        assert tree(tmp_path / "at") == (new if commit in commits[2:] else old)
    assert readers == [0] * 4
    assert [tree(tmp_path / str(number)) == (new if number == 3 else old) for number in range(4)] == [True] * 4


def test_who_else_commits_meanwhile_is_not_overrun(hub: Hub, client: Client, published: Path, newer: Path) -> None:
    """Another publisher's last commit, which removes our new shards as strangers, just before our own last commit."""
    hub.put(NAME, tree(published))
    ours = tuple(path for path in tree(newer) if path not in tree(published))
    hub.fail("POST .*/commit/", status=409)  # as where another commit is just being made
    hub.meanwhile("POST .*/commit/", lambda: hub.commit(NAME, "another", {}, ours), after=2)
    assert client(SHARDS, "push", newer, URI).returncode == 0
    *_, first, other, second, last = hub.repositories[NAME].commits
    assert set(first.changed) == set(second.changed) == set(ours) == set(other.deleted)
    assert set(last.files) == {*tree(newer), ".gitattributes"}


def test_last_commits_whose_answers_are_lost(hub: Hub, client: Client, published: Path, newer: Path) -> None:
    hub.put(NAME, tree(published))
    hub.meanwhile("POST .*/commit/", lambda: hub.fail("POST .*/commit/", "drop download"), after=1)
    assert client(SHARDS, "push", newer, URI).returncode == 0
    assert hub.faults_left == 0
    _published, added, last = hub.repositories[NAME].commits[-3:]
    assert added.changed and last.deleted and set(last.files) == {*tree(newer), ".gitattributes"}


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
    victim = first(published, "sources/b/tokens/000/*")
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
    hub.fail("GET .*/sources/a/manifest-", "drop download")
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert [request.start for request in hub.seen(f"GET /store/{large}")] == [0, 10 * 2**20]
    assert hub.faults_left == 0
    assert tree(tmp_path / "back") == tree(folder)


def test_half_a_file_never_passes_as_whole(hub: Hub, client: Client, published: Path, tmp_path: Path) -> None:
    """Answers that look complete but are short, as from a broken proxy, for longer than the client has patience."""
    hub.put(NAME, tree(published))
    victim = first(published, "sources/a/tokens/000/*")
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
    victim, manifest = first(published, "sources/b/meta/000/*"), first(published, "sources/b/manifest-*")
    data = (published / victim).read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    hub.objects[oid] = flip(data)
    one_line(client(SHARDS, "pull", URI, tmp_path / "back"), 3, f"{URI}@[0-9a-f]+: {victim} differs from its manifest")
    whole_or_absent(tmp_path / "back", published)
    hub.objects[oid] = data
    assert client(SHARDS, "pull", URI, tmp_path / "back").returncode == 0
    assert tree(tmp_path / "back") == tree(published)
    hub.put(NAME, {manifest: flip((published / manifest).read_bytes())})
    one_line(client(SHARDS, "pull", URI, tmp_path / "new"), 3, rf"{manifest} differs from its manifest; pull again")
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
    hub.fail("GET .*/sources/b/manifest-", status=403)
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
    one_line(
        client(SHARDS, "pull", "hf://datasets/org/corpus", target), 3, r"org/corpus@[0-9a-f]+: has no manifest\.json"
    )
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
    """Manifests at once, a shard when it is first read, and nothing twice."""
    sha = hub.put(NAME, tree(published))
    shards = open_dataset(published).sources["a"].split("train").shards
    done = client(OPEN, URI, 0)
    assert done.stdout == f"{shards[0].token_count}\n" and "fetching sources/a/tokens/000/00000-" in done.stderr
    cached = tmp_path / f"cache/datasets/org--name/versions/{sha}"
    here = tree(cached)
    assert json.loads(here.pop("origin.json")) == {"uri": f"{URI}@{sha}"}
    assert here.items() < tree(published).items() and len(hub.seen("GET /store/")) == 1
    hub.requests.clear()
    assert client(OPEN, URI, 0).returncode == 0
    assert [str(request) for request in hub.seen("/datasets/")] == [f"GET /api/datasets/{NAME}"]
    # A full commit never changes: with its manifests here, nothing is asked. So it is with a folder.
    hub.requests.clear()
    for known in (f"{URI}@{sha}", cached):
        assert client(OPEN, known, 0, HF_ENDPOINT=NOWHERE).stdout == done.stdout
    assert client(OPEN, f"{URI}@{sha}", 0, 1).stdout == f"{shards[0].token_count} {shards[1].token_count}\n"
    assert not hub.seen("/api/datasets/") and len(hub.seen("GET /store/")) == 1
    # A new version has its own folder, and links what has not changed.
    new = hub.put(NAME, {"README.md": b"# Another card\n"})
    hub.requests.clear()
    assert client(OPEN, URI, 0).returncode == 0
    assert not hub.seen("/store/")
    again = cached.parent / new / "sources/a" / shards[0].tokens.path
    assert again.samefile(cached / "sources/a" / shards[0].tokens.path)


def test_without_a_network_what_is_in_the_cache_is_used_and_the_rest_is_a_clear_error(
    hub: Hub, client: Client, published: Path
) -> None:
    sha = hub.put(NAME, tree(published))
    for offline in ({"HF_ENDPOINT": NOWHERE}, {"HF_HUB_OFFLINE": "1"}):
        cause = "offline" if "HF_HUB_OFFLINE" in offline else "refused"
        one_line(client(OPEN, URI, 0, **offline), 1, f"{URI}: .*{cause}")
        one_line(client(OPEN, f"{URI}@{sha}", 0, **offline), 1, f"{URI}@{sha}: .*{cause}")
    known = client(OPEN, URI, 0)
    for offline in ({"HF_ENDPOINT": NOWHERE}, {"HF_HUB_OFFLINE": "1"}):
        cause = "offline" if "HF_HUB_OFFLINE" in offline else "refused"
        done = client(OPEN, URI, 0, **offline)
        assert (done.returncode, done.stdout) == (0, known.stdout)
        (warning,) = done.stderr.splitlines()
        assert re.match(f"{URI}: using version {sha[:12]} of the cache: .*{cause}", warning)
        missing = f"sources/a/tokens/000/00001-.*u16: not fetched yet, and now {URI}@{sha}: .*{cause}"
        one_line(client(OPEN, URI, 0, 1, **offline), 1, missing)
        one_line(client(OPEN, f"{URI}@v1", 0, **offline), 1, f"{URI}@v1: .*{cause}")
        one_line(client(DISCOVER, f"{URI}/*.jsonl", **offline), 1, f"{URI}: .*{cause}")
    # So it is with a Hub that stays busy; but a refusal is no reason to go on with what is old.
    hub.fail("GET /api/datasets/", status=403)
    one_line(client(OPEN, URI, 0), 1, "403")
    hub.fail("GET /api/datasets/", status=503, times=99)
    assert "of the cache" in client(OPEN, URI, 0).stderr


def test_a_partial_pull_needs_no_network_for_what_it_brought(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    sha = hub.put(NAME, tree(published))
    back = tmp_path / "back"
    budget = ("--mixture", "all", "--tokens", "2K", "--sequence-length", "128")
    done = client(SHARDS, "pull", URI, back, *budget)
    assert done.returncode == 0, done
    assert json.loads((back / "origin.json").read_text()) == {"uri": f"{URI}@{sha}"}
    a = open_dataset(published).sources["a"]
    here = {path for path in tree(back) if path.startswith("sources/a/") and not path.endswith(".json")}
    assert here == {f"sources/a/{file.path}" for file in (*a.manifest.train[0].files[:2], *a.manifest.valid[0].files)}
    gets = len(hub.seen("GET /store/"))
    hub.requests.clear()
    done = client(OPEN, back, 0)
    assert done.returncode == 0 and not done.stderr and not hub.requests
    one_line(client(OPEN, back, 0, 2, HF_ENDPOINT=NOWHERE), 1, "00002-.*not fetched yet, and now .*refused")
    assert client(OPEN, back, 0, 2).returncode == 0
    assert len(hub.seen("GET /store/")) == 1 and not hub.seen("/api/datasets/")
    assert client(SHARDS, "pull", URI, back).returncode == 0
    assert tree(back) == tree(published)
    assert gets + len(hub.seen("GET /store/")) == len(hub.objects)


def test_two_processes_that_pull_into_one_folder_download_each_file_once(
    hub: Hub, client: Client, published: Path, tmp_path: Path
) -> None:
    hub.put(NAME, tree(published))
    hub.meanwhile("GET /store/", lambda: time.sleep(3))  # longer than anyone waits without a word
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(client, SHARDS, "pull", URI, tmp_path / "back") for _ in range(2)]
        done = [pull.result() for pull in pulls]
    assert [one.returncode for one in done] == [0, 0]
    assert sum("another process is at it" in one.stderr for one in done) == 1
    assert tree(tmp_path / "back") == tree(published)
    assert len(hub.seen("GET /store/")) == len(hub.objects)
    # So it is where two ranks ask the cache for one shard.
    hub.requests.clear()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: client(OPEN, URI, 0, 1), range(2)))
    assert [one.returncode for one in done] == [0, 0] and done[0].stdout == done[1].stdout
    assert len(hub.seen("GET /store/")) == 2
