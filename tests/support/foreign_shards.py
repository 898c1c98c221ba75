"""Shards as other systems write them, and what comes back of them, by document."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from tests.support.byte_tokenizer import byte_tokenizer

from gristmill.shards.importers import flat, megatron, numpy_shards
from gristmill.shards.importers.flat import Found

EOS = 256  # of the byte tokenizer
TOKENS = [1, 2, EOS, 3]
NUMBERS = st.lists(st.integers(0, 127), max_size=12)
Documents = list[list[int]]
DOCUMENTS: list[Documents] = [[[1, 2, 3], [4]], [[5, EOS]], [[6, 7]]]  # each a list of sequences


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return byte_tokenizer(tmp_path / "bytes" / "tokenizer.json")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, parts and checks of a handful of tokens, so that small files cross their bounds."""
    for name, size in {"BATCH_TOKENS": 7, "BATCH_DOCUMENTS": 3, "PART_TOKENS": 11, "CHECKED": 2}.items():
        monkeypatch.setattr(flat, name, size)
    monkeypatch.setattr(megatron, "CHECKED", 2)


def rows(found: Found) -> dict[int, list[int]]:
    tables = [table for part in found.parts.values() for table in part()]
    assert all(set(table.column_names) >= {"id", "tokens", "file", "row"} for table in tables)
    merged = [row for table in tables for row in table.to_pylist()]
    assert all(row["id"] == f"{row['file']}:{row['row']}" for row in merged)
    assert len({row["id"] for row in merged}) == len(merged)
    return {row["row"]: row["tokens"] for row in merged}


def without_eos(documents: Documents) -> dict[int, list[int]]:
    """By number, less one EOS at the end; those without a token are left out."""
    stripped = [document[:-1] if document[-1:] == [EOS] else document for document in documents]
    return {number: document for number, document in enumerate(stripped) if document}


def joined(documents: list[Documents]) -> Documents:
    return [list(itertools.chain.from_iterable(document)) for document in documents]


def write_megatron(
    prefix: Path,
    documents: list[Documents],
    code: int = 8,
    *,
    modes: list[int] | None = None,
    index: Callable[[bytes], bytes] = lambda data: data,
    **changed: list[int],
) -> Path:
    """As megatron/core/datasets/indexed_dataset.py lays it out. A document is a list of sequences."""
    sequences = [sequence for document in documents for sequence in document]
    kind = np.dtype(megatron.DTYPES[code])
    tokens = np.array([token for sequence in sequences for token in sequence], kind)
    lengths = [len(sequence) for sequence in sequences]
    pointers = [sum(lengths[:i]) * kind.itemsize for i in range(len(lengths))]
    begins = [0, *np.cumsum([len(document) for document in documents]).tolist()]
    parts = {"lengths": lengths, "pointers": pointers, "begins": begins} | changed
    data = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(parts["lengths"]), len(parts["begins"]))
    data += np.array(parts["lengths"], "<i4").tobytes() + np.array(parts["pointers"], "<i8").tobytes()
    data += np.array(parts["begins"], "<i8").tobytes()
    data += b"" if modes is None else np.array(modes, "<i1").tobytes()
    path = prefix.with_name(f"{prefix.name}.bin")
    path.write_bytes(tokens.tobytes())
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index(data))
    return path


def write_datatrove(
    path: Path, documents: Documents, width: int = 2, loss: list[list[int]] | None = None, metadata: str | None = None
) -> Path:
    """As datatrove/pipeline/tokens/tokenizer.py lays it out."""
    flat_tokens = [token for document in documents for token in document]
    path.write_bytes(np.array(flat_tokens, f"<u{width}").tobytes())
    ends = np.cumsum([len(document) for document in documents]).astype("<u8")
    path.with_name(f"{path.name}.index").write_bytes(ends.tobytes())
    if loss is not None:
        path.with_name(f"{path.name}.loss").write_bytes(bytes(value for mask in loss for value in mask))
    if metadata is not None:
        path.with_name(f"{path.name}.metadata").write_text(metadata)
    return path


def write_llmc(path: Path, tokens: list[int], magic: int = 20240520, **changed: int) -> Path:
    """As llm.c's dev/data/data_common.py lays it out."""
    version, kind = numpy_shards.LLMC[20240801 if magic == 20240801 else 20240520]
    header = np.zeros(256, "<i4")
    header[:3] = magic, changed.get("version", version), changed.get("count", len(tokens))
    path.write_bytes(header.tobytes() + np.array(tokens, kind).tobytes())
    return path


def write_nmoe(path: Path, tokens: list[int], spans: list[tuple[int, int]], **changed: int | bytes) -> Path:
    """As nmoe/data/index.py lays it out."""
    np.save(path, np.array(tokens, np.uint32))
    magic, version = changed.get("magic", b"NMOEIDX\x00"), changed.get("version", 1)
    head = struct.pack("<8sQQQ", magic, version, changed.get("count", len(spans)), 0)
    path.with_suffix(".idx").write_bytes(head + np.array(spans, "<u8").tobytes())
    return path
