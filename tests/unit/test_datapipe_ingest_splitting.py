"""A file read in pieces gives the rows of the file read whole, numbers included, wherever the cuts fall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.base.errors import GristmillError
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig, IngestJob
from gristmill.datapipe.ingest.splitting import LookJob, Piece, Seen

MAX_LINE_BYTES = 60
LINES = st.one_of(
    st.builds(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode(), st.text("aé水😀 ", max_size=12)),
    st.sampled_from([b"", b" ", b"\r", b"not json", b'{"text": 5}', b'{"text": "\xff"}', b'{"text": "' + b"x" * 200]),
)
FILES = st.builds(
    lambda lines, ends, last: b"".join(line + end for line, end in zip(lines, ends, strict=False)) + last,
    st.lists(LINES, max_size=12), st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=12, max_size=12),
    st.sampled_from([b"", b'{"text": "last"}', b"\n"]),
)  # fmt: skip


def planned(folder: Path, path: Path, **config: Any) -> tuple[Ingest, list[Piece]]:
    whole = Ingest((str(path),), IngestConfig(**config))
    files, seen = whole.discover(folder / "run"), Seen(folder / f"seen-{config.get('piece_bytes')}.json")
    for batch in seen.missing(whole.ranges(files)):
        seen.learn(batch, LookJob("look")(batch))
    assert not seen.missing(whole.ranges(files))
    seen.keep()
    return whole, whole.pieces(files, seen)


def read(folder: Path, path: Path, **config: Any) -> tuple[list[dict], list[dict], int]:
    """(documents, quarantine, number of pieces)"""
    whole, pieces = planned(folder, path, **config)
    out = folder / f"out-{config.get('piece_bytes')}"
    job = IngestJob(whole.config, out / "documents", out / "quarantine")
    for piece in reversed(pieces):  # in whatever order
        job(piece)
    documents = [
        row for part in sorted((out / "documents").glob("*.parquet")) for row in pq.ParquetFile(part).read().to_pylist()
    ]
    quarantine = [json.loads(line) for part in sorted((out / "quarantine").glob("*")) for line in part.open()]
    return documents, quarantine, len(pieces)


@given(content=FILES, piece_bytes=st.integers(1, 90))
@example(content=b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', piece_bytes=14)  # every cut is where a line begins
@example(content=b'{"text": "a"}\n\n\n\n{"text": "b"}', piece_bytes=1)
@example(content=b'{"text": "' + b"x" * 500 + b'"}\n{"text": "b"}', piece_bytes=20)
@settings(max_examples=60)
def test_lines_in_pieces_are_the_lines_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, piece_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    (folder / "a.jsonl").write_bytes(content)
    config: dict[str, Any] = {"max_line_bytes": MAX_LINE_BYTES, "rows_per_partition": 2}
    documents, quarantine, pieces = read(folder, folder / "a.jsonl", piece_bytes=2**30, **config)
    assert pieces == 1
    lines = content.split(b"\n")
    assert all(json.loads(lines[row["row"] - 1])["text"] == row["text"] for row in documents)
    assert read(folder, folder / "a.jsonl", piece_bytes=piece_bytes, **config)[:2] == (documents, quarantine)


def test_pieces_follow_from_the_file_alone_and_their_names_sort_as_the_rows_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": "word " * (n % 50)}) + "\n" for n in range(2000)))
    size = path.stat().st_size
    _, pieces = planned(tmp_path, path, piece_bytes=size // 3 + 1)
    assert [piece.key for piece in pieces] == ["00000-00000", "00000-00001", "00000-00002"]
    assert pieces[1].name == "a.jsonl (piece 2 of 3)"
    starts = [piece.span.start for piece in pieces if piece.span]
    assert starts == [0, size // 3, size * 2 // 3]
    assert planned(tmp_path, path, piece_bytes=size)[1][0].span is None
    documents, _, _ = read(tmp_path, path, piece_bytes=size // 3 + 1, rows_per_partition=100)
    assert [int(row["id"]) for row in documents] == [n for n in range(2000) if n % 50]
    assert [row["row"] for row in documents] == [n + 1 for n in range(2000) if n % 50]


def test_what_was_seen_is_not_looked_at_again_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 10)
    whole, first = planned(tmp_path, path, piece_bytes=50)
    parts = whole.ranges(whole.discover(tmp_path / "run"))
    assert len(parts) == 4 and not Seen(tmp_path / "seen-50.json").missing(parts)
    path.write_text('{"text": "two"}\n' * 10)
    changed = whole.ranges(whole.discover(tmp_path / "run"))
    assert sum(map(len, Seen(tmp_path / "seen-50.json").missing(changed))) == 4
    assert {piece.fingerprint for piece in first}.isdisjoint(
        piece.fingerprint for piece in planned(tmp_path, path, piece_bytes=50)[1]
    )
    path.write_text('{"text": "one"}\n' * 10)
    assert planned(tmp_path, path, piece_bytes=50)[1][0].fingerprint == first[0].fingerprint  # content, not time
    (tmp_path / "seen-50.json").write_text("{torn")  # it only saves time
    planned(tmp_path, path, piece_bytes=50)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    whole, pieces = planned(tmp_path, path)
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(GristmillError, match=r"a\.jsonl: changed since it was listed"):
        IngestJob(whole.config, tmp_path / "documents", tmp_path / "quarantine")(pieces[0])
    path.unlink()
    with pytest.raises(GristmillError, match=r"a\.jsonl: cannot be read \(No such file"):
        IngestJob(whole.config, tmp_path / "documents", tmp_path / "quarantine")(pieces[0])


def test_compressed_files_stay_one_piece(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 1000))
    documents, _, pieces = read(tmp_path, tmp_path / "a.jsonl.gz", piece_bytes=10)
    assert pieces == 1 and len(documents) == 1000


def table(rows: int) -> pa.Table:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 10**9, (rows, 8)).astype(str)
    return pa.table({"text": [" ".join(row) for row in words], "n": range(rows)})


@pytest.mark.parametrize("piece_bytes", [20_000, 100_000, 2**30])
def test_row_groups_in_pieces_are_the_rows_of_the_file(tmp_path: Path, piece_bytes: int) -> None:
    path, wanted = tmp_path / "a.parquet", table(5000)
    pq.write_table(wanted, path, row_group_size=700, compression="none")
    documents, quarantine, pieces = read(tmp_path, path, piece_bytes=piece_bytes)
    assert not quarantine and [row["row"] for row in documents] == list(range(5000))
    assert [row["text"] for row in documents] == wanted["text"].to_pylist()
    assert [json.loads(row["meta"])["n"] for row in documents] == list(range(5000))
    assert documents[4321]["id"] == "a.parquet:4321"
    assert pieces == {20_000: 8, 2**30: 1}.get(piece_bytes, pieces) and 1 <= pieces <= 8


@pytest.mark.parametrize("piece_bytes", [20_000, 2**30])
def test_a_damaged_row_group_costs_its_own_rows_and_they_are_counted(tmp_path: Path, piece_bytes: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(5000), path, row_group_size=1000, use_dictionary=False)
    column = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    place = column.data_page_offset + column.total_compressed_size // 2
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    documents, quarantine, _ = read(tmp_path, path, piece_bytes=piece_bytes)
    assert {row["row"] for row in documents} >= {*range(2000), *range(3000, 5000)}
    (told,) = quarantine
    assert told["reason"] == "corrupt Parquet file" and 2000 <= told["row"] < 3000 and "row group 2" in told["detail"]
    assert len(documents) + told["rows"] == 5000


def test_a_parquet_file_without_its_end_is_one_piece_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(5000), path, row_group_size=1000)
    path.write_bytes(path.read_bytes()[:-50])
    documents, quarantine, pieces = read(tmp_path, path, piece_bytes=1000)
    assert pieces == 1 and not documents and quarantine[0]["reason"] == "corrupt Parquet file"


def test_wrong_columns_are_counted_once_over_all_pieces(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x" * 100] * 1000}), tmp_path / "a.parquet", row_group_size=100)
    _, quarantine, pieces = read(tmp_path, tmp_path / "a.parquet", piece_bytes=1)
    assert pieces == 10 and sum(told["rows"] for told in quarantine) == 1000
