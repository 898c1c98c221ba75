"""Moving datasets and looking into them: manifests last, checks on arrival, exit codes, and a token led back home."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pytest

from gristmill.base import cli as base_cli
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import cli, hub
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

BYTES = TokenizerInfo(name="bytes", sha256=hashlib.sha256(b"bytes").hexdigest(), vocab_size=257, eos_id=256)
MIXTURE = '[mixture]\nname = "all"\n[mixture.weights]\n"*" = 1\n'


def documents(names: list[str]) -> pa.Table:
    return pa.table(
        {
            "id": names,
            "tokens": pa.array([list(topics[name].encode()) for name in names], pa.list_(pa.uint16())),
            "file": ["topics.jsonl"] * len(names),
            "row": list(range(len(names))),
            "score": pa.array([len(name) / 10 for name in names], pa.float32()),
        }
    )


@pytest.fixture
def published(tmp_path: Path) -> Path:
    root = tmp_path / "published"
    names = sorted(topics)
    write_source(root, SourceSpec("a", BYTES, valid_fraction=0.1), [documents(names[:20])], ramp=(9_000,))
    write_source(root, SourceSpec("b", BYTES), [documents(names[20:40])])
    (tmp_path / "all.toml").write_text(MIXTURE)
    write_manifest(root, [tmp_path / "all.toml"])
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(*arguments: str) -> int:
    functions = (cli.inspect, cli.verify, cli.push, cli.pull, cli.explain)
    commands = {f.__name__: base_cli.typed(f, f"shards {f.__name__}") for f in functions}
    return base_cli.run("shards", commands, "about", list(arguments))


def test_push_to_a_folder_and_pull_from_it(published: Path, tmp_path: Path) -> None:
    assert hub.push(published, f"file://{tmp_path}/there") == f"{tmp_path}/there"
    hub.pull(f"file://{tmp_path}/there", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "there") == tree(published)
    assert "mixtures/all.toml" in tree(tmp_path / "back")
    open_dataset(tmp_path / "back").verify()


def test_push_sends_only_what_differs_and_the_manifest_last(published: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    hub.push(published, there)
    inodes = {p: p.stat().st_ino for p in there.rglob("*.u16")}
    damaged = sorted(inodes)[0]
    damaged.write_bytes(b"damage")
    hub.push(published, there)
    assert tree(there) == tree(published)
    assert all(p.stat().st_ino == inode for p, inode in inodes.items() if p != damaged)
    # A push that cannot finish leaves no manifest that promises what is not there.
    write_source(published, SourceSpec("a", BYTES), [documents(sorted(topics)[:9])])
    write_manifest(published)
    (published / "sources/b/tokens/000/00000.u16").write_bytes(b"x" * 5)
    (there / "sources/b/tokens/000/00000.u16").unlink()
    with pytest.raises(DataError, match=r"00000\.u16: truncated"):
        hub.push(published, there)
    assert not (there / "manifest.json").exists()


def test_a_pull_refuses_what_was_altered_and_keeps_what_came(published: Path, tmp_path: Path) -> None:
    victim = published / "sources/b/meta/000/00000.parquet"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(DataError, match=r"sources/b/meta/000/00000\.parquet: altered"):
        hub.pull(published, tmp_path / "back")
    assert not (tmp_path / "back/manifest.json").exists()
    assert not (tmp_path / "back/sources/b/meta/000/00000.parquet").exists()
    inode = (tmp_path / "back/sources/a/tokens/000/00000.u16").stat().st_ino
    victim.write_bytes(whole)
    hub.pull(published, tmp_path / "back")
    assert (tmp_path / "back/sources/a/tokens/000/00000.u16").stat().st_ino == inode


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.parse("hf://datasets/org/name@v1") == hub.HubAddress("org/name", "v1")
    assert hub.parse("org/name") == hub.HubAddress("org/name")
    (tmp_path / "org").mkdir()
    assert hub.parse("org/name") == Path("org/name")
    assert hub.parse("./org/name") == Path("./org/name")
    assert hub.parse("file:///a%20b") == Path("/a b")
    for wrong in ("hf://org/name", "hf://datasets/name", "s3://bucket/x", "hf://datasets/../../x"):
        with pytest.raises(UsageError):
            hub.parse(wrong)


def test_inspect_and_verify(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(published)) == 0
    out = capsys.readouterr().out
    assert "train tokens" in out and "mixtures: all" in out
    assert run("inspect", str(published), "--json") == 0
    about = json.loads(capsys.readouterr().out)
    held = {row["source"]: row["train_documents"] + row["valid_documents"] for row in about["sources"]}
    assert held == {"a": 20, "b": 20} and about["dtype"] == "u16"
    assert run("verify", str(published)) == 0
    victim = published / "sources/b/tokens/000/00000.u16"
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    capsys.readouterr()
    assert run("verify", str(published)) == 3
    assert str(victim) in capsys.readouterr().err
    assert run("push", str(published), str(published.parent / "x")) == 3
    assert run("verify", str(published / "nowhere")) == 3


def test_explain_leads_back_to_the_document(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_dataset(published).sources["a"].split("train")
    assert len(split.shards) > 1
    offset = 0
    for document in split.documents():
        for within in (0, len(document.tokens) - 1):
            assert run("explain", str(published), "a", str(offset + within), "--json") == 0
            answer = json.loads(capsys.readouterr().out)
            assert (answer["id"], answer["offset_in_document"]) == (document.id, within)
            assert answer["row"] == sorted(topics).index(document.id) and answer["file"] == "topics.jsonl"
            assert answer["token_id"] == int(document.tokens[within])
            assert answer["score"] == pytest.approx(len(document.id) / 10)
        offset += len(document.tokens)
    assert run("explain", str(published), "a", str(offset)) == 2
    capsys.readouterr()
    assert run("explain", str(published), "c", "0") == 2
    assert "known: a, b" in capsys.readouterr().err


def test_help_is_light() -> None:
    code = (
        "import sys; sys.argv = ['shards', '--help']\n"
        "from gristmill.shards import cli\n"
        "try: cli.main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'pyarrow', 'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout
