"""The writer: which document goes where, the same bytes from any number of processes, and going on after a kill."""

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import spool_parts
from tests.support.spool_parts import PARTS, SIZES, SPEC, TOKENIZER, calls, parts, table

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards.manifest import read_source_manifest, source_files
from gristmill.shards.reader import open_dataset
from gristmill.shards.writer import SourceSpec, write_manifest, write_source
from gristmill.shards.writing import documents
from gristmill.shards.writing.layout import Filling, Start, fill

ROOT = Path(__file__).parents[2]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    tables = [table(part) for part in range(PARTS)]
    write_source(root, SPEC, tables, shard_tokens=SIZES["shard_tokens"], ramp=SIZES["ramp"])
    return root


# Layout -----------------------------------------------------------------------------------------------------------


def one_by_one(lengths: list[int], shard_tokens: int, ramp: tuple[int, ...]) -> list[Start]:
    """The same as fill, a document at a time, as one would tell it."""
    starts: list[Start] = []
    token = held = 0
    for document, length in enumerate(lengths):
        size = min((*ramp, *[shard_tokens] * len(starts))[max(len(starts) - 1, 0)], shard_tokens) if starts else 0
        if starts and held + length <= size:
            held += length
        else:
            for skip in range(0, length, shard_tokens):
                starts.append(Start(token + skip, document, skip))
                held = min(length - skip, shard_tokens)
        token += length
    return starts


sizes = st.integers(1, 40)


@given(st.lists(st.integers(1, 90), max_size=60), sizes, st.lists(sizes, max_size=4), st.lists(st.integers(1, 20)))
def test_every_document_has_one_place_whatever_the_stretches(
    lengths: list[int], shard_tokens: int, ramp: list[int], cuts: list[int]
) -> None:
    whole, starts = fill(Filling(), np.array(lengths, np.int64), shard_tokens, ramp)
    assert starts == one_by_one(lengths, shard_tokens, tuple(ramp))
    filling, found = Filling(), []
    bounds = [0, *itertools.takewhile(lambda cut: cut < len(lengths), itertools.accumulate(cuts)), len(lengths)]
    for low, high in itertools.pairwise(bounds):
        filling, more = fill(filling, np.array(lengths[low:high], np.int64), shard_tokens, ramp)
        found += more
    assert (filling, found) == (whole, starts)
    assert (whole.documents, whole.tokens, whole.shards) == (len(lengths), sum(lengths), len(starts))
    ends = np.cumsum(lengths)
    for i, (this, after) in enumerate(itertools.pairwise([*starts, Start(whole.tokens, len(lengths), 0)])):
        held = after.token - this.token
        assert this.token == int(ends[this.document]) - lengths[this.document] + this.skip
        assert this.skip % shard_tokens == 0 and 0 < held <= shard_tokens
        whole_documents = after.document - this.document
        size = min(ramp[i], shard_tokens) if i < len(ramp) else shard_tokens
        assert held <= size or whole_documents <= 1  # over the ramp only where a document is alone
        if after.document < len(lengths) and not after.skip:  # greedy: the next document did not fit
            assert held + lengths[after.document] > size


# The same bytes ---------------------------------------------------------------------------------------------------


def test_three_processes_write_the_bytes_of_one(clean: Path, tmp_path: Path) -> None:
    seen = []
    given = dict(reversed(parts(tmp_path / "log").items()))
    write_source(
        tmp_path / "out", SPEC, given, workers=3, progress=lambda done, total: seen.append((done, total)), **SIZES
    )
    assert tree(tmp_path / "out") == tree(clean)
    processes = {process for _part, process in calls(tmp_path / "log")}
    assert os.getpid() not in processes and len(processes) > 1
    total = sum(table(part)["tokens"].combine_chunks().flatten().__len__() + 60 for part in range(PARTS))
    assert seen[0] == (0, total) and seen[-1] == (total, total) and seen == sorted(seen)


