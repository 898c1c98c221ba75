"""Datasets that move: a version stands as a whole or not at all, and nothing unsafe is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.published_shards import (
    MIXTURE,
    NAMES,
    bucket,
    documents,
    first,
    flip,
    info,
    made,
    newer,
    published,
    run,
    tokenizer,
    tokens_of,
    tree,
)

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import transfer
from gristmill.shards.reader import open_dataset
from gristmill.shards.remote import places
from gristmill.shards.remote.folder import FolderStore
from gristmill.shards.remote.object_store import ObjectStore
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

__all__ = ["bucket", "made", "newer", "published", "tokenizer"]  # fixtures


def test_push_to_a_folder_and_pull_from_it(published: Path, tmp_path: Path) -> None:
    assert transfer.push(published, f"file://{tmp_path}/there") == f"{tmp_path}/there"
    transfer.pull(f"file://{tmp_path}/there", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "there") == tree(published)
    assert {"mixtures/all.toml", "tokenizer.json", "README.md"} < set(tree(tmp_path / "back"))
    assert open_dataset(tmp_path / "back").verify().files == len(tree(published)) - 2  # the card and manifest.json


def test_push_to_a_bucket_and_pull_from_it(
    published: Path, newer: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transfer.push(published, bucket) == bucket
    transfer.pull(bucket, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(published)
    sent: list[str] = []
    put = ObjectStore.put
    monkeypatch.setattr(ObjectStore, "put", lambda self, path, *more: (sent.append(path), put(self, path, *more)))
    transfer.push(published, bucket)
    assert not sent
    transfer.push(newer, bucket)
    assert sent[-1] == "manifest.json" and not any("sources/a" in path for path in sent)
    assert sorted(ObjectStore(places.UrlAddress(bucket)).sizes()) == sorted(tree(newer))
    transfer.pull(bucket, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(newer)
    with pytest.raises(DataError, match=r"memory://.*nothing: has no manifest\.json, so"):
        transfer.pull(f"{bucket}/nothing", tmp_path / "x")


def test_a_bucket_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"s3://bucket/x: .*`pip install s3fs` .*gristmill-shards\[s3\]"):
        transfer.pull("s3://bucket/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_push_sends_only_what_differs(published: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    transfer.push(published, there)
    inodes = {path: path.stat().st_ino for path in there.rglob("*") if path.is_file()}
    damaged = [first(there, "sources/a/tokens/000/*"), first(there, "sources/b/manifest-*")]
    for path in damaged:
        path.write_bytes(b"damage")
    transfer.push(published, there)
    assert tree(there) == tree(published)
    assert all(path.stat().st_ino == inode for path, inode in inodes.items() if path not in damaged)


def test_a_push_that_is_cut_leaves_the_old_version_and_the_next_completes_it(
    published: Path, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    (there / "sources").mkdir(parents=True)
    (there / "sources/notes.md").write_text("mine")  # nothing of a dataset's: it stays
    transfer.push(published, there)
    old = tokens_of(open_dataset(there))
    victim = first(newer, "sources/b/meta/000/*")
    whole = flip(victim)
    with pytest.raises(DataError, match=f"{victim}: altered"):
        transfer.push(newer, there)
    victim.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{victim}: truncated"):
        transfer.push(newer, there)
    victim.write_bytes(whole)
    put = FolderStore.put

    def cut(self: FolderStore, path: str, local: Path, sha256: str) -> None:
        if path.endswith(".json"):
            raise OSError("cut")
        put(self, path, local, sha256)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="cut"):
        patched.setattr(FolderStore, "put", cut)
        transfer.push(newer, there)
    assert tokens_of(open_dataset(there)) == old and open_dataset(there).verify()
    transfer.push(newer, there)
    assert tree(there) == tree(newer) | {"sources/notes.md": b"mine"}


def test_a_pull_refuses_what_was_altered_and_keeps_what_came(published: Path, tmp_path: Path) -> None:
    victim = first(published, "sources/b/meta/000/*")
    name = victim.relative_to(published).as_posix()
    whole = flip(victim)
    with pytest.raises(DataError, match=f"published: {name} differs from its manifest"):
        transfer.pull(published, tmp_path / "back")
    assert not (tmp_path / "back/manifest.json").exists() and not (tmp_path / "back" / name).exists()
    kept = {path: path.stat().st_ino for path in (tmp_path / "back").glob("sources/a/tokens/000/*")}
    victim.unlink()
    with pytest.raises(DataError, match=f"has no {name}"):
        transfer.pull(published, tmp_path / "back")
    victim.write_bytes(whole)
    transfer.pull(published, tmp_path / "back")
    assert kept and all(path.stat().st_ino == inode for path, inode in kept.items())
    assert tree(tmp_path / "back") == tree(published)


def test_a_pull_over_another_version_leaves_the_old_one_until_the_new_one_stands(
    published: Path, newer: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    transfer.pull(published, back)
    old = tree(back)
    victim = first(newer, "sources/b/tokens/000/*")
    whole = flip(victim)
    with pytest.raises(DataError, match="differs"):
        transfer.pull(newer, back)
    assert open_dataset(back).verify() and old.items() <= tree(back).items()
    victim.write_bytes(whole)
    transfer.pull(newer, back)
    assert tree(back) == tree(newer)


def test_nothing_goes_but_what_the_version_before_listed_and_what_cut_transfers_left(
    published: Path, newer: Path, tmp_path: Path
) -> None:
    own = {
        "sources/own/manifest.json": b"{}",
        "sources/own/tokens/000/00000-01234567.u16": b"12",
        "sources/b/notes.md": b"mine",
        "mixtures/own.toml": b"[mixture]",
        "manifest.txt": b"mine",
        "figures/tokens/a.png": b"mine",
    }
    left = ("sources/b/tokens/000/00000-00000000.u16", "sources/b/valid/meta/000/x.parquet", "sources/b/manifest.json")
    left += ("sources/b/manifest-00000000.json", "sources/b/tokens/000/.00000-00000000.u16.tmp-1-2")
    there = tmp_path / "there"
    for move in (transfer.push, transfer.pull):
        move(published, there)
        for path in (*own, *left):
            (there / path).parent.mkdir(parents=True, exist_ok=True)
            (there / path).write_bytes(own.get(path, b"left"))
        move(newer, there)
        everything = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()} - {".lock"}
        assert everything == {*tree(newer), *own}
        assert all((there / path).read_bytes() == data for path, data in own.items())
        shutil.rmtree(there)


def test_sources_that_the_new_version_lacks_are_not_deleted_unasked(
    published: Path, newer: Path, tmp_path: Path, tokenizer: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(newer, SourceSpec("c", info(tokenizer)), [documents(tokenizer, NAMES[50:55])])
    write_source(newer, SourceSpec("d", info(tokenizer)), [documents(tokenizer, NAMES[55:60])])
    write_manifest(newer)
    for target in (bucket, str(tmp_path / "there")):
        transfer.push(newer, target)
        with pytest.raises(UsageError, match=r"has c, d, which the new version lacks; .* or give --replace"):
            transfer.push(published, target)
        assert transfer.pull(target, tmp_path / "copy").sources.keys() == {*"abcd"}
    there, before = tmp_path / "there", tree(tmp_path / "there")
    assert run("pull", str(published), str(there)) == 2
    assert f"{there}: what stands there has c, d" in capsys.readouterr().err
    assert tree(there) == before and not (there / ".arriving").exists()
    assert run("pull", str(published), str(there), "--replace") == 0
    assert tree(there) == tree(published)
    transfer.push(published, bucket, replace=True)
    assert sorted(ObjectStore(places.UrlAddress(bucket)).sizes()) == sorted(tree(published))
    # What is no manifest of ours is nobody's to overwrite.
    for foreign in ("{}", "not JSON"):
        (there / "manifest.json").write_text(foreign)
        for move in (transfer.push, transfer.pull):
            with pytest.raises(UsageError, match=r"there: its manifest\.json is none that can be read .*--replace"):
                move(published, there)
        assert (there / "manifest.json").read_text() == foreign
    transfer.push(published, there, replace=True)
    assert tree(there) == tree(published)
    for move in (transfer.push, transfer.pull):
        with pytest.raises(UsageError, match="from and to are one folder"):
            move(published, published.parent / "x/../published")


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "mixtures/all.toml"])
def test_a_pull_does_not_overwrite_the_files_of_somebody_else(published: Path, tmp_path: Path, name: str) -> None:
    back = tmp_path / "project"
    (back / name).parent.mkdir(parents=True)
    (back / name).write_text("mine")
    with pytest.raises(UsageError, match=f"project/{name}: belongs to no dataset.*--replace"):
        transfer.pull(published, back)
    assert tree(back) == {name: b"mine"}
    transfer.pull(published, back, replace=True)
    assert tree(back) == tree(published)
    (back / "manifest.json").unlink()
    transfer.pull(published, back)  # equal files are no hindrance
    # Nor is what a pull left that was cut short.
    (back / "manifest.json").unlink()
    (back / name).write_text("of the version before")
    files.write_json(back / ".arriving/origin.json", {"uri": "x"})
    transfer.pull(published, back)
    assert tree(back) == tree(published)


KILLS = """
import json, os, pathlib, shutil, sys
import filelock, fsspec, fsspec.implementations.local
from gristmill.shards import transfer
from gristmill.shards.reader import open_dataset
from gristmill.shards.remote.object_store import ObjectStore

