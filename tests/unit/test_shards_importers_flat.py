"""Flat arrays of tokens (numpy, llm.c, nmoe) come back document by document, and what is damaged is refused by name."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.foreign_shards import EOS, TOKENS, Documents, rows, small, write_llmc, write_nmoe

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.importers import flat, numpy_shards

__all__ = ["small"]  # fixtures


# numpy, dolma, nmoe, llm.c


@settings(max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=12), min_size=1, max_size=9),
    kind=st.sampled_from(["<u2", ">u2", "<u4", "<i4", "<i8", "<u8"]),
    leading=st.booleans(),
    header=st.sampled_from(["npy", "none", "llmc"]),
)
def test_documents_between_eos_come_back(documents: Documents, kind: str, leading: bool, header: str) -> None:
    stream = [token for d in documents for token in ([EOS, *d] if leading else [*d, EOS])]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "BATCH_TOKENS", 7)
        path, dtype = Path(folder) / "a.npy", ""
        if header == "npy":
            np.save(path, np.array(stream, kind))
        elif header == "none":
            path.write_bytes(np.array(stream, kind).tobytes())
            dtype = kind
        else:
            path = write_llmc(Path(folder) / "a.bin", stream, 20240801 if kind == "<u4" else 20240520)
        found = numpy_shards.find(path, "x", EOS, dtype)
        assert rows(found) == dict(enumerate(documents))


def test_documents_by_an_index_may_hold_eos(tmp_path: Path, small: None) -> None:
    """Where there is an index, EOS inside a document is text; numbers count the empty documents."""
    tokens = [1, EOS, 2, EOS, EOS, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    spans = [(0, 4), (4, 5), (5, 13), (13, 15)]
    expected = {0: [1, EOS, 2], 2: [3, 4, 5, 6, 7, 8, 9, 10], 3: [11, 12]}
    path = write_nmoe(tmp_path / "shard-000000.npy", tokens, spans)
    assert rows(numpy_shards.find(path, "n", EOS)) == expected
    dolma = tmp_path / "part-0-00000.npy"
    dolma.write_bytes(np.array(tokens, "<u2").tobytes())
    lines = "".join(f'{start},{end},"id\nwith, newline",s3://x/y.gz,{i}\r\n' for i, (start, end) in enumerate(spans))
    dolma.with_suffix(".csv.gz").write_bytes(gzip.compress(lines.encode()))
    assert rows(numpy_shards.find(dolma, "d", EOS, "uint16")) == expected
    assert rows(numpy_shards.find(dolma, "d", EOS, "u16")) == expected


def test_a_file_that_begins_within_a_document(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "fineweb_train_000002.bin", [9, 9, EOS, 1, 2, EOS, EOS, 3])
    assert rows(numpy_shards.find(path, "x", EOS)) == {0: [9, 9], 1: [1, 2], 2: [3]}


def make_float(path: Path) -> Path:
    np.save(path / "a.npy", np.zeros(4, np.float32))
    return path / "a.npy"


def make_matrix(path: Path) -> Path:
    np.save(path / "a.npy", np.zeros((4, 2), np.uint16))
    return path / "a.npy"


def make_cut(path: Path) -> Path:
    np.save(path / "a.npy", np.array([1, EOS], np.uint16))
    data = (path / "a.npy").read_bytes()
    (path / "a.npy").write_bytes(data[:-2])
    return path / "a.npy"


def make_long(path: Path) -> Path:
    make_cut(path)
    (path / "a.npy").write_bytes((path / "a.npy").read_bytes() + b"\0" * 6)
    return path / "a.npy"


def make_object(path: Path) -> Path:
    np.save(path / "a.npy", np.array([{}, []], object), allow_pickle=True)
    return path / "a.npy"


def make_spans(path: Path, text: bytes) -> Path:
    np.save(path / "a.npy", np.array([1, 2, EOS], np.uint16))
    (path / "a.csv.gz").write_bytes(text)
    return path / "a.npy"


NUMPY_REFUSALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "float": (make_float, "holds float32 values"),
    "matrix": (make_matrix, "one long row"),
    "cut": (make_cut, "not a .npy file that can be read"),
    "long": (make_long, "its header tells of 132"),
    "object": (make_object, "object|not a .npy file"),
    "no separator": (lambda p: write_llmc(p / "a.bin", [1, 2, 3]), "has no token 256"),
    "llmc cut": (lambda p: write_llmc(p / "a.bin", TOKENS, count=5), "truncated: 4 tokens, its header tells of 5"),
    "llmc long": (lambda p: write_llmc(p / "a.bin", TOKENS, count=3), "longer than its header says"),
    "llmc version": (lambda p: write_llmc(p / "a.bin", TOKENS, version=2), "version 2"),
    "nmoe magic": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 4)], magic=b"MMIDIDX\x00"), "not an index of nmoe"),
    "nmoe version": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 4)], version=2), "version 2"),
    "nmoe cut": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 4)], count=2), "truncated: 1 documents"),
    "nmoe gap": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 2), (3, 4)]), "document 1 begins at token 3"),
    "nmoe overlap": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 3), (2, 4)]), "document 1 begins at token 2"),
    "nmoe backwards": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 4), (4, 3), (3, 4)]), "document 1 ends before"),
    "nmoe tail": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 3)]), "covers tokens 0 to 3, but the file holds 4"),
    "nmoe beyond": (lambda p: write_nmoe(p / "a.npy", TOKENS, [(0, 5)]), "covers tokens 0 to 5, but the file holds 4"),
    "csv text": (lambda p: make_spans(p, gzip.compress(b"a,b,c\n")), "not lines of start,end"),
    "csv cut": (lambda p: make_spans(p, gzip.compress(b"0,3,x\n")[:-4]), "not lines of start,end"),
    "csv tail": (lambda p: make_spans(p, gzip.compress(b"0,2,x\n")), "covers tokens 0 to 2, but the file holds 3"),
}


@pytest.mark.parametrize("case", NUMPY_REFUSALS)
def test_flat_arrays_refused(case: str, tmp_path: Path) -> None:
    make, message = NUMPY_REFUSALS[case]
    with pytest.raises(DataError, match=message):
        rows(numpy_shards.find(make(tmp_path), "a", EOS))


def test_flat_arrays_need_a_dtype_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(np.array(TOKENS, "<u2").tobytes() + b"\0")
    with pytest.raises(UsageError, match="give its dtype"):
        numpy_shards.find(path, "a", EOS)
    with pytest.raises(DataError, match="truncated"):
        numpy_shards.find(path, "a", EOS, "uint16")
    with pytest.raises(UsageError, match="dtype 'word' is none"):
        numpy_shards.find(path, "a", EOS, "word")
    with pytest.raises(DataError, match="holds float32"):
        numpy_shards.find(path, "a", EOS, "float32")
    np.save(path, np.array(TOKENS, np.uint16))
    with pytest.raises(UsageError, match="its header says uint16, not uint32"):
        numpy_shards.find(path, "a", EOS, "uint32")
