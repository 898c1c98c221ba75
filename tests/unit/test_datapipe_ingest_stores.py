"""Inputs in a store that fsspec reaches: listed and fingerprinted unread, streamed, and held to what they were."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.ingest import storage
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.ingest.inputs import discover
from gristmill.datapipe.ingest.readers import read_rows
from gristmill.datapipe.ingest.splitting import Seen
from gristmill.datapipe.workflow.runner import Runner


class Store(MemoryFileSystem):
    """As S3 looks through fsspec: a checksum per object, and here a count of what is opened and a line that breaks."""

    protocol = "s3"
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class it extends
    pseudo_dirs = [""]  # noqa: RUF012
    opened: list[str] = []  # noqa: RUF012
    broken: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("s3://", "memory://"))

    def unstrip_protocol(self, name: str) -> str:
        return f"s3:/{name}"

    def _tagged(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"ETag": f'"{hash(self.store[info["name"]].getvalue()):x}"', "created": None}

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        info = super().info(path, **options)
        return self._tagged(info) if info["type"] == "file" else info

    def find(self, path: str, *arguments: Any, detail: bool = False, **options: Any) -> Any:
        found: Any = super().find(path, *arguments, detail=True, **options)
        tagged = {name: self._tagged(info) if info["type"] == "file" else info for name, info in found.items()}
        return tagged if detail else list(tagged)

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.opened.append(path)
        file = super()._open(path, *arguments, **options)
        return _Breaking(file.getvalue()) if self.broken else file


class _Breaking:
    """A connection that is lost after some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def readinto(self, buffer: Any) -> int:
        if self._at >= len(self._data) // 2:
            assert Store.broken is not None
            raise Store.broken
        piece = self._data[self._at : self._at + min(len(buffer), 100)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else len(self._data) + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        pass


@pytest.fixture(params=["memory", "s3"])
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(_registry, "s3", Store)
    yield request.param
    for kind in (MemoryFileSystem, Store):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Store.broken = None


def put(url: str, data: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(data)  # pyright: ignore[reportAttributeAccessIssue]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def run(folder: Path, *inputs: str, **config: Any) -> list[dict[str, Any]]:
    outputs = Runner(folder, Ingest(inputs, IngestConfig(**config)), [], workers=0).run()["documents"]
    return [row for part in outputs.parts for row in pq.ParquetFile(outputs.folder / part).read().to_pylist()]


def test_objects_are_found_by_folder_pattern_and_name_and_come_in_as_files_do(scheme: str, tmp_path: Path) -> None:
    base = f"{scheme}://bucket/corpus"
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["from parquet"]}), rows)
    put(f"{base}/a.jsonl", lines("one", "two"))
    put(f"{base}/b.jsonl.gz", gzip.compress(lines("three")))
    put(f"{base}/deep/c.parquet", rows.getvalue().to_pybytes())
    put(f"{base}/notes.txt", b"not for us")
    assert [Path(file.name).name for file in discover((base,))] == ["a.jsonl", "b.jsonl.gz", "c.parquet"]
    assert [Path(file.name).name for file in discover((f"{base}/*.jsonl*",))] == ["a.jsonl", "b.jsonl.gz"]
    assert [Path(file.name).name for file in discover((f"{base}/**/*.parquet", f"{base}/a.jsonl"))] == [
        "c.parquet",
        "a.jsonl",
    ]
    documents = run(tmp_path / "run", base)
    assert [row["text"] for row in documents] == ["one", "two", "three", "from parquet"]
    assert documents[1]["file"].startswith(f"{scheme}://") and documents[1]["file"].endswith("bucket/corpus/a.jsonl")
    assert documents[1]["id"] == documents[1]["file"] + ":2" and documents[1]["source"] == "a"
    told = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert [file["documents"] for file in told] == [2, 1, 1] and all(file["content"] for file in told)
    for nothing in (f"{base}/*.warc", f"{scheme}://bucket/nowhere", f"{base}/deep/none.jsonl"):
        with pytest.raises(UsageError, match="nothing matches"):
            discover((nothing,))
    with pytest.raises(UsageError, match=r"notes\.txt: unknown kind"):
        discover((f"{base}/*.txt",))