unlink = pathlib.Path.unlink
os.fsync = lambda descriptor: None  # a kill of the process, not of the machine
fsspec.config.conf["local"] = {"auto_mkdir": True}
move, old, new, target = sys.argv[1:]
address = f"local://{target}" if move == "bucket" else target
kinds = {tuple(s.manifest.content_id for s in open_dataset(root).sources.values()): root for root in (old, new)}

def child(action):
    pid = os.fork()
    if not pid:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def transferred(kill_after):
    left = kill_after
    def dying(function):
        def call(*arguments, **options):
            nonlocal left
            answer = function(*arguments, **options)
            left -= target in str(arguments) and (function is not unlink or ".tmp-" not in str(arguments))
            if not left:
                os._exit(9)
            return answer
        return call
    if move == "bucket":
        ObjectStore.__repr__ = lambda self: target
        ObjectStore.put, ObjectStore.remove = dying(ObjectStore.put), dying(ObjectStore.remove)
    else:
        pathlib.Path.replace, pathlib.Path.unlink = dying(pathlib.Path.replace), dying(pathlib.Path.unlink)
    transfer.pull(new, pathlib.Path(target)) if move == "pull" else transfer.push(pathlib.Path(new), address)

def opened():
    os.environ["GRISTMILL_CACHE"] = f"{target}-cache"
    dataset = open_dataset(address)
    for name, source in dataset.sources.items():
        for split in source.splits.values():
            assert sum(len(split.tokens(i)) for i in range(len(split.shards))) == split.token_count
    dataset.verify()
    print(pathlib.Path(kinds[tuple(s.manifest.content_id for s in dataset.sources.values())]).name, flush=True)

