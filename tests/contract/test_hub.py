"""The real Hub client against a small Hub on loopback: what is published arrives, whole, whatever is cut
off or altered."""

import hashlib
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hub_clients import (
    BYTES,
    NAME,
    SHARDS,
    URI,
    Client,
    client,
    documents,
    one_line,
    published,
    tree,
)
from tests.support.hub_server import Hub, hub

from gristmill.shards.writer import SourceSpec, write_manifest, write_source

__all__ = ["client", "hub", "published"]  # fixtures
# Many commits of few files.
SMALL = "from gristmill.shards.remote import hub; hub.COMMIT_FILES, hub.COMMIT_OPERATIONS = 4, 6\n"


@pytest.fixture
def newer(published: Path, tmp_path: Path) -> Path:
    """Another version: a as before, b with other documents, c besides, no mixture."""
    root = Path(shutil.copytree(published, tmp_path / "newer"))
    write_source(root, SourceSpec("b", BYTES), [documents(sorted(topics)[14:17])])
    write_source(root, SourceSpec("c", BYTES), [documents(sorted(topics)[18:20])])
    (root / "mixtures/all.toml").unlink()
    write_manifest(root)
    return root


def first(folder: Path, pattern: str) -> str:
    return sorted(folder.glob(pattern))[0].relative_to(folder).as_posix()


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


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
