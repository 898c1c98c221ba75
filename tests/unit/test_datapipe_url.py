"""Columns of the URL filter: nulls, hosts, lists by path, odd input, work that grows in step with the addresses."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import hostile

from gristmill.base.errors import GristmillError
from gristmill.datapipe.filters import blocklist, url
from gristmill.datapipe.text.buffers import text_of


def lists(folder: Path, **entries: str) -> url.UrlLists:
    for name, text in entries.items():
        (folder / name).write_text(text, "utf-8")
    return url.load(url.UrlConfig(bundled=False, **{name: (str(folder / name),) for name in entries}))


def test_no_address_no_measurement(tmp_path: Path) -> None:
    loaded = lists(tmp_path, domains="bad.com\n")
    columns = url.measure(pa.chunked_array([[None, ""], ["http://bad.com/"]]), loaded)
    for column in columns.values():
        assert column.is_null().to_pylist() == [True, True, False]
    assert url.measure(pa.array([], pa.string()), loaded)["host"].to_pylist() == []
    assert url.measure(pa.nulls(2, pa.string()), loaded)["domain"].null_count == 2


def test_hosts_domains_and_addresses(tmp_path: Path) -> None:
    loaded = lists(tmp_path, domains="bad.co.uk\na.good.org", addresses="http://good.org/x")
    rows = {
        "http://www.bad.co.uk:80/x": ("www.bad.co.uk", True, False, False),
        "https://a.good.org": ("a.good.org", False, True, False),
        "http://good.org/x": ("good.org", False, False, True),
        "http://good.org/X": ("good.org", False, False, False),
        "http://user:a@[::1]:8/bad.co.uk": ("[::1]", False, False, False),
        "http://127.0.0.1/": ("127.0.0.1", False, False, False),
        "/only/a/path": ("", False, False, False),
        "bad.co.uk?x": ("bad.co.uk", True, True, False),
    }
    columns = url.measure(pa.array(list(rows)), loaded)
    found = zip(*(columns[name].to_pylist() for name in ("host", "domain", "subdomain", "exact")))
    assert list(found) == list(rows.values())


def test_words_count_once_and_only_whole_ones(tmp_path: Path) -> None:
    loaded = lists(tmp_path, hard_words="casino\nTwo Girls", soft_words="hot\n#cold\npills", subwords="badword")
    addresses = ["http://x.y/casino-hot/hot_hot", "x.y/casinos/cold", "x.y/twogirls?pills=hot", "x.y/BAD-wo/rd.badword"]
    columns = url.measure(pa.array(addresses), loaded)
    assert columns["hard_words"].to_pylist() == [1, 0, 1, 0]
    assert columns["soft_words"].to_pylist() == [1, 0, 2, 0]
    assert columns["subwords"].to_pylist() == [0, 0, 0, 2]


def test_lists_may_be_compressed_and_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "domains.txt.gz"
    path.write_bytes(gzip.compress(b"  bad.com \r\n\n# no.com\ngood.com"))
    loaded = url.load(url.UrlConfig(bundled=False, domains=(str(path),)))
    found = url.measure(pa.array(["bad.com", "good.com", "no.com", "# no.com"]), loaded)["domain"]
    assert found.to_pylist() == [True, True, False, False]
    with pytest.raises(GristmillError, match=r"nowhere\.txt"):
        url.load(url.UrlConfig(bundled=False, soft_words=("nowhere.txt",)))


@pytest.mark.parametrize("kind", ["domains", "hard_words"])
def test_a_list_that_is_broken_or_a_folder_is_told_by_name(tmp_path: Path, kind: str) -> None:
    sound = gzip.compress(b"bad.com\n" * 50 + bytes(range(256)))
    damaged = bytearray(sound)
    damaged[20:30] = b"\xff" * 10
    for number, data in enumerate((b"bad.com\n", sound[:-12], bytes(damaged))):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(data)
        with pytest.raises(GristmillError, match=rf"{number}\.gz: cannot be read"):
            url.load(url.UrlConfig(bundled=False, **{kind: (str(path),)}))
    with pytest.raises(GristmillError, match="no such list"):
        url.load(url.UrlConfig(bundled=False, **{kind: (str(tmp_path),)}))


@settings(max_examples=100)
@given(st.lists(st.text(alphabet="ab.\u2028é# ", max_size=6), max_size=20), st.integers(1, 9))
def test_a_list_is_read_alike_whatever_the_chunks(entries: list[str], chunk: int) -> None:
    data = "\n".join(entries).encode()
    chunks = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    expected = {entry.strip(" ") for entry in entries if entry.strip(" ") and not entry.strip(" ").startswith("#")}
    keys = blocklist.hash_lines([chunks])
    assert set(keys.tolist()) == set(blocklist.hashes(text_of(pa.array(sorted(expected), pa.string()))).tolist())
    assert (np.diff(keys.astype(object)) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_odd_bytes_are_measured(seed: int, tmp_path: Path) -> None:
    loaded = lists(tmp_path, domains="a.b", hard_words="x", soft_words="y", subwords="z")
    column = hostile(seed, [b"http://", b"/", b"?", b"@", b"[", b"]", b".", b"co.uk", b"x", "。".encode()])
    columns = url.measure(column, loaded)
    assert {len(values) for values in columns.values()} == {len(column)}


def test_time_grows_with_the_bytes(tmp_path: Path) -> None:
    loaded = lists(tmp_path, domains="a.b", hard_words="x", soft_words="y", subwords="aab")
    for unit in ("a.", "a/", "@", "//", "aa", "["):
        spent = []
        for size in (50_000, 800_000):
            start = time.process_time()
            url.measure(pa.array(["http://" + unit * size]), loaded)
            spent.append(time.process_time() - start)
        assert spent[1] < 64 * max(spent[0], 0.05), unit
