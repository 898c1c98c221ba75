"""The saved index: it finds what a slow search finds, is written whole or not at all, and refuses what is not its."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.base.files import sha256_folder, write_json
from gristmill.datapipe import cli
from gristmill.datapipe.dedup import index_writer as module
from gristmill.datapipe.dedup.index import SignatureIndex, sketch_metadata
from gristmill.datapipe.dedup.index_writer import build
from gristmill.datapipe.dedup.minhash import NEVER, MinHashConfig, band_keys, bands_for
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.stages.duplicates import Sketch
from gristmill.datapipe.stages.known import Known, KnownConfig
from gristmill.datapipe.workflow.runner import Runner

SMALL = MinHashConfig(permutations=12)
Signatures = NDArray[np.uint32]
Identities = NDArray[np.uint64]


def sketch(signature: Signatures, identity: Identities, config: MinHashConfig = SMALL) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(signature.reshape(-1)), config.permutations)
    table = pa.table({"identity_high": identity[:, 0], "identity_low": identity[:, 1], "signature": flat})
    return table.replace_schema_metadata(sketch_metadata(config))


def write_run(
    run: Path, signature: Signatures, identity: Identities, keep: list[bool] | None = None, rows: int = 4,
    config: MinHashConfig = SMALL,
) -> Path:  # fmt: skip
    """A finished run of documents named RUN-0, RUN-1, ..., `rows` to a partition."""
    folders = {"documents": "documents", "sketch": "annotations/sketch", "selection": "selection"}
    tables = {
        "documents": pa.table({"id": [f"{run.name}-{row}" for row in range(len(signature))]}),
        "sketch": sketch(signature, identity, config),
        "selection": pa.table({"keep": keep or [True] * len(signature)}),
    }
    for name, folder in folders.items():
        (run / folder).mkdir(parents=True)
        for number, start in enumerate(range(0, len(signature), rows)):
            pq.write_table(tables[name].slice(start, rows), run / folder / f"part-{number:05d}.parquet")
    write_json(run / "ledger" / "outputs.json", folders)
    return run


def random_run(run: Path, count: int, seed: int, **options: object) -> tuple[Path, Signatures, Identities]:
    generator = np.random.default_rng(seed)
    signature = generator.integers(0, 4, (count, 12)).astype(np.uint32)
    identity = generator.integers(0, 2**64, (count, 2), dtype=np.uint64)
    return write_run(run, signature, identity, **options), signature, identity  # pyright: ignore[reportArgumentType]


def slow_lookup(
    stored: Signatures, identities: Identities, signature: Signatures, identity: Identities, threshold: float
) -> tuple[list[int], list[float | None]]:
    """Every query against every entry."""
    bands = bands_for(0.7, stored.shape[1])
    entries: list[int] = []
    similarities: list[float | None] = []
    for one, same in zip(signature, identity, strict=True):
        found, best = -1, None
        for entry, (other, its) in enumerate(zip(stored, identities, strict=True)):
            if (one == NEVER).all() or (other == NEVER).all():
                continue
            copy = (same == its).all()
            cut = slice(0, bands.bands * bands.rows)
            banded = (one[cut] == other[cut]).reshape(bands.bands, bands.rows).all(axis=1).any()
            alike = 2.0 if copy else float((one == other).mean())  # a copy comes before all others
            if (copy or (banded and alike >= threshold)) and alike > (best or 0.0):
                found, best = entry, alike
        entries.append(found)
        similarities.append(best if best is None else float(np.float32(min(best, 1.0))))
    return entries, similarities


rows = st.lists(st.integers(0, 2), min_size=12, max_size=12) | st.just([0] * 12) | st.just([0xFFFFFFFF] * 12)
documents = st.lists(st.tuples(rows, st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@settings(max_examples=40)
@given(documents, documents, st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_lookup_finds_what_a_search_through_everything_finds(
    entries: list[tuple[list[int], int, int]], queries: list[tuple[list[int], int, int]], threshold: float
) -> None:
    def split(items: list[tuple[list[int], int, int]]) -> tuple[Signatures, Identities]:
        return np.array([row for row, _, _ in items], np.uint32), np.array([i for _, *i in items], np.uint64)

    stored, identities = split(entries)
    signature, identity = split(queries)
    with tempfile.TemporaryDirectory() as folder:
        build([write_run(Path(folder) / "run", stored, identities)], Path(folder) / "index")
        entry, similarity = SignatureIndex.open(Path(folder) / "index").lookup(signature, identity, threshold)
    expected = slow_lookup(stored, identities, signature, identity, threshold)
    assert (entry.tolist(), [None if np.isnan(value) else float(value) for value in similarity]) == expected


def test_an_index_is_the_same_however_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, signature, identity = random_run(tmp_path / "a", 150, 0)
    b, more, others = random_run(tmp_path / "b", 90, 1)
    build([a, b], tmp_path / "both")
    whole = sha256_folder(tmp_path / "both")
    build([a], tmp_path / "first")
    before = sha256_folder(tmp_path / "first")
    build([b], tmp_path / "extended", extend=tmp_path / "first")
    assert sha256_folder(tmp_path / "extended") == whole and sha256_folder(tmp_path / "first") == before
    write_run(tmp_path / "cut" / "a", signature, identity, rows=64)  # other partitions
    build([tmp_path / "cut" / "a", b], tmp_path / "recut")
    monkeypatch.setattr(module, "_SORTED", 16)  # many small files that are sorted one by one
    build([a, b], tmp_path / "piecewise")
    assert sha256_folder(tmp_path / "recut") == sha256_folder(tmp_path / "piecewise") == whole
    monkeypatch.setattr(module, "_ROWS", 7)  # several batches, several chunks of ids
    build([a, b], tmp_path / "batches")
    index = SignatureIndex.open(tmp_path / "batches", check=True)
    assert (index.signatures == np.concatenate([signature, more])).all()
    assert (index.identities == np.concatenate([identity, others])).all()
    places = np.array([239, 0, 149, 150, 0, 77])
    assert index.ids(places).to_pylist() == ["b-89", "a-0", "a-149", "b-0", "a-0", "a-77"]
    assert index.ids(np.zeros(0, np.int64)).to_pylist() == []
    entry, similarity = index.lookup(index.signatures, index.identities, 1.0)
    assert (entry == np.arange(240)).all() and (similarity == 1).all()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_kept_documents_become_entries_unless_all_are_asked_for(tmp_path: Path) -> None:
    keep = [row % 3 == 0 for row in range(10)]
    run, signature, identity = random_run(tmp_path / "run", 10, 2, keep=keep)
    assert build([run], tmp_path / "kept")["entries"] == 4
    index = SignatureIndex.open(tmp_path / "kept")
    assert index.ids(np.arange(4)).to_pylist() == ["run-0", "run-3", "run-6", "run-9"]
    assert (index.signatures == signature[::3]).all() and (index.identities == identity[::3]).all()
    about = build([run], tmp_path / "all", everything=True)
    assert about["made_of"] == [{"run": "run", "all": True, "documents": 10}]
    write_run(tmp_path / "none", signature, identity, keep=[False] * 10)
    build([tmp_path / "none"], tmp_path / "empty")
    empty = SignatureIndex.open(tmp_path / "empty", check=True)
    assert len(empty) == 0 and (empty.lookup(signature, identity, 0.0)[0] == -1).all()


def test_a_bucket_of_very_many_is_bounded_and_copies_are_found_in_it(tmp_path: Path) -> None:
    count = 100_000
    signature = np.tile(np.arange(12, dtype=np.uint32), (count, 1))
    identity = np.stack([np.full(count, 7), np.arange(count)], axis=1).astype(np.uint64)  # even the halves collide
    index_folder = tmp_path / "index"
    build([write_run(tmp_path / "run", signature, identity, rows=50_000)], index_folder)
    index = SignatureIndex.open(index_folder)
    alike = signature.copy()
    alike[:, 11] += 1
    entry, similarity = index.lookup(alike, identity + np.uint64(count), 0.7)  # would be 10^10 comparisons
    assert (entry == 0).all() and (similarity == np.float32(11 / 12)).all()
    entry, similarity = index.lookup(alike, identity, 0.7)
    assert (entry == np.arange(count)).all() and (similarity == 1).all()


def test_signatures_made_otherwise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, signature, identity = random_run(tmp_path / "run", 5, 3)
    other = write_run(tmp_path / "other", signature, identity, config=MinHashConfig(permutations=12, seed=2, ngram=3))
    with pytest.raises(UsageError, match=r"other: .* of .*run: ngram 3 instead of 5, seed 2 instead of 1"):
        build([run, other], tmp_path / "index")
    build([run], tmp_path / "index")
    with pytest.raises(UsageError, match="seed 2 instead of 1"):
        build([other], tmp_path / "more", extend=tmp_path / "index")
    with pytest.raises(UsageError, match=r"made for --threshold 0\.7, not 0\.8"):
        build([run], tmp_path / "more", extend=tmp_path / "index", threshold=0.8)
    stage = Known(KnownConfig(str(tmp_path / "index")))
    stage.setup({})
    with pytest.raises(UsageError, match="ngram 3 instead of 5"):
        stage.annotate(pa.table({}), {"sketch": pq.read_table(other / "annotations/sketch/part-00000.parquet")})
    plain = sketch(signature, identity).replace_schema_metadata(None)
    with pytest.raises(GristmillError, match="do not say how they were made"):
        stage.annotate(pa.table({}), {"sketch": plain})
    pq.write_table(plain.slice(4), run / "annotations/sketch/part-00001.parquet")
    with pytest.raises(GristmillError, match="do not say how they were made"):
        build([run], tmp_path / "more")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other", "run"]  # nothing half made
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    about["recipe"]["unicode"] = "3.0.0"
    write_json(tmp_path / "index" / "index.json", about)
    with pytest.raises(UsageError, match=r"unicode .* instead of 3\.0\.0"):
        build([other], tmp_path / "more", extend=tmp_path / "index")


def test_nothing_is_overwritten_unless_it_is_an_index_and_told_to(tmp_path: Path) -> None:
    run, *_ = random_run(tmp_path / "run", 5, 4)
    bigger, *_ = random_run(tmp_path / "bigger", 9, 5)
    output = tmp_path / "index"
    build([run], output)
    with pytest.raises(UsageError, match="--replace"):
        build([bigger], output)
    with pytest.raises(UsageError, match="not changed in its place"):
        build([bigger], output, extend=output, replace=True)
    assert build([bigger], output, replace=True)["entries"] == 9 and len(SignatureIndex.open(output)) == 9
    (output / "notes.txt").write_text("mine")
    for place in (output, run, tmp_path / "run" / "ledger" / "outputs.json"):
        with pytest.raises(UsageError, match="of no index"):
            build([run], place, replace=True)
    assert (output / "notes.txt").exists() and (run / "documents").exists()


def test_a_run_that_is_not_finished_is_no_base_of_an_index(tmp_path: Path) -> None:
    run, *_ = random_run(tmp_path / "run", 9, 6)
    (run / "selection" / "part-00002.parquet").unlink()
    with pytest.raises(GristmillError, match=r"selection is not there or not finished.*--all"):
        build([run], tmp_path / "index")
    assert build([run], tmp_path / "index", everything=True)["entries"] == 9
    (run / "annotations/sketch/part-00001.parquet").unlink()
    with pytest.raises(GristmillError, match="sketch is not there or not finished"):
        build([run], tmp_path / "more", everything=True)
    with pytest.raises(UsageError, match="no run"):
        build([], tmp_path / "more")


def test_a_broken_index_is_refused_and_read_nowhere_outside(tmp_path: Path) -> None:
    run, signature, identity = random_run(tmp_path / "run", 50, 7)
    build([run], folder := tmp_path / "index")

    def fresh() -> SignatureIndex:
        return SignatureIndex.open(folder)

    wild = np.full(50, 50, np.uint32)  # an entry beyond the last
    for name in ("exact", "band-00"):
        path = folder / f"{name}.entries.npy"
        good = path.read_bytes()
        np.save(path, wild)
        with pytest.raises(DataError, match="entries that it has not"):
            fresh().lookup(signature, identity + np.uint64(name != "exact"), 0.5)
        with pytest.raises(DataError, match=r"not what index\.json vouches for"):
            SignatureIndex.open(folder, check=True)
        path.write_bytes(good[:-4])
        with pytest.raises(DataError, match=r"not of .* bytes"):
            fresh()
        path.write_bytes(good)
    path = folder / "ids.arrow"
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    with pytest.raises(DataError, match="broken index"):
        fresh()
    path.write_bytes(good)
    about = json.loads((folder / "index.json").read_text())
    for change in (
        {"entries": 10**9}, {"bands": {"bands": 99, "rows": 9}}, {"bands": {"bands": 0, "rows": 4}}, {"recipe": None},
        {"files": {"../run/ledger/outputs.json": {"bytes": 1, "sha256": ""}}}, {"files": []}, {"format": "x"},
    ):  # fmt: skip
        write_json(folder / "index.json", {**about, **change})
        with pytest.raises(DataError):
            fresh()
    (folder / "index.json").write_text("[]")
    with pytest.raises(DataError, match="no index of format"):
        fresh()


def test_lookup_refuses_other_shapes(tmp_path: Path) -> None:
    run, signature, identity = random_run(tmp_path / "run", 5, 8)
    build([run], tmp_path / "index")
    index = SignatureIndex.open(tmp_path / "index")
    with pytest.raises(UsageError, match="12 positions"):
        index.lookup(signature[:, :11], identity, 0.7)
    with pytest.raises(UsageError, match="threshold"):
        index.lookup(signature, identity, 1.5)


TEXTS = [
    "a mill grinds the grain of the farmers into flour and the baker makes bread of it every morning before sunrise",
    "the shipped parts were counted twice since the first count had missed a box that stood behind the open door",
    "!!!",
]


def test_known_marks_what_an_earlier_run_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, texts: list[str], *nodes: Known) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": f"{name}{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
        ingest = Ingest((str(path),), IngestConfig(rows_per_partition=2))
        Runner(tmp_path / name, ingest, [Sketch(MinHashConfig()), *nodes], workers=0).run()
        return tmp_path / name

    old, folder = run("old", TEXTS), tmp_path / "index"
    cli.index((old,), folder, all=True)
    assert "3 documents, 18 bands of 6" in capsys.readouterr().out
    texts = ["A mill " + TEXTS[0][7:], TEXTS[1] + " now", "of all this nothing has been said before in any run", "!!!"]
    new = run("new", texts, Known(KnownConfig(str(folder))))
    found = pa.concat_tables(map(pq.read_table, sorted((new / "annotations" / "known").glob("*.parquet"))))
    assert found.schema.equals(Known(KnownConfig(str(folder))).writes())
    assert found["document"].to_pylist() == ["old0", "old1", None, None]
    copy, near, *others = found["similarity"].to_pylist()
    assert copy == 1 and 0.8 < near < 1 and others == [None, None]
    with pytest.raises(UsageError, match=r"known\.index is missing"):
        Known(KnownConfig())


def test_band_keys_of_an_index_are_sorted_with_their_entries(tmp_path: Path) -> None:
    run, signature, _ = random_run(tmp_path / "run", 80, 9)
    about = build([run], tmp_path / "index")
    keys = band_keys(signature, bands_for(0.7, 12))
    for band in range(about["bands"]["bands"]):
        stored = np.load(tmp_path / "index" / f"band-{band:02d}.keys.npy")
        entries = np.load(tmp_path / "index" / f"band-{band:02d}.entries.npy")
        order = np.lexsort((np.arange(80), keys[:, band]))
        assert (stored == keys[order, band]).all() and (entries == order).all()


def test_damaged_ids_are_refused_by_name(tmp_path: Path) -> None:
    run, _signature, _identity = random_run(tmp_path / "run", 5, 3)
    build([run], tmp_path / "index")
    path = tmp_path / "index" / "ids.arrow"
    data = bytearray(path.read_bytes())
    first = SignatureIndex.open(tmp_path / "index").ids(np.arange(5))
    at = data.index("".join(first.to_pylist()).encode())
    data[at] = 0xFF  # is in no UTF-8
    path.write_bytes(data)
    index = SignatureIndex.open(tmp_path / "index")
    with pytest.raises(DataError, match=r"ids\.arrow: damaged"):
        index.ids(np.arange(5))


def test_a_link_and_a_folder_of_others_are_not_replaced(tmp_path: Path) -> None:
    run, _signature, _identity = random_run(tmp_path / "run", 5, 3)
    build([run], tmp_path / "index")
    (tmp_path / "link").symlink_to(tmp_path / "index")
    with pytest.raises(UsageError, match="is a link"):
        build([run], tmp_path / "link", replace=True)
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "index.json", {"files": ["notes.txt"]})
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds what is of no index"):
        build([run], tmp_path / "other", replace=True)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
