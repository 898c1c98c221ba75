"""Shards that Megatron wrote come back document by document, and what is damaged is refused by name."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.foreign_shards import (
    DOCUMENTS,
    EOS,
    NUMBERS,
    Documents,
    joined,
    rows,
    small,
    without_eos,
    write_megatron,
)

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.importers import flat, megatron
from gristmill.shards.importers.api import find_inputs
from gristmill.shards.importers.flat import Found

__all__ = ["small"]  # fixtures


@settings(max_examples=60)
@given(
    documents=st.lists(st.lists(NUMBERS, max_size=3), max_size=9),
    ended=st.booleans(),
    code=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 10]),
    modes=st.booleans(),
)
def test_megatron_documents_come_back(documents: list[Documents], ended: bool, code: int, modes: bool) -> None:
    ended = ended and code > 2  # EOS does not fit into a byte
    if ended:
        documents = [[*document, [EOS]] for document in documents]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, size in {"BATCH_TOKENS": 7, "BATCH_DOCUMENTS": 3, "PART_TOKENS": 11, "CHECKED": 2}.items():
            patch.setattr(flat, name, size)
        zeros = [0] * sum(len(document) for document in documents)
        path = write_megatron(Path(folder) / "a.b_document", documents, code, modes=zeros if modes else None)
        found = megatron.find(path, "x", EOS)
        assert rows(found) == without_eos(joined(documents))
        assert found.documents == len(documents)


def test_megatron_offsets_over_2_gib(tmp_path: Path) -> None:
    """Sequences are at most 2**31 - 1 tokens, offsets are not: a sparse file of 6 GB, read at its end."""
    lengths = [1_500_000_000, 1_500_000_000, 3, 2]
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.truncate(sum(lengths) * 2)
        file.seek(-10, 2)
        file.write(np.array([11, 12, EOS, 13, 14], "<u2").tobytes())
    pointers = [0, *np.cumsum(np.array(lengths[:-1], np.int64) * 2).tolist()]
    data = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 4, 4) + np.array(lengths, "<i4").tobytes()
    data += np.array(pointers, "<i8").tobytes() + np.array([0, 2, 3, 4], "<i8").tobytes()
    path.with_suffix(".idx").write_bytes(data)
    found = megatron.find(path, "big", EOS)
    assert found.documents == 3
    last = flat.IndexedPart(megatron._open, path, "big", EOS, False, 1, 3)
    assert list(found.parts.values())[-1] == last  # the long one is a part by itself
    assert rows(Found((), {"": last})) == {1: [11, 12], 2: [13, 14]}


MEGATRON_REFUSALS = {
    "TNTIDX": ({"index": lambda data: b"TNTIDX\x00\x00" + data[8:]}, "not the index of a Megatron dataset"),
    "version": ({"index": lambda data: data[:9] + struct.pack("<Q", 2) + data[17:]}, "version 2, this reads version 1"),
    "dtype": ({"index": lambda data: data[:17] + b"\x0b" + data[18:]}, "unknown dtype code 11"),
    "float": ({"code": 7}, "holds float32 values"),
    "header": ({"index": lambda data: data[:20]}, "truncated: 20 bytes"),
    "index": ({"index": lambda data: data[:-3]}, "truncated"),
    "long index": ({"index": lambda data: data + b"\0"}, "wrong size"),
    "pointer": ({"pointers": [0, 6, 8, 13]}, "sequence 3 has 2 tokens at byte 13"),
    "negative": ({"lengths": [3, 1, -2, 2]}, "sequence 2 has -2 tokens"),
    "documents": ({"begins": [0, 2, 3]}, "cover sequences 0 to 3 of 4"),
    "no documents": ({"begins": []}, "list of documents is empty"),
    "descend": ({"begins": [0, 3, 2, 4]}, "does not ascend"),
    "mode": ({"modes": [0, 0, 1, 0]}, "sequence 2 is of mode 1"),
}


@pytest.mark.parametrize("case", MEGATRON_REFUSALS)
def test_megatron_refuses(case: str, tmp_path: Path, small: None) -> None:
    changes, message = MEGATRON_REFUSALS[case]
    path = write_megatron(tmp_path / "d", DOCUMENTS, **changes)
    with pytest.raises(DataError, match=message):
        megatron.find(path, "d", EOS)


@pytest.mark.parametrize(("change", "message"), [(-2, "truncated"), (-1, "truncated"), (2, "longer than its index")])
def test_megatron_refuses_tokens_that_its_index_does_not_cover(change: int, message: str, tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "d", DOCUMENTS)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(DataError, match=message):
        megatron.find(path, "d", EOS)


def test_megatron_without_its_index_or_tokens(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "d", DOCUMENTS)
    path.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match="cannot be read without its index"):
        megatron.find(path, "d", EOS)
    path = write_megatron(tmp_path / "d", DOCUMENTS)
    path.unlink()
    with pytest.raises(UsageError, match=r"d\.bin: no such file"):
        find_inputs("auto", [tmp_path / "d.idx"])
