"""Files that are what their manifest lists, and still wrong: refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.handmade_shards import TOKENIZER, edit, good, refused, replace, root, source_value, train

from gristmill.base.errors import DataError
from gristmill.shards import packing, provenance
from gristmill.shards.ends import HEADER_BYTES, ends_header, map_ends
from gristmill.shards.reader import open_dataset

__all__ = ["good", "root"]  # fixtures


def test_ends_of_another_length_are_refused(good: Path, root: Path) -> None:
    shard = train(good).shards[0]
    data = (train(good).folder / shard.ends.path).read_bytes() + b"\0"
    victim = replace(root, "ends", data)
    refused(root, f"{shard.ends.path}: {len(data)} bytes cannot be the ends of {shard.document_count} documents")
    for junk, match in ((data, "cannot be"), (b"", "not a file of document ends"), (b"TKSHARD1", "not a file")):
        victim.write_bytes(junk)
        with pytest.raises(DataError, match=f"{victim}: .*{match}"):
            map_ends(victim, "u16", shard)


def crowded(root: Path) -> int:
    """A train shard of at least three documents."""
    return next(i for i, shard in enumerate(train(root).shards) if shard.document_count >= 3)


@pytest.mark.parametrize("kind", ["swapped", "equal", "zero"])
def test_ends_that_do_not_ascend_are_refused(good: Path, root: Path, kind: str) -> None:
    i = crowded(good)
    shard, ends = train(good).shards[i], train(good).ends(i).copy()
    if kind == "swapped":
        ends[[0, 1]] = ends[[1, 0]]
    else:
        ends[0] = ends[1] if kind == "equal" else 0
    header = ends_header("u16", shard.token_count, shard.document_count, shard.tokens.sha256)
    assert len(header) == HEADER_BYTES
    victim = replace(root, "ends", header + ends.tobytes(), i)
    dataset = open_dataset(root)
    token = sum(shard.token_count for shard in train(good).shards[:i])
    for ask in (dataset.verify, lambda: train(root).ends(i), lambda: provenance.explain(dataset, "plain", token)):
        with pytest.raises(DataError, match=f"{victim}: its .*ends do not (ascend|cover)"):
            ask()


def rows_of(root: Path, i: int) -> pa.Table:
    return train(root).meta(i)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


META_CHANGES: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("tokens", lambda t: with_column(t, "tokens", pa.array([n + 1 for n in t["tokens"].to_pylist()])), "row 0 says"),
    ("null", lambda t: with_column(t, "file", pa.nulls(len(t), pa.string())), "column 'file' is null in row 0"),
    ("type", lambda t: with_column(t, "tokens", t["tokens"].cast(pa.int32())), "column tokens is int32, not int64"),
    ("time", lambda t: t.append_column("t", pa.array([1] * len(t), pa.timestamp("ms"))), r"column t is timestamp"),
    ("rows", lambda t: t.slice(1), "rows for"),
    ("column", lambda t: t.drop_columns(["row"]), "has no column 'row'"),
    ("id", lambda t: with_column(t, "id", pa.array(["x", *t["id"].to_pylist()[1:]])), "its ids have the keys"),
    ("twice", lambda t: t.append_column("id", t["id"]), "two columns have one name"),
]


@pytest.mark.parametrize(("change", "match"), [case[1:] for case in META_CHANGES], ids=[c[0] for c in META_CHANGES])
def test_metadata_of_other_documents_are_refused(good: Path, root: Path, change: Any, match: str) -> None:
    i = crowded(good)
    victim = replace(root, "meta", parquet(change(rows_of(good, i))), i)
    with pytest.raises(DataError, match=f"{victim}: .*{match}") as caught:
        open_dataset(root).verify()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("junk", ["text", "empty", "footer", "page", "utf-8"])
def test_junk_parquet_is_refused_by_name(good: Path, root: Path, junk: str) -> None:
    whole = bytearray(parquet(rows_of(good, 0)))
    if junk == "footer":
        whole[-40:-8] = b"\xff" * 32
    elif junk == "page":
        whole[4:60] = b"\xff" * 56
    elif junk == "utf-8":
        bad = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
        )
        rows = rows_of(good, 0)
        whole = bytearray(parquet(with_column(rows, "file", pa.concat_arrays([bad] * len(rows)))))
    victim = replace(root, "meta", {"text": b"no Parquet", "empty": b""}.get(junk, bytes(whole)))
    dataset = open_dataset(root)
    for ask in (dataset.verify, lambda: provenance.explain(dataset, "plain", 0)):
        with pytest.raises(DataError, match=f"{victim}: not Parquet that can be read") as caught:
            ask()
        assert str(caught.value).isprintable()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_metadata_bytes_are_read_or_refused(good: Path, root: Path, data: st.DataObject) -> None:
    raw = bytearray(parquet(rows_of(good, 0)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    shutil.copyfile(good / "manifest.json", root / "manifest.json")
    path = source_value(good)[0]
    shutil.copyfile(path, root / path.relative_to(good))
    replace(root, "meta", bytes(raw))
    dataset = open_dataset(root)
    for ask in (dataset.verify, lambda: provenance.explain(dataset, "plain", 0)):
        try:
            ask()
        except DataError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("kind", ["lower", "higher", "outside", "eos"])
def test_tokens_that_are_not_as_the_manifest_says_are_refused(good: Path, root: Path, kind: str) -> None:
    i = crowded(good)
    tokens, ends, changes = train(good).tokens(i).copy(), train(good).ends(i), {}
    if kind == "lower":
        changes["max_id"] = int(tokens.max()) + 1
        match = f"its largest id is {tokens.max()}"
    elif kind == "higher":
        changes["max_id"] = int(tokens.max()) - 1
        match = f"its largest id is {tokens.max()}"
    elif kind == "outside":
        tokens[0] = 50_001
        match = "id 50001 is outside the vocabulary"
    else:
        tokens[ends[1] - 1] = 1
        match = r"document 1 does not end in EOS \(0\)"
    victim = replace(root, "tokens", tokens.tobytes(), i, **changes)
    with pytest.raises(DataError, match=f"{victim}: {match}"):
        open_dataset(root).verify()


def test_only_a_piece_may_end_without_eos(good: Path, root: Path) -> None:
    split = train(good)
    cut = next(i for i, shard in enumerate(split.shards) if shard.continues) - 1
    assert split.tokens(cut)[-1] != TOKENIZER.eos_id
    last = len(split.shards) - 1
    tokens = split.tokens(last).copy()
    tokens[-1] = 1
    replace(root, "tokens", tokens.tobytes(), last, max_id=int(tokens.max()))
    with pytest.raises(DataError, match="does not end in EOS"):
        open_dataset(root).verify()


def test_other_masks_and_other_row_counts_are_refused(good: Path, root: Path) -> None:
    loss = train(good, "chat").loss(0).copy()
    loss[3] = 2
    victim = replace(root, "loss", loss.tobytes(), source="chat")
    with pytest.raises(DataError, match=f"{victim}: holds other values than 0 and 1"):
        open_dataset(root).verify()
    replace(root, "loss", train(good, "chat").loss(0).tobytes(), source="chat")
    open_dataset(root).verify()
    i = crowded(good)
    counts = packing.row_counts(train(good).ends(i), (64,))
    edit(root, lambda value: value["train"][i]["packed"].update({"64": counts["64"] + 1}))
    with pytest.raises(DataError, match=f"best fit makes {counts['64']} rows of 64 tokens"):
        open_dataset(root).verify()