documents_of = st.lists(
    st.tuples(st.text(max_size=4), st.integers(0, 30)), unique_by=lambda pair: pair[0], min_size=1, max_size=40
)


@settings(max_examples=12)
@given(documents_of, st.integers(1, 5), st.integers(1, 60), st.integers(2, 25), st.randoms())
def test_any_parts_in_any_order_and_any_memory_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, drawn: list, count: int, memory: int, shard_tokens: int, random
) -> None:
    rows = [{"id": i, "tokens": [1 + n % 9] * n, "file": "f", "row": n} for i, n in drawn]
    schema = pa.schema([("id", "string"), ("tokens", pa.list_(pa.int32())), ("file", "string"), ("row", "int64")])
    spec = SourceSpec("docs", TOKENIZER, salt="s", valid_fraction=0.3)
    roots = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")]
    sizes = {"shard_tokens": shard_tokens, "ramp": (7,)}
    write_source(roots[0], spec, [pa.Table.from_pylist(rows, schema)], **sizes)
    random.shuffle(rows)
    pieces = {f"{i}": functools.partial(iter, [pa.Table.from_pylist(rows[i::count], schema)]) for i in range(count)}
    write_source(roots[1], spec, pieces, memory_tokens=memory, **sizes)
    assert tree(roots[0]) == tree(roots[1])
    write_manifest(roots[0])
    splits = open_dataset(roots[0]).sources["docs"].splits.values()
    found = {d.id: len(d.tokens) - 1 for split in splits for d in split.documents()}
    assert found == dict(drawn)


@pytest.mark.parametrize("kinds", [1, 3])
def test_equal_keys_are_ordered_by_id_also_across_runs_and_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    def few_keys(ids: list[str], salt: str) -> np.ndarray:
        return np.array([int(i.rpartition("-")[2]) % kinds for i in ids], np.uint64) << np.uint64(62)

    monkeypatch.setattr(documents, "keys_of", few_keys)
    spec = SourceSpec("docs", TOKENIZER)
    for name, tables, memory in (("a", [table(0), table(1)], 10**6), ("b", [table(1), table(0)], 500)):
        write_source(tmp_path / name, spec, tables, shard_tokens=2_000, ramp=(), memory_tokens=memory)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    write_manifest(tmp_path / "a")
    split = open_dataset(tmp_path / "a").sources["docs"].split("train")
    ids = [document.id for document in split.documents()]
    assert ids == sorted(ids, key=lambda i: (int(i.rpartition("-")[2]) % kinds, i)) and len(set(ids)) == 120
    again = table(1).slice(5, 1)
    with pytest.raises(DataError, match=r"one id: 1\.jsonl, row 5, id '1-5', and 1\.jsonl, row 5"):
        write_source(tmp_path / "c", spec, [table(0), table(1), again], memory_tokens=500)


# Killed, and going on ---------------------------------------------------------------------------------------------


def start(folder: Path, log: Path, workers: int, hang_at: int = -1, hang_after: int = 0) -> subprocess.Popen[str]:
    arguments = [folder, log, workers, hang_at, hang_after]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.spool_parts", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def runs(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text() if Path("/proc").is_dir() else True
    return False


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_while_spooling_it_reads_only_what_is_missing(clean: Path, tmp_path: Path, workers: int) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    process = start(folder, log, workers, hang_at=PARTS - 1)
    spool = folder / ".spool-docs"
    wait_for(lambda: len(calls(log)) == PARTS and len(list(spool.glob("part-*.json"))) == PARTS - 1, process)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(runs(each) for _part, each in calls(log)))  # no worker outlives it
    assert not (folder / "sources").exists()
    again = tmp_path / "again"
    write_source(folder, SPEC, parts(again), resume_key="k", **SIZES)
    assert [part for part, _process in calls(again)] == [PARTS - 1]
    assert tree(folder) == tree(clean)


