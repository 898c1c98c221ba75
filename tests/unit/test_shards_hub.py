"""Moving datasets and looking into them: a version stands as a whole or not, checks on arrival, partial datasets that
fetch what is missing, exit codes, and a token led back home."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gristmill.base import cli as base_cli
from gristmill.base import files
from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards import cli, transfer
from gristmill.shards.importers.command import import_
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.mixture import load_mixture
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.remote import places
from gristmill.shards.remote.folder import FolderStore
from gristmill.shards.remote.object_store import ObjectStore
from gristmill.shards.resolve import plan
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


def part(dataset: Dataset) -> dict[str, list[int]]:
    assert len(dataset.sources["a"].split("train").shards) > 2 and dataset.manifest.tokenizer_file
    return {"a": [0, 2], "b": [1]}


def test_a_partial_pull_brings_what_training_reads_and_the_rest_on_demand(published: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    transfer.pull(published, back, only=part)
    whole, dataset = open_dataset(published), open_dataset(back)
    a, b = (whole.sources[name].split("train").shards for name in "ab")
    (valid,) = whole.sources["a"].split("valid").shards[:1]
    expected = [f"sources/a/{e.path}" for s in (a[0], a[2]) for e in (s.tokens, s.ends)]
    expected += [f"sources/b/{e.path}" for e in (b[1].tokens, b[1].ends)] + [f"sources/a/{e.path}" for e in valid.files]
    skeleton = {path for path in tree(published) if path.endswith((".json", ".toml", ".md"))}
    assert set(tree(back)) == {*expected, *skeleton, "origin.json"}
    assert json.loads((back / "origin.json").read_text()) == {"uri": published.as_uri()}
    # Nothing is fetched for what is there, not even looked for.
    away = published.rename(tmp_path / "away")
    dataset.require({"a": [0, 2], "b": [1]})
    split = dataset.sources["a"].split("train")
    assert [len(split.tokens(i)) for i in (0, 2)] == [a[0].token_count, a[2].token_count]
    absent = sum(entry.bytes for entry in dataset.skeleton.shard_files()) - sum(
        (back / path).stat().st_size for path in expected
    )
    assert dataset.verify()[2:] == (len(tree(away)) + 1 - len(tree(back)), absent)
    with pytest.raises(GristmillError, match=r"manifest\.json: no such file|has no sources/a"):
        split.tokens(1)
    away.rename(published)
    assert np.array_equal(split.tokens(1), whole.sources["a"].split("train").tokens(1))
    assert not (back / "sources/a" / a[1].meta.path).exists()
    assert split.meta(1).equals(whole.sources["a"].split("train").meta(1))
    assert tokens_of(dataset) == tokens_of(whole)
    # From what is partial not everything can be had.
    with pytest.raises(
        DataError, match=rf"back: has no .* partial dataset; pull from {published.as_uri()}, or complete"
    ):
        transfer.pull(back, tmp_path / "further")
    # What is cut short is fetched again; a pull of everything makes it a dataset of its own.
    victim = back / "sources/b" / b[1].tokens.path
    victim.write_bytes(victim.read_bytes()[:-2])
    open_dataset(back).require({"b": [1]})
    assert victim.stat().st_size == b[1].tokens.bytes
    assert "origin.json" in tree(back)
    transfer.pull(published, back)
    assert tree(back) == tree(published)
    transfer.pull(published, back, only=part)
    assert tree(back) == tree(published)  # complete as it is


def test_a_partial_dataset_is_not_published_and_a_complete_one_must_be(published: Path, tmp_path: Path) -> None:
    transfer.pull(published, tmp_path / "back", only=part)
    with pytest.raises(DataError, match=r"partial dataset, without \d+ of its files; `shards pull file://"):
        transfer.push(tmp_path / "back", tmp_path / "there")
    with pytest.raises(UsageError, match="no source 'c'"):
        transfer.pull(published, tmp_path / "x", only=lambda dataset: {"c": [0]})
    with pytest.raises(UsageError, match="no number 99"):
        transfer.pull(published, tmp_path / "x", only=lambda dataset: {"a": [99]})
    victim = first(published, "sources/b/ends/000/*")
    dataset = open_dataset(published)
    victim.unlink()
    with pytest.raises(DataError, match=str(victim)):
        open_dataset(published)
    with pytest.raises(DataError, match=str(victim)):
        dataset.require({"a": [0], "b": [0]})
    dataset.require({"a": [0]})
    (tmp_path / "back/origin.json").write_text("{}")
    with pytest.raises(DataError, match=r"origin\.json: must read"):
        open_dataset(tmp_path / "back")


def test_loss_masks_travel_with_their_tokens(tmp_path: Path, tokenizer: Path) -> None:
    table = documents(tokenizer, NAMES[:20])
    masks = [[n % 2] * len(tokens) for n, tokens in enumerate(table["tokens"].to_pylist())]
    masked = table.append_column("loss", pa.array(masks, pa.list_(pa.uint8())))
    write_source(tmp_path / "here", SourceSpec("a", info(tokenizer)), [masked], shard_tokens=9_000, ramp=())
    write_source(tmp_path / "here", SourceSpec("b", info(tokenizer)), [table], shard_tokens=9_000, ramp=())
    write_manifest(tmp_path / "here")
    transfer.pull(tmp_path / "here", tmp_path / "back", only=lambda dataset: {"a": [1], "b": [0]})
    assert len(list((tmp_path / "back").glob("sources/a/loss/000/*"))) == 1
    split = open_dataset(tmp_path / "back").sources["a"].split("train")
    loss, ends = split.loss(1), split.ends(1)
    assert loss is not None and loss.dtype == np.uint8 and len(loss) == split.shards[1].token_count
    rows = split.meta(1)["row"].to_pylist()
    assert np.array_equal(loss, np.repeat(np.array(rows) % 2, np.diff(ends, prepend=0)))
    assert open_dataset(tmp_path / "here").sources["b"].split("train").loss(0) is None
    assert open_dataset(tmp_path / "here").verify()


def test_a_url_opens_through_the_cache_and_versions_share_their_files(
    published: Path, newer: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    transfer.push(published, bucket)
    old = open_dataset(bucket)
    assert not list(old.root.rglob("*.u16")) and old.files.partial
    assert np.array_equal(
        old.sources["a"].split("train").tokens(0), open_dataset(published).sources["a"].split("train").tokens(0)
    )
    assert "fetching sources/a/tokens/000/00000-" in capsys.readouterr().err
    transfer.push(newer, bucket)
    new = open_dataset(bucket)
    assert new.root != old.root and tokens_of(new) == tokens_of(open_dataset(newer))
    (shared,) = old.root.glob("sources/a/tokens/000/00000*")
    assert shared.samefile(new.root / shared.relative_to(old.root))
    # The old version's own files have gone from the bucket; the new one's are not taken for them.
    with pytest.raises(DataError, match=r"has no sources/b/.*published anew"):
        old.sources["b"].split("train").tokens(0)
    assert len(old.sources["a"].split("train").tokens(0))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.parse("hf://datasets/org/name@v1") == places.HubAddress("org/name", "v1")
    assert places.HubAddress("org/name", "v1").commit is None
    assert places.HubAddress("org/name", "0a" * 20).commit == "0a" * 20
    assert places.parse("file:///a%20b") == places.parse("file://localhost/a%20b") == Path("/a b")
    assert places.parse("s3://bucket/x/") == places.UrlAddress("s3://bucket/x")
    for wrong in (
        "hf://org/name",
        "hf://datasets/name",
        "s5://bucket/x",
        "hf://datasets/../../x",
        "ftp://me:secret@x/y",
        "https://x/y?key=secret",
        "file://runs/demo/published",
        "file://",
    ):
        with pytest.raises(UsageError) as error:
            places.parse(wrong)
        assert "secret" not in str(error.value)
    # A name that could be mistyped is a folder's: nothing goes to the Hub that does not say so.
    assert places.parse("org/name") == Path("org/name")
    with pytest.raises(DataError, match="org/name: no such folder; if you mean the Hub, write hf://datasets/org/name"):
        open_dataset("org/name")
    with pytest.raises(DataError, match="if you mean the Hub, write hf://datasets/org/name"):
        transfer.pull("org/name", tmp_path / "x")


def test_numbers_of_tokens() -> None:
    given = {"1_000_000": 10**6, "7": 7, "1B": 10**9, "250m": 250 * 10**6, "1.5T": 15 * 10**11, "2k": 2000}
    assert {text: base_cli.parse_tokens(text) for text in given} == given
    for wrong in ("", "1.5", "-3", "1e9", "B", "1 B", "1.23456K", "inf"):
        with pytest.raises(ValueError, match="no number of tokens"):
            base_cli.parse_tokens(wrong)


def test_inspect_and_verify(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(published)) == 0
    out = capsys.readouterr().out
    assert "train tokens" in out and "mixtures: all" in out and "partial" not in out
    assert run("inspect", str(published), "--json") == 0
    about = json.loads(capsys.readouterr().out)
    held = {row["source"]: row["train_documents"] + row["valid_documents"] for row in about["sources"]}
    assert held == {"a": 20, "b": 20} and about["dtype"] == "u16" and about["partial"] is None
    assert run("verify", str(published)) == 0
    assert f"all {len(tree(published)) - 2} files" in capsys.readouterr().out
    victim = first(published, "sources/b/tokens/000/*")
    flip(victim)
    assert run("verify", str(published)) == 3
    assert str(victim) in capsys.readouterr().err
    assert run("push", str(published), str(published.parent / "x")) == 3
    assert run("verify", str(published / "nowhere")) == 3


def test_pull_of_a_mixture_and_what_is_said_of_a_partial_dataset(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = str(tmp_path / "back")
    budget = ("--mixture", "all", "--tokens", "4K", "--sequence-length", "64")
    assert run("pull", published.as_uri(), back, *budget) == 0
    assert "the rest is fetched" in capsys.readouterr().out
    assert run("inspect", back) == 0
    out = capsys.readouterr().out
    dataset = open_dataset(back)
    here = len(list(Path(back).rglob("*.u16")))
    shards = sum(len(split.shards) for source in dataset.sources.values() for split in source.splits.values())
    assert (
        f"partial: {here} of {shards} shards are here" in out and published.as_uri() in out and "mixtures: all" in out
    )
    assert run("inspect", back, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert sum(row["shards_here"] for row in about["sources"]) == here
    assert 0 < about["partial"]["bytes_here"] < about["partial"]["bytes"]
    assert run("verify", back) == 0
    assert "are not here yet" in capsys.readouterr().out
    assert run("pull", published.as_uri(), back, "--mixture", "al", *budget[2:]) == 2
    assert "did you mean 'all'" in capsys.readouterr().err
    assert run("pull", published.as_uri(), back, "--tokens", "1B") == 2
    assert run("pull", published.as_uri(), back, "--mixture", "all") == 2
    assert run("push", str(published)) == 2
    assert run("push", str(published), str(tmp_path / "x"), "--repo", "org/name") == 2
    assert run("push", str(published), "--repo", "no/such/name") == 2
    assert run("pull", published.as_uri(), back) == 0
    assert tree(Path(back)) == tree(published)


PHASES = """[mixture]
name = "phases"
longest_sequence = 128
target_tokens = 1_000_000
on_exhausted = "repeat"
[mixture.weights]
"*" = 1
[[mixture.phase]]
name = "long"
from_share = 0.2
sequence_length = 128
"""


def test_plan_and_pull_take_all_that_decides_what_a_run_reads(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = tmp_path / "phases.toml"
    mixture.write_text(PHASES)
    budget = ("--mixture", str(mixture), "--tokens", "100K", "--sequence-length", "32")
    dataset = open_dataset(published)
    for more, repetition, align in (
        ((), False, 1),
        (("--batch-tokens", "65536"), False, 2**16),
        (("--match-repetition", "--batch-tokens", "65536"), True, 2**16),
    ):
        asked = plan(load_mixture(mixture), dataset, 32, tokens=100_000, match_repetition=repetition, align=align)
        capsys.readouterr()
        assert run("plan", str(published), *budget, *more, "--json") == 0
        assert json.loads(capsys.readouterr().out)["sha256"] == asked.sha
        back = tmp_path / f"back{align}{repetition}"
        assert run("pull", str(published), str(back), *budget, *more) == 0
        expected = {
            dataset.skeleton.prefix(name) + "/" + dataset.sources[name].split("train").shards[i].tokens.path
            for name, numbers in asked.touched().items()
            for i in numbers
        }
        assert {path for path in tree(back) if path.endswith(".u16") and "/valid/" not in path} == expected
    assert run("plan", str(published), *budget, "--batch-tokens", "0") == 2
    assert run("pull", str(published), str(back), "--batch-tokens", "4K") == 2
    assert "give that too" in capsys.readouterr().err


def test_numbers_and_names_beyond_all_measure_are_refused_in_one_line(
    published: Path, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str, code: int = 2) -> str:
        assert run(*arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    planned = ("plan", str(published), "--mixture", "all", "--sequence-length", "64", "--tokens")
    for number in ("-1", "62", str(2**63), str(10**30)):
        assert f"--sequence {number}: the plan has 62, from 0" in said(*planned, "4K", "--sequence", number)
    assert run(*planned, "4K", "--sequence", "61") == 0
    capsys.readouterr()
    for tokens in ("9" * 20, "99999999T", "9" * 5000):
        with pytest.raises(SystemExit) as ended:
            run(*planned, tokens)
        assert ended.value.code == 2 and "more than 2**62 tokens" in " ".join(capsys.readouterr().err.split())
    chat = tmp_path / "a.jsonl"
    chat.write_text("{}")
    given = ("import", str(chat), "--tokenizer", str(tokenizer))
    for output in (chat, chat / "below"):
        assert f"--output {output}: {chat} is a file" in said(*given, "--source", "x", "--output", str(output))
    for name in ("x" * 100, "x\n", "x\ny"):
        assert "source name 'x" in said(*given, "--output", str(tmp_path / "out"), "--source", name)
    assert not (tmp_path / "out/sources").exists()


def test_what_a_manifest_says_cannot_write_on_the_terminal(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "MIT\x1b]0;title\x07\n\u202eall is well"
    write_source(
        tmp_path / "x", SourceSpec("a", info(tokenizer), licence=evil), [documents(tokenizer, NAMES[:20])], ramp=()
    )
    (tmp_path / "all.toml").write_text(MIXTURE)
    write_manifest(tmp_path / "x", [tmp_path / "all.toml"], tokenizer)
    assert run("inspect", str(tmp_path / "x")) == 0
    assert run("plan", str(tmp_path / "x"), "--mixture", "all", "--tokens", "4K", "--sequence-length", "64") == 0
    out = capsys.readouterr().out
    assert r"MIT\x1b]0;title\x07\n\u202eall" in out and all(char.isprintable() for char in out.replace("\n", ""))

    def fails() -> None:
        raise DataError(f"x: {evil}")

    assert base_cli.guarded("shards", fails) == 3
    assert capsys.readouterr().err == "shards: x: MIT\\x1b]0;title\\x07\\n\\u202eall is well\n"


def test_explain_leads_back_to_the_document(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_dataset(published).sources["a"].split("train")
    assert len(split.shards) > 1
    offset = 0
    for document in split.documents():
        for within in (0, len(document.tokens) - 1):
            assert run("explain", str(published), "a", str(offset + within), "--json") == 0
            answer = json.loads(capsys.readouterr().out)
            assert (answer["id"], answer["offset_in_document"]) == (document.id, within)
            assert answer["row"] == NAMES.index(document.id) and answer["file"] == "topics.jsonl"
            assert answer["token_id"] == int(document.tokens[within])
            assert answer["score"] == pytest.approx(len(document.id) / 10)
            text = topics[document.id]
            before, after = ("", text[1:25]) if not within else (text[-24:], "")
            assert (answer["before"], answer["after"]) == (before, after)
            assert answer["text"] == (text[0] if not within else "<|endoftext|>")
        offset += len(document.tokens)
    assert run("explain", str(published), "a", str(offset)) == 2
    capsys.readouterr()
    assert run("explain", str(published), "c", "0") == 2
    assert "known: a, b" in capsys.readouterr().err


def test_explain_shows_all_columns_and_no_control_character_of_a_document(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b]0;title\x07\x9b2J\n\u202eb\u2028\U000e0041 é"
    table = documents(tokenizer, [evil], url=pa.array([evil]), text=pa.array([1.5]))
    spec = SourceSpec("a", info(tokenizer), columns={"url": "string", "text": "float32"})
    write_source(tmp_path, spec, [table])
    write_manifest(tmp_path, tokenizer=tokenizer)
    for options in ((), ("--json",)):
        assert run("explain", str(tmp_path), "a", "0", *options) == 0
        out = capsys.readouterr().out
        assert out.isprintable() or all(char.isprintable() for char in out.replace("\n", ""))
        assert "url" in out and "meta.text" in out and "title" in out
    assert json.loads(out)["url"] == evil and json.loads(out)["meta.text"] == 1.5


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['shards', '--help']\n"
        "from gristmill.shards import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'pyarrow', 'torch', 'numpy', 'huggingface_hub', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout
