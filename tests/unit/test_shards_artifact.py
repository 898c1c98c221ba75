"""The artifact: what is written comes back, the bytes depend on the documents alone, and damage is refused by name."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base import files
from gristmill.base.errors import DataError, UsageError
from gristmill.shards import manifest as manifests
from gristmill.shards import packing
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source
from gristmill.shards.writing import documents

U16 = pa.uint16()
BYTES = TokenizerInfo(name="bytes", sha256=hashlib.sha256(b"bytes").hexdigest(), vocab_size=257, eos_id=256)
WIDE = TokenizerInfo(name="wide", sha256=hashlib.sha256(b"wide").hexdigest(), vocab_size=70_000, eos_id=69_999)
SIZES = {"shard_tokens": 90_000, "ramp": (20_000, 40_000)}
TEXTS = {f"topic-{name}": text for name, text in sorted(topics.items())}


def table(ids: list[str], token: pa.DataType = U16) -> pa.Table:
    return pa.table(
        {
            "id": ids,
            "tokens": pa.array([list(TEXTS[i].encode()) for i in ids], pa.list_(token)),
            "file": [f"{i[6]}.txt" for i in ids],
            "row": pa.array([list(TEXTS).index(i) for i in ids], pa.int64()),
            "score": pa.array([len(TEXTS[i]) % 7 / 7 if len(TEXTS[i]) % 5 else None for i in ids], pa.float32()),
            "language": ["en"] * len(ids),
        }
    )


def spec(name: str = "docs", tokenizer: TokenizerInfo = BYTES, **changes) -> SourceSpec:
    return SourceSpec(name, tokenizer, **({"salt": "s", "valid_fraction": 0.1, "licence": "PSF-2.0"} | changes))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("published")
    write_source(root, spec(), [table(list(TEXTS))], **SIZES)
    write_manifest(root)
    return root


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def test_every_document_comes_back_with_its_origin(published: Path) -> None:
    source = open_dataset(published).sources["docs"]
    held = {"train": list(source.split("train").documents()), "valid": list(source.split("valid").documents())}
    assert {d.id for d in held["train"]}.isdisjoint(d.id for d in held["valid"])
    found = {d.id: d for d in held["train"] + held["valid"]}
    assert set(found) == set(TEXTS)
    for name, document in found.items():
        assert document.tokens[-1] == BYTES.eos_id
        assert bytes(document.tokens[:-1].astype(np.uint8)).decode() == TEXTS[name]
        assert document.meta["row"] == list(TEXTS).index(name)
        assert document.meta["file"] == f"{name[6]}.txt"
    assert len(source.split("train").shards) > 4
    assert len(held["valid"]) == source.split("valid").document_count > 0
    assert open_dataset(f"file://{published}").manifest == open_dataset(published).manifest


def test_documents_stand_in_hash_order_and_valid_is_the_top(published: Path) -> None:
    source = open_dataset(published).sources["docs"]
    held = {name: [d.id for d in source.split(name).documents()] for name in ("train", "valid")}
    keys = {name: documents.keys_of(ids, "s").tolist() for name, ids in held.items()}
    assert keys["train"] == sorted(keys["train"])
    assert max(keys["train"]) < 0.9 * 2**64 <= min(keys["valid"])
    digest = hashlib.blake2b(b"s|topic-assert").digest()
    assert int(documents.keys_of(["topic-assert"], "s")[0]) == int.from_bytes(digest[:8], "big")
    for shard in source.manifest.train:
        assert shard.key_low <= shard.key_high


def test_bytes_do_not_depend_on_batch_order_splitting_memory_or_token_width(published: Path, tmp_path: Path) -> None:
    ids = list(TEXTS)
    random.Random(3).shuffle(ids)
    cuts = [0, 1, 5, 40, len(ids)]
    batches = [
        table(ids[a:b], token) for a, b, token in zip(cuts, cuts[1:], [pa.uint16(), pa.int64(), pa.uint32()] * 2)
    ]
    write_source(tmp_path, spec(), iter(batches), memory_tokens=20_000, **SIZES)
    write_manifest(tmp_path)
    assert tree(tmp_path) == tree(published)


def test_shard_sizes_follow_the_ramp_and_no_document_is_split(published: Path) -> None:
    shards = open_dataset(published).sources["docs"].manifest.train
    assert [s.continues for s in shards] == [False] * len(shards)
    longest = max(len(t.encode()) for t in TEXTS.values()) + 1
    for shard, size in zip(shards, [20_000, 40_000] + [90_000] * len(shards)):
        assert shard.token_count <= max(size, longest)
    assert sum(s.document_count for s in shards) == len(list(open_split(published).documents()))


def open_split(root: Path):
    return open_dataset(root).sources["docs"].split("train")


def test_a_document_longer_than_a_shard_is_cut_flagged_and_put_together_again(tmp_path: Path) -> None:
    ids = list(TEXTS)[:12]
    write_source(tmp_path, spec(valid_fraction=0.0), [table(ids)], shard_tokens=1_500, ramp=(700,))
    write_manifest(tmp_path)
    split = open_split(tmp_path)
    assert any(shard.continues for shard in split.shards)
    assert all(shard.token_count <= 1_500 for shard in split.shards)
    assert {d.id: bytes(d.tokens[:-1].astype(np.uint8)).decode() for d in split.documents()} == {
        i: TEXTS[i] for i in ids
    }
    assert split.document_count == len(ids)


def test_names_carry_the_hash_and_manifests_count_rows(published: Path) -> None:
    for split in ("train", "valid"):
        for i, shard in enumerate(open_dataset(published).sources["docs"].manifest.shards(split)):
            for entry, kind, suffix in zip(shard.files, ("tokens", "ends", "meta"), ("u16", "u32", "parquet")):
                prefix = "" if split == "train" else "valid/"
                assert entry.path == f"{prefix}{kind}/000/{i:05d}-{entry.sha256[:8]}.{suffix}"
            assert shard.loss is None
            assert shard.packed == packing.row_counts(open_dataset(published).sources["docs"].split(split).ends(i))


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    written = write_source(tmp_path, spec(tokenizer=WIDE), [table(list(TEXTS)[:5])], **SIZES)
    assert written.dtype == "u32"
    write_manifest(tmp_path)
    tokens = open_split(tmp_path).tokens(0)
    assert tokens.dtype == np.dtype("<u4") and type(tokens) is np.ndarray and not tokens.flags.writeable


def test_a_restart_leaves_finished_shards_alone_and_removes_strangers(copy: Path) -> None:
    before = {p: p.stat().st_ino for p in copy.rglob("*") if p.suffix in (".u16", ".parquet", ".u32")}
    second = sorted(copy.glob("sources/docs/tokens/*/*.u16"))[1]
    second.write_bytes(b"half")
    stranger = copy / "sources/docs/tokens/000/00099.u16"
    stranger.write_bytes(b"old")
    write_source(copy, spec(), [table(list(TEXTS))], **SIZES)
    write_manifest(copy)
    after = {p: p.stat().st_ino for p in before}
    assert {p for p in before if before[p] != after[p]} <= {second}
    assert not stranger.exists()
    assert not list(copy.glob(".spool*"))
    open_dataset(copy).verify()


def test_an_interrupted_write_promises_nothing_and_goes_on(published: Path, tmp_path: Path) -> None:
    def cut_short():
        yield table(list(TEXTS)[:50])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_source(tmp_path, spec(), cut_short(), **SIZES)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    (tmp_path / ".spool-docs").mkdir()  # as a killed process leaves it
    (tmp_path / ".spool-docs/000000.arrow").write_bytes(b"half")
    write_source(tmp_path, spec(), [table(list(TEXTS))], **SIZES)
    write_manifest(tmp_path)
    assert tree(tmp_path) == tree(published)


@pytest.mark.parametrize("part", ["tokens", "ends", "meta", "valid/tokens"])
def test_truncated_and_altered_files_are_refused_by_name(copy: Path, part: str) -> None:
    victim = sorted((copy / "sources/docs" / part).rglob("*.*"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{victim}.*truncated"):
        open_dataset(copy)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    victim.write_bytes(flipped)
    with pytest.raises(DataError, match=f"{victim}.*altered"):
        open_dataset(copy).verify()
    victim.unlink()
    with pytest.raises(DataError, match=str(victim)):
        open_dataset(copy)


def test_ends_that_belong_to_other_tokens_are_refused(copy: Path) -> None:
    (victim,) = copy.glob("sources/docs/ends/000/00000-*.u32")
    data = bytearray(victim.read_bytes())
    data[40] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DataError, match="belongs to other tokens"):
        open_split(copy).ends(0)


def source_manifest(root: Path) -> Path:
    return root / json.loads((root / "manifest.json").read_text())["sources"]["docs"]["path"]


def edit_source(root: Path, change) -> None:
    """Change the source manifest and make every hash above it right again, as an attacker would."""
    path = source_manifest(root)
    value = json.loads(path.read_text())
    change(value)
    value["content_id"] = files.fingerprint({k: v for k, v in value.items() if k != "content_id"})
    files.write_json(path, value)
    top = json.loads((root / "manifest.json").read_text())
    top["sources"]["docs"]["sha256"] = files.sha256_file(path)
    top["content_id"] = files.fingerprint({k: v for k, v in top.items() if k != "content_id"})
    files.write_json(root / "manifest.json", top)


@pytest.mark.parametrize("path", ["../../../etc/passwd", "/etc/passwd", "tokens/../../x", "tokens\\x", "C:x", "a//b"])
def test_an_unsafe_path_is_refused(copy: Path, path: str) -> None:
    edit_source(copy, lambda value: value["train"][0]["tokens"].update(path=path))
    with pytest.raises(DataError, match="unsafe path"):
        open_dataset(copy)


def test_unknown_versions_wrong_dtypes_and_edits_are_refused(copy: Path) -> None:
    whole = tree(copy)
    edit_source(copy, lambda value: value.update(format="gristmill.source/2"))
    with pytest.raises(DataError, match=r"gristmill\.source/2.*update"):
        open_dataset(copy)
    edit_source(copy, lambda value: value.update(format="gristmill.source/1", dtype="u32"))
    with pytest.raises(DataError, match="dtype u32 is wrong"):
        open_dataset(copy)
    name = source_manifest(copy).relative_to(copy).as_posix()
    for path in ("manifest.json", name):
        (copy / path).write_bytes(whole[path])
    (copy / name).write_bytes(whole[name].replace(b"PSF", b"MIT"))
    with pytest.raises(DataError, match=r"sources/docs/manifest-[0-9a-f]{8}\.json: sha256"):
        open_dataset(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a dataset"):
        open_dataset(copy)


def test_duplicate_ids_are_refused_with_both_places(tmp_path: Path) -> None:
    ids = list(TEXTS)[:4]
    again = table(ids[:1]).set_column(2, "file", [["other.jsonl"]])
    with pytest.raises(DataError, match=r"one id: .*row 0.*other\.jsonl|one id: other\.jsonl.*row 0") as caught:
        write_source(tmp_path, spec(), [table(ids), again], memory_tokens=100)
    assert ids[0] in str(caught.value)
    assert not (tmp_path / "sources/docs/manifest.json").exists()


def test_an_id_outside_the_vocabulary_names_the_document(tmp_path: Path) -> None:
    bad = pa.table({"id": ["a", "b"], "tokens": [[1, 2], [3, 999]], "file": ["f.jsonl"] * 2, "row": [7, 8]})
    with pytest.raises(DataError, match=r"f\.jsonl, row 8, id 'b'.*999"):
        write_source(tmp_path, spec(), [bad])
    with pytest.raises(DataError, match="no column 'row'"):
        write_source(tmp_path, spec(), [bad.drop_columns(["row"])])
    with pytest.raises(DataError, match="'id' is null in row 1"):
        write_source(tmp_path, spec(), [bad.set_column(0, "id", [["a", None]])])


def test_optional_columns_may_be_absent_and_documents_empty(tmp_path: Path) -> None:
    rows = pa.table(
        {"id": ["a", "b"], "tokens": pa.array([[], [5]], pa.list_(pa.int32())), "file": ["f"] * 2, "row": [0, 1]}
    )
    write_source(tmp_path, spec(valid_fraction=0.0), [rows, rows.slice(0, 0)])
    write_manifest(tmp_path)
    assert sorted(d.tokens.tolist() for d in open_split(tmp_path).documents()) == [[5, 256], [256]]
    meta = open_split(tmp_path).meta(0)
    assert meta.column_names == ["id", "file", "row", "tokens", "score", "language"]
    assert meta["tokens"].to_pylist() == np.diff(open_split(tmp_path).ends(0), prepend=0).tolist()


def test_a_source_without_documents_is_refused_and_leaves_what_stood(copy: Path) -> None:
    before = tree(copy)
    with pytest.raises(DataError, match="source docs: the input holds no document"):
        write_source(copy, spec(), [])
    assert tree(copy) == before


def test_sources_of_two_tokenizers_are_no_dataset(tmp_path: Path) -> None:
    write_source(tmp_path, spec("a"), [table(list(TEXTS)[:2])])
    write_manifest(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match="source b was tokenised with wide"):
        write_source(tmp_path, spec("b", WIDE), [table(list(TEXTS)[:2])])
    assert tree(tmp_path) == before


def test_a_spec_that_cannot_be_a_source_is_refused() -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        spec("../x")
    with pytest.raises(UsageError, match="plain JSON"):
        spec(recipe={"policy": {1: "a"}})
    with pytest.raises(UsageError, match=r"column 'tokens'.*none of id"):
        spec(columns={"tokens": "int64"})
    with pytest.raises(UsageError, match="column '_key'"):
        spec(columns={"_key": "int64"})
    with pytest.raises(UsageError, match="column bytes is 'int32'; give float32, int64, string"):
        spec(columns={"bytes": "int32"})


def test_manifests_are_hashed_without_their_own_id(published: Path) -> None:
    found = manifests.load_dataset_manifest(published)
    assert found.content_id == manifests.content_id(found)
    assert manifests.manifest_bytes(found) == (published / "manifest.json").read_bytes()
