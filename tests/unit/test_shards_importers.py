"""Importers: what other systems wrote comes back document by document, and what is damaged is refused by name."""

from __future__ import annotations

import gzip
import itertools
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.byte_tokenizer import byte_tokenizer
from tokenizers import Tokenizer, models

from gristmill.base.errors import DataError, UsageError
from gristmill.shards.importers import datatrove, flat, megatron, numpy_shards
from gristmill.shards.importers.api import find_inputs, import_source
from gristmill.shards.importers.command import import_
from gristmill.shards.importers.flat import Found
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.tokenizer import load_tokenizer, tokenizer_info
from gristmill.shards.writer import write_manifest

EOS = 256  # of the byte tokenizer
NUMBERS = st.lists(st.integers(0, 127), max_size=12)
Documents = list[list[int]]


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


def imported(root: Path, name: str = "s") -> dict[str, list[int]]:
    dataset = open_dataset(root)
    dataset.verify()
    source = dataset.sources[name]
    return {
        document.id: document.tokens[:-1].tolist()
        for split in ("train", "valid")
        for document in source.split(split).documents()
    }


# Megatron


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


DOCUMENTS: list[Documents] = [[[1, 2, 3], [4]], [[5, EOS]], [[6, 7]]]
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


# datatrove


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


TOKENS = [1, 2, EOS, 3]
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


# tokenizers


def test_the_end_of_document_is_named_known_or_asked_for(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path / "gpt" / "tokenizer.json", ("<|stop|>", "</s>"))
    info = tokenizer_info(path)
    assert (info.name, info.vocab_size, info.eos_id) == ("gpt", 258, 257)
    assert tokenizer_info(path, "<|stop|>").eos_id == tokenizer_info(path, "256").eos_id == 256
    with pytest.raises(UsageError, match="has no token '<eos>'"):
        tokenizer_info(path, "<eos>")
    with pytest.raises(UsageError, match="id 258 is outside its vocabulary of 258"):
        tokenizer_info(path, "258")
    with pytest.raises(UsageError, match=r"name its own \(eos\)"):
        tokenizer_info(byte_tokenizer(tmp_path / "none.json", ("<|stop|>",)))


def test_a_vocabulary_with_holes_is_as_large_as_its_highest_id(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 70_000}, unk_token="a"))
    tokenizer.save(str(tmp_path / "t.json"))
    assert tokenizer_info(tmp_path / "t.json").vocab_size == 70_001
    assert tokenizer_info(tmp_path / "t.json").dtype == "u32"


def test_a_tokenizer_that_would_truncate_or_pad_does_neither(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path / "t.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    assert [len(load_tokenizer(path).encode(text).ids) for text in ("ab", "abcdefghijkl")] == [2, 12]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": 3}', '{"model": {"type": "?"}}', '{"model": {}, "added_tokens": [3]}']
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=r"t\.json: not "):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(tmp_path / "absent.json")


# all of it


def write_chat(path: Path) -> Path:
    path.write_text('{"prompt": "Hi", "completion": "Yo"}\n')
    return path


