"""Ingest of files that are broken in every way that files break: all that is good comes in, all that is bad is told."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.base.errors import UsageError
from gristmill.datapipe.document import SCHEMA
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig, IngestJob
from gristmill.datapipe.ingest.inputs import SUFFIXES, discover
from gristmill.datapipe.ingest.main_text import CRASHED, SLOW
from gristmill.datapipe.ingest.readers import read_rows
from gristmill.datapipe.ingest.rows import Bad, Row
from gristmill.datapipe.ingest.splitting import LookJob, Seen
from gristmill.datapipe.ingest.warc import CUT_OFF, NO_TEXT, PageConfig

GOOD = {"id": "a", "text": "one good document", "source": "web", "url": "https://example.org", "score": 3}


def ingest(folder: Path, *inputs: Path | str, **config: Any) -> tuple[list[dict], list[dict]]:
    """(documents, quarantine) of `inputs`."""
    whole = Ingest(tuple(str(path) for path in inputs), IngestConfig(**config))
    files, seen = whole.discover(folder / "run"), Seen(folder / "seen.json")
    for batch in seen.missing(whole.ranges(files)):
        seen.learn(batch, LookJob("look")(batch))
    job = IngestJob(whole.config, folder / "documents", folder / "quarantine")
    for piece in whole.pieces(files, seen):
        job(piece)
    documents: list[dict] = []
    for path in sorted((folder / "documents").glob("part-*.parquet")):
        table = pq.ParquetFile(path).read()
        table.validate(full=True)
        assert table.schema.equals(SCHEMA)
        documents += table.to_pylist()
    quarantine = [json.loads(line) for path in sorted((folder / "quarantine").glob("*")) for line in path.open()]
    return documents, quarantine


def line(**values: object) -> bytes:
    return json.dumps({**GOOD, **values}).encode() + b"\n"


def test_every_kind_of_bad_line_is_quarantined_and_the_rest_comes_in(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        line(id="1"), b"{not json\n", b'{"id": "2"}\n', b'{"text": 5}\n', line(text="  \n "), b"[1, 2]\n",
        b'{"text": "\xff\xfe broken"}\n', b'{"text": "lone \\ud800 surrogate"}\n', b"\n", line(text="x" * 5000),
        line(id=None), b'{"text": "' + b"[" * 900 + b"\n", line(id="last")[:-1],
    ]  # fmt: skip
    path.write_bytes(b"".join(lines))
    documents, quarantine = ingest(tmp_path, path, max_line_bytes=4096)
    assert [document["id"] for document in documents] == ["1", "bad.jsonl:11", "last"]
    assert documents[0]["row"] == 1 and documents[2]["row"] == 13 and json.loads(documents[0]["meta"]) == {"score": 3}
    assert [(bad["row"], bad["reason"]) for bad in quarantine] == [
        (2, "not JSON"), (3, "no text"), (4, "no text"), (5, "empty document"), (6, "not a JSON object"),
        (7, "invalid UTF-8"), (8, "invalid Unicode"), (10, "line too long"), (12, "not JSON"),
    ]  # fmt: skip
    assert {bad["file"] for bad in quarantine} == {"bad.jsonl"}


def test_a_huge_line_is_read_past_without_being_held(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "huge.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(line(id="before"))
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + line(id="after"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents, quarantine = ingest(tmp_path, path, max_line_bytes=2**20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024  # KiB; the line has 100 MiB
    assert [document["id"] for document in documents] == ["before", "after"]
    assert quarantine[0]["reason"] == "line too long" and quarantine[0]["row"] == 2


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_corrupt_stream_gives_what_came_before_the_damage(tmp_path: Path, suffix: str, damage: str) -> None:
    generator = random.Random(0)
    text = b"".join(line(id=str(n), text=f"document {n} {generator.random()}" * 20) for n in range(2000))
    data = gzip.compress(text) if suffix == "gz" else zstandard.compress(text)
    data = data[: len(data) * 2 // 3]
    if damage == "garbage":
        data = data[: len(data) // 2] + bytes(generator.randrange(256) for _ in range(200)) + data[len(data) // 2 :]
    path = tmp_path / f"cut.jsonl.{suffix}"
    path.write_bytes(data)
    documents, quarantine = ingest(tmp_path, path)
    assert suffix == "zst" or 300 < len(documents) < 2000  # zstd decodes block by block, and these are one block
    # A gzip stream may decode to plausible text for a while after the damage; what came before it is whole.
    sound = len(documents) if damage == "truncated" else min(len(documents), 300)
    assert [document["id"] for document in documents[:sound]] == [str(n) for n in range(sound)]
    assert quarantine[-1]["reason"] in ("corrupt compressed stream", "not JSON", "invalid UTF-8")
    assert any(bad["reason"] == "corrupt compressed stream" for bad in quarantine)


def test_zstd_of_several_frames_and_not_compressed_at_all(tmp_path: Path) -> None:
    several = tmp_path / "several.jsonl.zst"
    several.write_bytes(zstandard.compress(line(id="1")) + zstandard.compress(line(id="2")))
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(line(id="3"))
    documents, quarantine = ingest(tmp_path, several, plain)
    assert [document["id"] for document in documents] == ["1", "2"]
    assert [bad["reason"] for bad in quarantine] == ["corrupt compressed stream"]


def test_parquet_with_wrong_columns_counts_all_its_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b", "c"]}), tmp_path / "wrong.parquet")
    pq.write_table(pa.table({"text": ["x", None, "z"], "n": [1, 2, 3]}), tmp_path / "right.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    documents, quarantine = ingest(tmp_path, tmp_path)
    assert [document["text"] for document in documents] == ["x", "z"]
    assert documents[1]["source"] == "right" and documents[1]["row"] == 2
    told = {bad["file"]: (bad["reason"], bad["rows"]) for bad in quarantine}
    assert told == {
        "wrong.parquet": ("wrong columns", 3),
        "right.parquet": ("no text", 1),
        "broken.parquet": ("corrupt Parquet file", 1),
    }


def test_hostile_values_cost_one_row_each(tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n" + line(source="../etc") + line(id="good"))
    times = pa.array([0, 2**50], pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["x", "y"], "when": times}), tmp_path / "my times.parquet")
    documents, quarantine = ingest(tmp_path, path, tmp_path / "my times.parquet")
    assert [document["id"] for document in documents] == ["good", "my times.parquet:0"]
    assert documents[1]["source"] == "my-times"
    assert [(bad["row"], bad["reason"]) for bad in quarantine] == [
        (1, "not JSON"),
        (2, "bad source name"),
        (1, "unreadable value"),
    ]


def test_what_a_damaged_file_loses_is_counted(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"text {n}" for n in range(20_000)]}), tmp_path / "torn.parquet", row_group_size=5000
    )
    data = bytearray((tmp_path / "torn.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "torn.parquet").write_bytes(data)
    generator = random.Random(0)
    text = b"".join(line(id=str(n), text=f"document {n} {generator.random()}") for n in range(20_000))
    (tmp_path / "cut.jsonl.gz").write_bytes((whole := gzip.compress(text))[: len(whole) // 2])
    documents, quarantine = ingest(tmp_path, tmp_path)
    lost = {bad["file"]: bad["rows"] for bad in quarantine}
    come = {name: sum(document["file"] == name for document in documents) for name in lost}
    assert come["torn.parquet"] + lost["torn.parquet"] == 20_000
    assert lost["cut.jsonl.gz"] >= 1  # the file's end is gone, and with it how much there was


def test_partitions_are_row_ranges_and_sources_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"".join(line(id=str(n), source="ab"[n % 2]) for n in range(100)))
    documents, _ = ingest(tmp_path, path, rows_per_partition=8, sources=("a",))
    assert [document["id"] for document in documents] == [str(n) for n in range(0, 100, 2)]
    assert len(list((tmp_path / "documents").glob("part-*.parquet"))) == 7


@pytest.mark.parametrize("given", ["nowhere/*.jsonl", "text.txt"])
def test_inputs_that_cannot_be_read_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("hello")
    with pytest.raises(UsageError, match="--input"):
        discover((given,))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**66) | st.integers(-(2**66), -(2**62))
    | st.floats() | st.text(st.characters(), max_size=8),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=4),
    max_leaves=12,
)  # fmt: skip
HOSTILE_LINES = [
    b'{"a": 18446744073709551616}', b'{"a": [{"b": -9223372036854775809}]}', b'{"a": 1e400}', b'{"a": NaN}',
    b'{"a": -0}', b'{"a": "\\ud800"}', b'{"\\ud83d\\u0041": 1}', b'{"a": "\xed\xa0\x80"}', b'\xef\xbb\xbf{"a": 1}',
    b'{"a": 1}\x00', '{"a": "\xe9"}'.encode("utf-16"), b'{"a": 1, "a": 2}', b'{"a": 01}', b'{"a": "\t"}',
    b"[" * 100_000, b'"text"', b"1e5", b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": 1}{"b": 2}', b'{"a": \xc2\xa01}', b"Infinity", b"{}", b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"a": 9223372036854775808.0}', b'{"a": 1E25}',
]  # fmt: skip


def read_one(folder: Path, content: bytes) -> Row | Bad:
    (folder / "a.jsonl").write_bytes(content + b"\n")
    (row,) = read_rows(folder / "a.jsonl", "a.jsonl", "text", 10**6)
    return row


@given(value=JSON, ascii_only=st.booleans(), noise=st.binary(max_size=2), place=st.floats(0, 1))
@settings(max_examples=300)
@example(value={"a": 2**70}, ascii_only=True, noise=b"", place=0.0)
def test_a_line_is_read_as_json_loads_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: Any, ascii_only: bool, noise: bytes, place: float
) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    at = int(place * len(content))
    _compare(tmp_path_factory.mktemp("json"), content[:at] + noise + content[at:])


@pytest.mark.parametrize("content", HOSTILE_LINES, ids=range(len(HOSTILE_LINES)))
def test_a_hostile_line_is_read_as_json_loads_reads_it(tmp_path: Path, content: bytes) -> None:
    _compare(tmp_path, content)


def _compare(folder: Path, content: bytes) -> None:
    if b"\n" in content or not content.strip():
        return
    try:
        wanted = json.loads(content + b"\n")
    except UnicodeDecodeError:
        wanted = "invalid UTF-8"
    except (ValueError, RecursionError):
        wanted = "not JSON"
    else:
        wanted = wanted if isinstance(wanted, dict) else "not a JSON object"
    row = read_one(folder, content)
    assert repr(row.values if isinstance(row, Row) else row.reason) == repr(wanted)  # repr: 1 is not 1.0, NaN is NaN


def test_what_meta_holds_reads_as_it_stood_in_the_row(tmp_path: Path) -> None:
    extra = {"big": 2**70, "deep": [[{"x": 1.5}]], "words": "é水😀\x00", "b": None, "a": {"z": 1, "y": [True]}}
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(id="1", **extra) + line(id="2", x=[0.1, 1e16, -0.0]) + b'{"text": "x", "n": NaN}\n')
    documents, _ = ingest(tmp_path, path)
    assert json.loads(documents[0]["meta"]) == {**extra, "score": 3}
    assert list(json.loads(documents[0]["meta"])) == sorted([*extra, "score"])
    assert json.loads(documents[1]["meta"]) == {"score": 3, "x": [0.1, 1e16, -0.0]}
    assert documents[2]["meta"] == '{"n":null}' and documents[2]["id"] == "a.jsonl:3"


def test_fields_of_objects_and_structs_and_a_source_for_rows_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(row)
            for row in [
                {"content": {"text": "one", "n": 1}, "key": {"id": 7}}, {"content": {"text": "two"}, "key": {}},
                {"content.text": "three", "content": 5}, {"content": "four"}, {"content": {"text": None}},
                {"content": {"text": "five"}, "source": "books"},
            ]
        )
    )  # fmt: skip
    rows = [{"content": {"text": "six", "n": 2}, "key": {"id": "x"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    documents, quarantine = ingest(tmp_path, tmp_path, text_field="content.text", id_field="key.id", source="web")
    assert [row["text"] for row in documents] == ["one", "two", "three", "five", "six"]
    assert [row["id"] for row in documents] == ["7", "a.jsonl:2", "a.jsonl:3", "a.jsonl:6", "x"]
    assert [row["source"] for row in documents] == ["web", "web", "web", "books", "web"]
    metas = [row["meta"] and json.loads(row["meta"]) for row in documents]
    assert metas == [{"content": {"n": 1}}, {"key": {}}, {"content": 5}, None, {"content": {"n": 2}}]
    assert [(told["row"], told["reason"]) for told in quarantine] == [(4, "no text"), (5, "no text")]
    _, quarantine = ingest(tmp_path / "again", tmp_path / "b.parquet", text_field="content.body")
    assert quarantine[0]["reason"] == "wrong columns"


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"rows_per_partition": 0}, {"piece_bytes": 0}, {"max_line_bytes": -1}, {"source": "no source"}):
        with pytest.raises(UsageError, match=rf"ingest\.{next(iter(wrong))}"):
            IngestConfig(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"page\.max_seconds"):
        PageConfig(max_seconds=0)


def test_the_page_on_ingest_tells_every_setting_reason_and_kind() -> None:
    root = Path(__file__).parents[2]
    told = (root / "docs" / "ingest.md").read_text()
    for config, prefix in ((IngestConfig, "--ingest."), (PageConfig, "--ingest.page.")):
        for field in dataclasses.fields(config):
            assert field.name == "page" or f"`{prefix}{field.name.replace('_', '-')}`" in told, field.name
    code = "".join(path.read_text() for path in (root / "packages/datapipe/src/gristmill/datapipe/ingest").glob("*.py"))
    reasons = set(re.findall(r'Bad\([\w.]+(?: \+ \w+)?, "([^"]+)"', code))
    assert len(reasons) > 12
    for reason in reasons | {NO_TEXT, CUT_OFF, CRASHED, SLOW}:
        assert f"`{reason}`" in told, reason
    assert all(f"`{suffix}`" in told for suffix in SUFFIXES)