for number in range(1, 1000):
    for folder in (target, f"{target}-cache"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(old, target)
    code = child(lambda: transferred(number))
    assert code in (0, 9) and not child(opened), code
    if not code:
        break
    assert not child(lambda: transferred(0)) and not child(opened)
"""


@pytest.mark.parametrize("move", ["push", "bucket", "pull"])
def test_a_kill_between_any_two_files_leaves_the_old_version_or_the_new_one(
    tmp_path: Path, tokenizer: Path, move: str
) -> None:
    """Over a version with other documents in b, a mixture that changes, and one that goes. At every moment readers
    can open it, and what was cut goes on."""
    published, newer = tmp_path / "published", tmp_path / "newer"
    for root, number, mixture in ((published, 5, "gone"), (newer, 7, "all")):
        write_source(root, SourceSpec("a", info(tokenizer)), [documents(tokenizer, NAMES[:3])])
        write_source(root, SourceSpec("b", info(tokenizer)), [documents(tokenizer, NAMES[3:number])])
        (root / "mixtures").mkdir()
        (root / "mixtures/all.toml").write_text(f"# Before {number}\n{MIXTURE}")
        (root / f"mixtures/{mixture}.toml").write_text(f"# Of {number}: all\n{MIXTURE.replace('all', mixture)}")
        write_manifest(root, tokenizer=tokenizer)
    done = subprocess.run(
        [sys.executable, "-c", KILLS, move, published, newer, tmp_path / "target"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *states, last = done.stdout.split()
    cut, completed = states[::2], states[1::2]
    assert last == "newer" and set(completed) == {"newer"}
    assert cut == sorted(cut, reverse=True) and cut[0] == "published" and cut[-1] == "newer"
    assert len(cut) >= 13  # b's shard, its manifest, the mixture, the card, manifest.json twice, and what goes
    assert tree(tmp_path / "target") == tree(newer)


def forge(root: Path, path: str) -> None:
    """Name another path for a shard file in the manifest of source b, and make every hash above it right again."""
    source = first(root, "sources/b/manifest-*")
    value = json.loads(source.read_text())
    value["train"][0]["meta"]["path"] = path
    sign(source, value)
    top = json.loads((root / "manifest.json").read_text())
    top["sources"]["b"]["sha256"] = files.sha256_file(source)
    sign(root / "manifest.json", top)


def sign(path: Path, value: dict) -> None:
    files.write_json(path, value | {"content_id": files.fingerprint({k: value[k] for k in value if k != "content_id"})})


@pytest.mark.parametrize(
    "path", ["../../../../evil", "/tmp/evil", "a\\..\\evil", "C:evil", ".git/hooks/evil", "a//evil"]
)
def test_unsafe_paths_are_refused_before_anything_is_written(published: Path, tmp_path: Path, path: str) -> None:
    forge(published, path)
    for only in (None, lambda dataset: {}):
        with pytest.raises(DataError, match="unsafe path"):
            transfer.pull(published, tmp_path / "deep/down/back", only=only)
    assert {path.split("/")[0] for path in tree(tmp_path / "deep/down/back")} == {".arriving"}
    assert not list(tmp_path.rglob("evil*"))
    with pytest.raises(DataError, match="unsafe path"):
        open_dataset(published)
    with pytest.raises(DataError, match="unsafe path"):
        transfer.push(published, tmp_path / "there")


@pytest.mark.parametrize("name", ["origin.json", "manifest.json", "../x.toml", "README.md"])
def test_a_manifest_cannot_list_what_is_not_its_own(published: Path, tmp_path: Path, name: str) -> None:
    top = json.loads((published / "manifest.json").read_text())
    top["mixtures"][0]["path"] = name
    sign(published / "manifest.json", top)
    with pytest.raises(DataError, match="unsafe path"):
        transfer.pull(published, tmp_path / "back")
    assert set(tree(tmp_path / "back")) == {f".arriving/{FolderStore(published).version}/manifest.json"}


def test_a_link_that_leads_out_is_not_followed(published: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "back/sources").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="leads out of"):
        transfer.pull(published, tmp_path / "back")
    assert not list((tmp_path / "outside").iterdir())
    victim = first(published, "sources/a/tokens/000/*")
    shutil.move(victim, tmp_path / "outside/x")
    victim.symlink_to(tmp_path / "outside/x")
    with pytest.raises(DataError, match="leads out of"):
        open_dataset(published)
