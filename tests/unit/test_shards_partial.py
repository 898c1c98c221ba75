"""Datasets of which a part is here, and what an address opens: the rest is fetched when it is asked for."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.support.published_shards import (
    NAMES,
    bucket,
    documents,
    first,
    info,
    made,
    newer,
    published,
    tokenizer,
    tokens_of,
    tree,
)

from gristmill.base.errors import DataError, GristmillError, UsageError
from gristmill.shards import transfer
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.remote import places
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

__all__ = ["bucket", "made", "newer", "published", "tokenizer"]  # fixtures


def part(dataset: Dataset) -> dict[str, list[int]]:
    assert len(dataset.sources["a"].split("train").shards) > 2 and dataset.manifest.tokenizer_file
    return {"a": [0, 2], "b": [1]}


def test_a_partial_pull_brings_what_training_reads_and_the_rest_on_demand(published: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    transfer.pull(published, back, only=part)
    whole, dataset = open_dataset(published), open_dataset(back)
    a, b = (whole.sources[name].split("train").shards for name in "ab")
    (valid,) = whole.sources["a"].split("valid").shards[:1]
    expected = [f"sources/a/{e.path}" for s in (a[0], a[2]) for e in (s.tokens, s.ends)]
    expected += [f"sources/b/{e.path}" for e in (b[1].tokens, b[1].ends)] + [f"sources/a/{e.path}" for e in valid.files]
    skeleton = {path for path in tree(published) if path.endswith((".json", ".toml", ".md"))}
    assert set(tree(back)) == {*expected, *skeleton, "origin.json"}
    assert json.loads((back / "origin.json").read_text()) == {"uri": published.as_uri()}
    # Nothing is fetched for what is there, not even looked for.
    away = published.rename(tmp_path / "away")
    dataset.require({"a": [0, 2], "b": [1]})
    split = dataset.sources["a"].split("train")
    assert [len(split.tokens(i)) for i in (0, 2)] == [a[0].token_count, a[2].token_count]
    absent = sum(entry.bytes for entry in dataset.skeleton.shard_files()) - sum(
        (back / path).stat().st_size for path in expected
    )
    assert dataset.verify()[2:] == (len(tree(away)) + 1 - len(tree(back)), absent)
    with pytest.raises(GristmillError, match=r"manifest\.json: no such file|has no sources/a"):
        split.tokens(1)
    away.rename(published)
    assert np.array_equal(split.tokens(1), whole.sources["a"].split("train").tokens(1))
    assert not (back / "sources/a" / a[1].meta.path).exists()
    assert split.meta(1).equals(whole.sources["a"].split("train").meta(1))
    assert tokens_of(dataset) == tokens_of(whole)
    # From what is partial not everything can be had.
    with pytest.raises(
        DataError, match=rf"back: has no .* partial dataset; pull from {published.as_uri()}, or complete"
    ):
        transfer.pull(back, tmp_path / "further")
    # What is cut short is fetched again; a pull of everything makes it a dataset of its own.
    victim = back / "sources/b" / b[1].tokens.path
    victim.write_bytes(victim.read_bytes()[:-2])
    open_dataset(back).require({"b": [1]})
    assert victim.stat().st_size == b[1].tokens.bytes
    assert "origin.json" in tree(back)
    transfer.pull(published, back)
    assert tree(back) == tree(published)
    transfer.pull(published, back, only=part)
    assert tree(back) == tree(published)  # complete as it is


def test_a_partial_dataset_is_not_published_and_a_complete_one_must_be(published: Path, tmp_path: Path) -> None:
    transfer.pull(published, tmp_path / "back", only=part)
    with pytest.raises(DataError, match=r"partial dataset, without \d+ of its files; `shards pull file://"):
        transfer.push(tmp_path / "back", tmp_path / "there")
    with pytest.raises(UsageError, match="no source 'c'"):
        transfer.pull(published, tmp_path / "x", only=lambda dataset: {"c": [0]})
    with pytest.raises(UsageError, match="no number 99"):
        transfer.pull(published, tmp_path / "x", only=lambda dataset: {"a": [99]})
    victim = first(published, "sources/b/ends/000/*")
    dataset = open_dataset(published)
    victim.unlink()
    with pytest.raises(DataError, match=str(victim)):
        open_dataset(published)
    with pytest.raises(DataError, match=str(victim)):
        dataset.require({"a": [0], "b": [0]})
    dataset.require({"a": [0]})
    (tmp_path / "back/origin.json").write_text("{}")
    with pytest.raises(DataError, match=r"origin\.json: must read"):
        open_dataset(tmp_path / "back")


def test_loss_masks_travel_with_their_tokens(tmp_path: Path, tokenizer: Path) -> None:
    table = documents(tokenizer, NAMES[:20])
    masks = [[n % 2] * len(tokens) for n, tokens in enumerate(table["tokens"].to_pylist())]
    masked = table.append_column("loss", pa.array(masks, pa.list_(pa.uint8())))
    write_source(tmp_path / "here", SourceSpec("a", info(tokenizer)), [masked], shard_tokens=9_000, ramp=())
    write_source(tmp_path / "here", SourceSpec("b", info(tokenizer)), [table], shard_tokens=9_000, ramp=())
    write_manifest(tmp_path / "here")
    transfer.pull(tmp_path / "here", tmp_path / "back", only=lambda dataset: {"a": [1], "b": [0]})
    assert len(list((tmp_path / "back").glob("sources/a/loss/000/*"))) == 1
    split = open_dataset(tmp_path / "back").sources["a"].split("train")
    loss, ends = split.loss(1), split.ends(1)
    assert loss is not None and loss.dtype == np.uint8 and len(loss) == split.shards[1].token_count
    rows = split.meta(1)["row"].to_pylist()
    assert np.array_equal(loss, np.repeat(np.array(rows) % 2, np.diff(ends, prepend=0)))
    assert open_dataset(tmp_path / "here").sources["b"].split("train").loss(0) is None
    assert open_dataset(tmp_path / "here").verify()


def test_a_url_opens_through_the_cache_and_versions_share_their_files(
    published: Path, newer: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    transfer.push(published, bucket)
    old = open_dataset(bucket)
    assert not list(old.root.rglob("*.u16")) and old.files.partial
    assert np.array_equal(
        old.sources["a"].split("train").tokens(0), open_dataset(published).sources["a"].split("train").tokens(0)
    )
    assert "fetching sources/a/tokens/000/00000-" in capsys.readouterr().err
    transfer.push(newer, bucket)
    new = open_dataset(bucket)
    assert new.root != old.root and tokens_of(new) == tokens_of(open_dataset(newer))
    (shared,) = old.root.glob("sources/a/tokens/000/00000*")
    assert shared.samefile(new.root / shared.relative_to(old.root))
    # The old version's own files have gone from the bucket; the new one's are not taken for them.
    with pytest.raises(DataError, match=r"has no sources/b/.*published anew"):
        old.sources["b"].split("train").tokens(0)
    assert len(old.sources["a"].split("train").tokens(0))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.parse("hf://datasets/org/name@v1") == places.HubAddress("org/name", "v1")
    assert places.HubAddress("org/name", "v1").commit is None
    assert places.HubAddress("org/name", "0a" * 20).commit == "0a" * 20
    assert places.parse("file:///a%20b") == places.parse("file://localhost/a%20b") == Path("/a b")
    assert places.parse("s3://bucket/x/") == places.UrlAddress("s3://bucket/x")
    for wrong in (
        "hf://org/name",
        "hf://datasets/name",
        "s5://bucket/x",
        "hf://datasets/../../x",
        "ftp://me:secret@x/y",
        "https://x/y?key=secret",
        "file://runs/demo/published",
        "file://",
    ):
        with pytest.raises(UsageError) as error:
            places.parse(wrong)
        assert "secret" not in str(error.value)
    # A name that could be mistyped is a folder's: nothing goes to the Hub that does not say so.
    assert places.parse("org/name") == Path("org/name")
    with pytest.raises(DataError, match="org/name: no such folder; if you mean the Hub, write hf://datasets/org/name"):
        open_dataset("org/name")
    with pytest.raises(DataError, match="if you mean the Hub, write hf://datasets/org/name"):
        transfer.pull("org/name", tmp_path / "x")