def test_killed_while_building_it_builds_only_what_is_missing(clean: Path, tmp_path: Path) -> None:
    folder, log, again = tmp_path / "out", tmp_path / "log", tmp_path / "again"
    process = start(folder, log, 1, hang_after=20_000)
    assert process.stdout is not None and process.stdout.readline() == "hanging\n"
    process.kill()
    process.communicate()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.u16")}
    assert 3 < len(written) < len(list(clean.rglob("*.u16")))
    assert not (folder / "sources/docs/manifest.json").exists()
    (folder / "sources/docs/tokens/000/.00009-half.u16.tmp-1-1").write_bytes(b"half")
    seen: list[int] = []
    write_source(folder, SPEC, parts(again), resume_key="k", progress=lambda done, total: seen.append(done), **SIZES)
    assert not again.exists() and seen[0] >= 20_000
    assert {path: path.stat().st_mtime_ns for path in written} == written
    write_manifest(folder)
    assert {path: data for path, data in tree(folder).items() if path in tree(clean)} == tree(clean)
    assert not list(folder.rglob("*half*"))


def test_a_spool_of_other_inputs_or_of_no_key_is_not_gone_on_with(clean: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    log = tmp_path / "log"
    write = functools.partial(write_source, tmp_path / "out", SPEC, **SIZES)
    spool = tmp_path / "out/.spool-docs"
    with pytest.raises(StopError):
        write(parts(log), resume_key="a", progress=stop)
    assert len(calls(log)) == PARTS and spool.is_dir()
    with pytest.raises(StopError):
        write(parts(log), resume_key="b", progress=stop)
    assert len(calls(log)) == 2 * PARTS
    fewer = dict(list(parts(log).items())[1:])
    with pytest.raises(StopError):
        write(fewer, resume_key="b", progress=stop)
    assert len(calls(log)) == 3 * PARTS - 1
    (spool / "spool.json").unlink()  # as a kill amid the removal leaves it: the state is gone first
    next(spool.rglob("*.arrow")).unlink()
    with pytest.raises(StopError):
        write(parts(log), resume_key="b", progress=stop)
    assert len(calls(log)) == 4 * PARTS - 1
    with pytest.raises(StopError):
        write(parts(log), progress=stop)
    assert len(calls(log)) == 5 * PARTS - 1 and not spool.exists()
    write(parts(log))
    assert tree(tmp_path / "out") == tree(clean)


def test_a_failing_part_ends_it_with_its_own_error(tmp_path: Path) -> None:
    bad = table(1).append_column("loss", pa.nulls(60, pa.list_(pa.bool_()))).drop_columns(["bytes"])
    given = {"a": functools.partial(spool_parts.read, 0, tmp_path / "log", -1), "b": functools.partial(iter, [bad])}
    with pytest.raises(DataError, match="no column 'bytes'"):
        write_source(tmp_path, SPEC, given, workers=2, **SIZES)
    with pytest.raises(GristmillError, match="one of 2 processes was killed"):
        write_source(tmp_path, SPEC, {"a": functools.partial(iter, [table(0)]), "b": _die}, workers=2, **SIZES)
    with pytest.raises(UsageError, match="workers"):
        write_source(tmp_path, SPEC, given, workers=0, **SIZES)
    assert not (tmp_path / ".spool-docs").exists()


def _die() -> list[pa.Table]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_two_writers_of_one_source_do_not_meet(tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        write_source(tmp_path, SPEC, [table(0)], **SIZES)

    with pytest.raises(GristmillError, match="another process writes this source"):
        write_source(tmp_path, SPEC, [table(0)], progress=second, **SIZES)


# A new version over an old one ------------------------------------------------------------------------------------


def test_the_old_dataset_stands_until_the_new_manifest_does(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(b"ids")
    root = tmp_path / "out"
    masked = table(0).append_column("loss", pa.array([[1] * n.as_py() for n in _lengths(table(0))]))
    write_source(root, SPEC, [masked], **SIZES)
    write_manifest(root, tokenizer=tokenizer)
    before = tree(root)
    checked = []

    def check(done: int, total: int) -> None:
        checked.append(open_dataset(root).verify())

    write_source(root, SPEC, [masked], progress=check, **SIZES)
    assert tree(root) == before and checked  # nothing has changed: the dataset is never taken down
    write_source(root, SPEC, [table(0), table(1)], progress=check, **SIZES)
    assert checked[-1] == checked[0] == open_dataset(root).verify()  # until the manifest is exchanged
    assert list(root.rglob("*.u8"))
    manifest = write_manifest(root)
    assert manifest.tokenizer_file is not None
    assert not list(root.rglob("*.u8"))
    listed = {file.path for file in source_files(read_source_manifest(root / "sources/docs/manifest.json"))}
    shards = [path for path in tree(root) if "-" in path and "/manifest-" not in path]
    assert {path.removeprefix("sources/docs/") for path in shards} == listed
    assert len(list(root.glob("sources/docs/manifest-*.json"))) == 1
    open_dataset(root).verify()


def _lengths(rows: pa.Table) -> pa.ChunkedArray:
    return documents.compute.list_value_length(rows["tokens"])


# Loss masks and columns -------------------------------------------------------------------------------------------


def with_loss(rows: pa.Table, kind: pa.DataType) -> pa.Table:
    masks = [[(i + j) % 3 == 0 for j in range(n.as_py())] for i, n in enumerate(_lengths(rows))]
    return rows.append_column("loss", pa.array(masks, pa.list_(pa.bool_())).cast(pa.list_(kind)))


@pytest.mark.parametrize("kind", [pa.bool_(), pa.uint8(), pa.int64()], ids=str)
def test_loss_masks_come_back_and_eos_is_as_its_documents_last_token(tmp_path: Path, kind: pa.DataType) -> None:
    empty = pa.table({"id": ["e"], "tokens": [[]], "loss": [[]], "file": ["f"], "row": [0], "bytes": [0]})
    write_source(tmp_path, SPEC, [with_loss(table(0), kind), empty], shard_tokens=250, ramp=(), memory_tokens=500)
    write_manifest(tmp_path)
    source = open_dataset(tmp_path).sources["docs"]
    assert any(shard.continues for shard in source.manifest.train)  # masks of cut documents too
    found: dict[str, list[int]] = {}
    for split in source.splits.values():
        for i, shard in enumerate(split.shards):
            assert shard.loss is not None and shard.loss.path.endswith(f"/{i:05d}-{shard.loss.sha256[:8]}.u8")
            loss = split.loss(i)
            assert loss is not None and loss.dtype == np.uint8
            for name, piece in zip(split.meta(i)["id"].to_pylist(), np.split(loss, split.ends(i)[:-1])):
                found.setdefault(name, []).extend(piece.tolist())
    for i, (name, n) in enumerate(zip(table(0)["id"].to_pylist(), _lengths(table(0)).to_pylist())):
        expected = [int((i + j) % 3 == 0) for j in range(n)]
        assert found[name] == [*expected, expected[-1]]
    assert found["e"] == [1]


def test_masks_that_do_not_fit_name_the_document(tmp_path: Path) -> None:
    masked = with_loss(table(0, 3), pa.uint8())
    masks = masked["loss"].to_pylist()

    def write(*tables: pa.Table) -> None:
        write_source(tmp_path, SPEC, tables, **SIZES)

    def given(*masks: list[int] | None) -> pa.Table:
        return table(0, 3).append_column("loss", pa.array(masks, pa.list_(pa.int16())))

    with pytest.raises(DataError, match=rf"row 1, id '0-1': its loss mask has 2 values for {len(masks[1])} tokens"):
        write(given(masks[0], [0, 1], masks[2]))
    with pytest.raises(DataError, match="row 2, id '0-2': has no loss mask where others do"):
        write(given(masks[0], masks[1], None))
    with pytest.raises(DataError, match="row 1, id '0-1': its loss mask holds other values than 0 and 1"):
        write(given(masks[0], [2] * len(masks[1]), masks[2]))
    with pytest.raises(DataError, match=r"row 0, id '0-0': has a loss mask, but 1\.jsonl, row 0, id '1-0': has none"):
        write(masked, table(1))
    pieces = {"a": functools.partial(iter, [masked]), "b": functools.partial(iter, [table(1)])}
    with pytest.raises(DataError, match=r"row 0, id '0-0': has a loss mask, but 1\.jsonl, row 0, id '1-0': has none"):
        write_source(tmp_path, SPEC, pieces, **SIZES)
    write(given(None, None, None), table(1))  # a column of nulls is no mask
    assert not list(tmp_path.rglob("*.u8"))


def test_more_columns_are_cast_or_refused_by_name(tmp_path: Path) -> None:
    rows = table(0, 3).append_column("scores.probe", pa.array([0.5, None, 1.0], pa.float64()))
    rows = rows.append_column("url", pa.array(["a", "b", None])).append_column("ignored", pa.array([1, 2, 3]))
    columns: dict[str, documents.ColumnType] = {"bytes": "int64", "scores.probe": "float32", "url": "string"}
    spec = SourceSpec("docs", TOKENIZER, columns=columns)
    write_source(tmp_path, spec, [rows], **SIZES)
    write_manifest(tmp_path)
    split = open_dataset(tmp_path).sources["docs"].split("train")
    meta = split.meta(0)
    assert meta.column_names == ["id", "file", "row", "tokens", "score", "language", *columns]
    assert [str(kind) for kind in meta.schema.types[-3:]] == ["int64", "float", "string"]
    by_id = {row["id"]: row for row in meta.to_pylist()}
    assert by_id["0-0"]["scores.probe"] == 0.5 and by_id["0-1"]["scores.probe"] is None
    assert [by_id[f"0-{i}"]["url"] for i in range(3)] == ["a", "b", None]
    assert by_id["0-2"]["bytes"] == rows["bytes"][2].as_py()
    assert {document.id: document.meta["url"] for document in split.documents()}["0-1"] == "b"
    with pytest.raises(DataError, match=r"column 'bytes' cannot be int64: .*high"):
        write_source(tmp_path, spec, [rows.set_column(4, "bytes", [["1", "high", "2"]])], **SIZES)
    with pytest.raises(DataError, match="no column 'url'"):
        write_source(tmp_path, spec, [rows.drop_columns(["url"])], **SIZES)


@pytest.mark.parametrize("tokens", [["a"], [[1.5]], [[[1]]], [[None]]], ids=str)
def test_tokens_that_are_no_lists_of_whole_numbers_are_refused(tmp_path: Path, tokens: list) -> None:
    rows = pa.table({"id": ["a"], "tokens": tokens, "file": ["f"], "row": [0], "bytes": [1]})
    with pytest.raises(DataError, match="'tokens'"):
        write_source(tmp_path, SPEC, [rows])


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.large_list(pa.uint64()), pa.list_(pa.int8(), 2)], ids=str)
def test_lists_of_every_kind_are_read_also_when_they_are_slices(tmp_path: Path, kind: pa.DataType) -> None:
    whole = pa.table({"id": list("abcd"), "tokens": pa.array([[i, i + 1] for i in range(4)], kind), "file": ["f"] * 4})
    rows = whole.append_column("row", pa.array(range(4)))
    given = [rows.slice(2, 2), rows.slice(0, 0), pa.concat_tables([rows.slice(1, 1), rows.slice(0, 1)])]
    write_source(tmp_path, SourceSpec("docs", TOKENIZER), given)
    write_manifest(tmp_path)
    found = {d.id: d.tokens.tolist() for d in open_dataset(tmp_path).sources["docs"].split("train").documents()}
    assert found == {name: [i, i + 1, TOKENIZER.eos_id] for i, name in enumerate("abcd")}
