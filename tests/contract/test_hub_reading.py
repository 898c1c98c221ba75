"""The real Hub client against a small Hub on loopback: inputs of a pipeline, and datasets through the cache."""

import concurrent.futures
import json
import re
import time
from pathlib import Path

from tests.support.hub_clients import NAME, SHARDS, URI, Client, client, one_line, published, tree
from tests.support.hub_server import Hub, hub

from gristmill.shards.reader import open_dataset

__all__ = ["client", "hub", "published"]  # fixtures
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
NOWHERE = "http://127.0.0.1:9"


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
