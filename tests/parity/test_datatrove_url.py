"""Verdicts and reasons from our columns against datatrove's URLFilter, over small lists and over the bundled ones."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import tldextract
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters import url
from gristmill.datapipe.filters.blocklist import members

url_filter = pytest.importorskip("datatrove.pipeline.filters.url_filter")
from datatrove.data import Document  # noqa: E402

LISTS = {
    "domains": ["bad.com", "evil.co.uk", "sub.good.org", "bücher.de", "1.2.3.4"],
    "addresses": ["http://good.org/page", "good.org/x?y#z"],
    "hard_words": ["casino", "2 girls", "xxx"],
    "soft_words": ["Free", "pill", "hot", "pill s"],
    "subwords": ["badword", "a b c"],
}
RULES = (
    ("domain", "domain"), ("subdomain", "subdomain"), ("exact", "url"), ("hard_words", "hard_blacklisted"),
    ("soft_words", "soft_blacklisted"), ("subwords", "blacklisted_subword"),
)  # fmt: skip
PIECES = [
    "http://", "https://", "//", "ftp:", ":", "/", "?", "#", "@", ".", "www.", "bad.com", "BAD.com", "evil.co.uk",
    "sub.", "good.org", "/page", "x?y#z", "casino", "xxx", "-", "_", "free", "pill", "hot", "pills", "badword", "bad",
    "word", "abc", "a", "b-c", "é", "bücher.de", "xn--bcher-kva.de", "。com", "[::1]", ":80", " ", "1.2.3.4",
    "user:pw@", "\n", "%20",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[url.UrlLists, object]:
    """Our lists, read from files, and the peer's filter over the same."""
    folder = tmp_path_factory.mktemp("lists")
    paths = {}
    for name, entries in LISTS.items():
        paths[name] = (str(folder / f"{name}.txt"),)
        Path(paths[name][0]).write_text("# a comment\n" + "\n".join(entries) + "\n\n", "utf-8")
    peer = url_filter.URLFilter(
        extra_domains=LISTS["domains"], extra_urls=LISTS["addresses"], banned_words=LISTS["hard_words"],
        banned_subwords=LISTS["subwords"], soft_banned_words=LISTS["soft_words"], use_integrated_lists=False,
    )  # fmt: skip
    peer.tldextractor = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())  # its own would ask the network
    return url.load(url.UrlConfig(bundled=False, **paths)), peer


def verdict(columns: dict[str, pa.Array], row: int) -> object:
    for column, reason in RULES:
        if int(columns[column][row].as_py()) >= (2 if column == "soft_words" else 1):
            return False, reason
    return True


def check(addresses: list[str], lists: url.UrlLists, peer: object) -> None:
    columns = url.measure(pa.array(addresses), lists)
    for row, address in enumerate(addresses):
        expected = peer.filter(Document(text="", id="", metadata={"url": address}))  # type: ignore[attr-defined]
        assert verdict(columns, row) == expected, address


@settings(max_examples=400)
@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join), min_size=1, max_size=8))
def test_verdict_and_reason_are_the_peers(small: tuple[url.UrlLists, object], addresses: list[str]) -> None:
    check(addresses, *small)


@settings(max_examples=200)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4))
def test_verdict_on_any_text(small: tuple[url.UrlLists, object], addresses: list[str]) -> None:
    check(addresses, *small)


def test_bundled_lists_hold_what_the_archive_holds() -> None:
    lists = url.load(url.UrlConfig())
    archive = next(path for path in url.files(url.UrlConfig()) if path.name.endswith(".tar.gz"))
    with tarfile.open(archive) as file:
        domains = file.extractfile("domains").read().decode().split("\n")  # type: ignore[union-attr]
        addresses = file.extractfile("urls").read().decode().split("\n")  # type: ignore[union-attr]
    assert len(lists.domains) == len(domains) and (lists.domains[1:] > lists.domains[:-1]).all(), "a hash stands twice"
    hosts = ["http://" + domain + "/x" for domain in domains[::4999]]
    columns = url.measure(pa.array(hosts), lists)
    listed = set(domains)
    for host, domain, subdomain in zip(hosts, columns["domain"].to_pylist(), columns["subdomain"].to_pylist()):
        extracted = lists.extract(host)
        assert domain == (extracted.top_domain_under_public_suffix in listed)
        assert subdomain == (extracted.fqdn in listed)
    assert sum(columns["subdomain"].to_pylist()) > 0.99 * len(hosts)
    assert all(url.measure(pa.array(addresses[::499]), lists)["exact"].to_pylist())
    absent = url._listed(pa.array([domain + "x-" for domain in domains[::99]]), lists.domains)
    assert not any(absent.to_pylist()) and not members(lists.domains[:0], lists.domains).size


def test_bundled_words_are_the_peers() -> None:
    lists, assets = url.load(url.UrlConfig()), Path(url_filter.ASSETS_PATH)
    for ours, name in ((lists.hard_words, "banned_words.txt"), (lists.soft_words, "soft_banned_words.txt")):
        assert set(ours.to_pylist()) == url_filter.get_list(str(assets), name, set()) - {""}
    assert lists.subwords is not None
    assert set(lists.subwords.phrases) == url_filter.get_list(str(assets), "banned_subwords.txt", set()) - {""}