def test_pieces_of_an_object_are_those_of_the_file(scheme: str, tmp_path: Path) -> None:
    data = lines(*(f"text {number} é水😀" for number in range(200)))
    put(f"{scheme}://bucket/a.jsonl", data)
    (tmp_path / "a.jsonl").write_bytes(data)
    away = run(tmp_path / "away", f"{scheme}://bucket/a.jsonl", piece_bytes=1000)
    here = run(tmp_path / "here", str(tmp_path / "a.jsonl"), piece_bytes=1000)
    assert [(row["text"], row["row"]) for row in away] == [(row["text"], row["row"]) for row in here]
    assert len(list((tmp_path / "away" / "ledger" / "documents").glob("*.json"))) == -(-len(data) // 1000)


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
def test_what_the_store_vouches_for_is_not_opened_to_learn_that_nothing_changed(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://bucket/a.jsonl"
    put(url, lines("one"))
    Store.opened.clear()
    assert len(run(tmp_path / "run", url)) == 1
    assert len(Store.opened) == 1
    assert len(run(tmp_path / "run", url)) == 1
    assert len(Store.opened) == 1
    put(url, lines("two"))
    assert [row["text"] for row in run(tmp_path / "run", url)] == ["two"]


def test_an_object_that_changes_after_it_was_listed_is_refused(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://bucket/a.jsonl"
    put(url, lines("one"))
    (file,) = discover((url,))
    put(url, lines("one", "two"))
    with pytest.raises(GristmillError, match="changed since it was listed"):
        list(read_rows(file.path, file.name, "text", 100))
    fsspec.filesystem(scheme).rm("/bucket/a.jsonl")
    with pytest.raises(GristmillError, match="cannot be read"):
        list(read_rows(file.path, file.name, "text", 100))


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.warc.gz"])
def test_a_lost_connection_is_an_error_and_no_damage(scheme: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["x" * 50_000]}), rows)
    data = {"a.jsonl": lines(*"abcdefgh" * 500), "a.parquet": rows.getvalue().to_pybytes()}.get(name)
    put(f"{scheme}://bucket/{name}", data or gzip.compress(lines("x" * 9999)))
    (file,) = discover((f"{scheme}://bucket/{name}",))
    for error in (ConnectionResetError(104, "reset"), TimeoutError("token=verysecret timed out"), EOFError("gone")):
        monkeypatch.setattr(Store, "broken", error)
        with pytest.raises(GristmillError, match=r"s3://bucket/a\..*: cannot be read") as caught:
            list(read_rows(file.path, file.name, "text", 10_000))
        assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/a.jsonl",
        "https://example.org/a.jsonl?token=secret",
        "https://secret@example.org/a.jsonl",
    ],
)
def test_a_secret_in_a_url_is_refused_before_anything_writes_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Runner(tmp_path / "run", Ingest((url,)), [], workers=0).run()
    assert "secret" not in str(caught.value) and not (tmp_path / "run").exists()


def test_schemes_that_nobody_knows_and_objects_that_nobody_vouches_for(scheme: str, monkeypatch: Any) -> None:
    with pytest.raises(UsageError, match="unknown scheme 'nosuch'"):
        discover(("nosuch://bucket/a.jsonl",))
    put(f"{scheme}://bucket/a.jsonl", lines("one"))
    monkeypatch.setattr(storage, "stamp_of", lambda *_: "")
    with pytest.raises(UsageError, match="neither checksum nor time"):
        discover((f"{scheme}://bucket/a.jsonl",))


def test_what_stands_for_an_objects_content() -> None:
    s3 = {"Key": "b/a", "size": 5, "ETag": '"ab"', "LastModified": "2024", "StorageClass": "STANDARD"}
    assert storage.stamp_of(s3) == '5:etag:"ab"'
    assert storage.stamp_of({"size": 5, "etag": "CP=", "md5Hash": "xx", "updated": "2024"}) == "5:md5hash:xx"
    assert storage.stamp_of({"size": 5, "mtime": 17.5}) == "5:mtime:17.5"
    assert storage.stamp_of({"size": 5, "name": "a"}) == ""


def test_a_file_url_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    (file,) = discover((f"file://{tmp_path}/a.jsonl",))
    assert file.path == (tmp_path / "a.jsonl").resolve() and file.name == "a.jsonl" and not file.content


def test_seen_is_empty_where_nothing_is_to_be_looked_at(scheme: str, tmp_path: Path) -> None:
    put(f"{scheme}://bucket/a.jsonl", lines("one"))
    ingest = Ingest((f"{scheme}://bucket/a.jsonl",))
    files = ingest.discover(tmp_path)
    assert ingest.ranges(files) == [] and len(ingest.pieces(files, Seen(tmp_path / "seen.json"))) == 1