def test_kinds_are_told_from_the_files(tmp_path: Path, tokenizer: Path) -> None:
    for folder in ("m/deep", "d", "n", "c", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    write_megatron(tmp_path / "m" / "deep" / "web.v1_document", DOCUMENTS)
    write_datatrove(tmp_path / "d" / "00000.ds", [[1]], loss=[[1]], metadata="x|2\n1\n1 T")
    write_nmoe(tmp_path / "n" / "a.npy", TOKENS, [(0, 4)])
    write_llmc(tmp_path / "n" / "b.bin", TOKENS)
    write_chat(tmp_path / "c" / "a.JSONL")
    assert find_inputs("auto", [tmp_path / "m"])[1].keys() == {"deep/web.v1_document.bin"}
    prefix = tmp_path / "m" / "deep" / "web.v1_document"
    for path in (prefix, Path(f"{prefix}.idx"), Path(f"{prefix}.bin")):
        assert find_inputs("auto", [path]) == ("megatron", {"web.v1_document.bin": Path(f"{prefix}.bin")})
    assert find_inputs("auto", [Path(f"{prefix}.idx"), Path(f"{prefix}.bin")])[1].keys() == {"web.v1_document.bin"}
    assert find_inputs("auto", [tmp_path / "d"]) == ("datatrove", {"00000.ds": tmp_path / "d" / "00000.ds"})
    assert find_inputs("auto", [tmp_path / "n"])[1].keys() == {"a.npy", "b.bin"}
    assert find_inputs("auto", [tmp_path / "c"])[0] == "chat"
    with pytest.raises(UsageError, match=r"several kinds: .*numpy.*chat"):
        find_inputs("auto", [tmp_path / "n", tmp_path / "c"])
    with pytest.raises(UsageError, match="no file there that can be imported"):
        find_inputs("auto", [tmp_path / ".hidden"])
    with pytest.raises(UsageError, match=r"absent: no such file"):
        find_inputs("auto", [tmp_path / "absent"])
    (tmp_path / "n" / "train.bin").write_bytes(np.array(TOKENS, "<u2").tobytes())
    with pytest.raises(UsageError, match=r"train\.bin: cannot tell what it is"):
        find_inputs("auto", [tmp_path / "n"])
    (tmp_path / "m" / "other").mkdir()
    other = write_megatron(tmp_path / "m" / "other" / "web.v1_document", DOCUMENTS)
    with pytest.raises(UsageError, match="have one name; give the folder that both are in"):
        find_inputs("auto", [prefix, other])
    assert len(find_inputs("auto", [tmp_path / "m"])[1]) == 2
    with pytest.raises(UsageError, match="is for flat arrays"):
        import_source("auto", [prefix], tmp_path / "out", "s", tokenizer, dtype="uint16")


def test_an_import_is_a_source_like_any_other(
    tmp_path: Path, tokenizer: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command: documents come back with their places, other sources stay, workers change nothing."""
    random = np.random.default_rng(5)
    documents = [[random.integers(0, 256, n).tolist(), [EOS]] for n in random.integers(0, 20, 60)]
    (tmp_path / "in").mkdir()
    write_megatron(tmp_path / "in" / "web", documents, 4)
    import_([tmp_path / "in"], tmp_path / "out", "web", tokenizer, valid_fraction=0.2, licence="MIT")
    import_([write_chat(tmp_path / "c.jsonl")], tmp_path / "out", "s", tokenizer)
    expected = without_eos(joined(documents))
    assert imported(tmp_path / "out", "web") == {f"web.bin:{row}": tokens for row, tokens in expected.items()}
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.sources) == {"web", "s"}
    manifest = dataset.sources["web"].manifest
    assert manifest.licence == "MIT"
    assert manifest.train and manifest.valid
    assert [entry["path"] for entry in manifest.inputs] == ["web.bin", "web.idx"]
    printed = capsys.readouterr().out
    assert f"web: {len(documents) - len(expected)} documents without a token left out" in printed
    assert "train tokens of" in printed and "valid tokens of" in printed
    other = import_source(
        "megatron", [tmp_path / "in"], tmp_path / "two", "web", tokenizer, valid_fraction=0.2, licence="MIT", workers=2
    )
    assert other.manifest == manifest


def test_ids_outside_the_vocabulary_are_refused_by_document(tmp_path: Path, tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "web", [[[1, 2]], [[3, 257]]])
    with pytest.raises(DataError, match=r"web\.bin, row 1, .*token id 257 is outside the vocabulary of 257"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)
    path = write_megatron(tmp_path / "web", [[[1, -2]]], 4)
    with pytest.raises(DataError, match=r"web\.bin, row 0, .*token id -2"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)


@pytest.mark.parametrize("documents", [[], [[[EOS]], [[]]]], ids=["none", "empty"])
def test_no_document_at_all_is_refused(tmp_path: Path, tokenizer: Path, documents: list[Documents]) -> None:
    path = write_megatron(tmp_path / "web", documents)
    with pytest.raises(DataError, match="holds no document"):
        import_source("auto", [path], tmp_path / "out", "s", tokenizer)
