"""Shards that datatrove wrote come back document by document, loss masks with them; what is damaged is refused by
name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.foreign_shards import EOS, NUMBERS, Documents, rows, small, tokenizer, without_eos, write_datatrove

from gristmill.base.errors import DataError
from gristmill.shards.importers import datatrove, flat
from gristmill.shards.importers.api import import_source
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.writer import write_manifest

__all__ = ["small", "tokenizer"]  # fixtures


@settings(max_examples=40)
@given(
    documents=st.lists(NUMBERS, max_size=9), ended=st.booleans(), width=st.sampled_from([2, 4]), metadata=st.booleans()
)
def test_datatrove_documents_come_back(documents: Documents, ended: bool, width: int, metadata: bool) -> None:
    if ended:
        documents = [[*document, EOS] for document in documents]
    tokens = sum(len(document) for document in documents)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, size in {"BATCH_TOKENS": 7, "BATCH_DOCUMENTS": 3, "PART_TOKENS": 11, "CHECKED": 2}.items():
            patch.setattr(flat, name, size)
        told = f"org/name|with|bars|{width}\n{tokens}\n{tokens / 1000} KT" if metadata else None
        path = write_datatrove(Path(folder) / "00000_shuffled.ds", documents, width, metadata=told)
        assert rows(datatrove.find(path, "x", EOS, False)) == without_eos(documents)


def test_datatrove_loss_masks_stay_with_their_tokens(tmp_path: Path, tokenizer: Path, small: None) -> None:
    (tmp_path / "in").mkdir()
    first = write_datatrove(
        tmp_path / "in" / "a.ds",
        [[1, 2, 3, EOS], [EOS], [4, 5], [6, 7, 8, 9, 10, 11, 12, 13, EOS]],
        loss=[[0, 1, 1, 1], [1], [1, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0]],
    )
    write_datatrove(tmp_path / "in" / "b.ds", [[20, 21]])
    done = import_source("auto", [first.parent], tmp_path / "out", "s", tokenizer)
    write_manifest(tmp_path / "out", tokenizer=tokenizer)
    assert masks(open_dataset(tmp_path / "out")) == {
        "a.ds:0": [0, 1, 1, 1],  # EOS takes the value of the last token
        "a.ds:2": [1, 0, 0],
        "a.ds:3": [0, 0, 0, 0, 0, 1, 1, 1, 1],
        "b.ds:0": [1, 1, 1],  # no mask: all is learnt from
    }
    assert done.left_out == 1
    assert [entry["path"] for entry in done.manifest.inputs] == [
        "a.ds",
        "a.ds.index",
        "a.ds.loss",
        "b.ds",
        "b.ds.index",
    ]


def masks(dataset: Dataset, name: str = "s") -> dict[str, list[int]]:
    source = dataset.sources[name]
    found: dict[str, list[int]] = {}
    for i, shard in enumerate(source.manifest.train):
        assert shard.loss is not None
        values = np.frombuffer((source.folder / shard.loss.path).read_bytes(), np.uint8)
        split = np.split(values, source.split("train").ends(i)[:-1])
        found |= zip(source.split("train").meta(i)["id"].to_pylist(), (mask.tolist() for mask in split))
    return found


DATATROVE_REFUSALS = {
    "no index": (".index", lambda data: None, "without it"),
    "index": (".index", lambda data: data[:-3], "truncated"),
    "lost end": (".index", lambda data: data[:-8], "cannot be the 5 tokens of its index"),
    "descend": (".index", lambda data: np.array([4, 2, 6], "<u8").tobytes(), "document 1 ends before it begins"),
    "tokens": ("", lambda data: data[:-2], "cannot be the 6 tokens"),
    "loss": (".loss", lambda data: data[:-1], "its loss mask has 5 values"),
    "metadata": (".metadata", lambda data: b"name|4\n6\n6 T", "its metadata tells of 6 tokens of 4 bytes"),
    "count": (".metadata", lambda data: b"name|2\n7\n7 T", "its metadata tells of 7 tokens"),
    "bad metadata": (".metadata", lambda data: b"\xff", "damaged"),
}


@pytest.mark.parametrize("case", DATATROVE_REFUSALS)
def test_datatrove_refuses(case: str, tmp_path: Path, small: None) -> None:
    suffix, change, message = DATATROVE_REFUSALS[case]
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, 3, EOS], [4], [5]], loss=[[1] * 4, [1], [1]])
    victim = path.with_name(path.name + suffix)
    data = change(victim.read_bytes() if victim.exists() else b"")
    victim.unlink(missing_ok=True)
    if data is not None:
        victim.write_bytes(data)
    with pytest.raises(DataError, match=message):
        datatrove.find(path, "a", EOS, True)


def test_a_loss_mask_of_other_values_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", [[1, 2]], loss=[[1, 7]])
    with pytest.raises(DataError, match=r"a\.ds, row 0.*other values than 0 and 1"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)
