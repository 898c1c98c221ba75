"""Where a document comes from, held against block lists: domains, addresses and words, by datatrove's URLFilter.

Work is done per distinct host, not per document: the head of each address (scheme and host) is dictionary-encoded, and
only the heads go through the public suffix list that tldextract carries. Nothing here asks the network.
"""

from __future__ import annotations

import importlib.util
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.base.errors import GristmillError
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.filters import blocklist
from gristmill.datapipe.filters.columns import whole
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.phrases import Phrases, counts

if TYPE_CHECKING:
    import tldextract

_SEPARATORS = "[^a-zA-Z0-9]+"  # what datatrove splits addresses and cleans words by
_HEAD = r"(?s)^(?P<head>(?:(?:[A-Za-z0-9+.-]+:)?//)?[^/?#]*)"  # all that tldextract looks at


@dataclass(frozen=True)
class UrlConfig:
    bundled: bool = True
    """Use the lists that datatrove carries (University of Toulouse's adult domains, FineWeb's words)."""
    domains: tuple[str, ...] = ()
    """Files (plain or .gz) of domains or hosts, one a line; '#' starts a comment. They add to the bundled ones."""
    addresses: tuple[str, ...] = ()
    """Files of whole addresses, to be met letter by letter."""
    hard_words: tuple[str, ...] = ()
    """Files of words: a run of letters and digits of the address must equal one. A word is read in lower case without
    anything but letters and digits, the address as it stands."""
    soft_words: tuple[str, ...] = ()
    """The same, for words of which only several together tell (FineWeb: two)."""
    subwords: tuple[str, ...] = ()
    """Files of what must not occur anywhere in the address's letters and digits, lower-cased and run together."""


@dataclass(frozen=True)
class UrlLists:
    domains: NDArray[np.uint64]
    addresses: NDArray[np.uint64]
    hard_words: pa.Array
    soft_words: pa.Array
    subwords: Phrases | None
    extract: Callable[[str], tldextract.ExtractResult]


def files(config: UrlConfig) -> tuple[Path, ...]:
    """Every file that the lists are read from."""
    own = (*config.domains, *config.addresses, *config.hard_words, *config.soft_words, *config.subwords)
    return (*map(Path, own), *(_bundled().values() if config.bundled else ()))


def load(config: UrlConfig) -> UrlLists:
    """Read the lists. Raises GristmillError where one is missing or broken, or the bundled ones are not installed."""
    for path in files(config):
        if not path.is_file():
            raise GristmillError(f"{path}: no such list; give a file with one entry a line")
    import tldextract  # a tenth of a second, that a run with nothing to do need not wait

    bundled = _bundled() if config.bundled else {}

    def long_list(name: str, paths: Iterable[str]) -> NDArray[np.uint64]:
        archive = [_archived(bundled["archive"], name)] if bundled else []
        return blocklist.hash_lines([*archive, *map(blocklist.read_list, map(Path, paths))])

    def words(name: str, paths: Iterable[str]) -> list[str]:
        listed = chain.from_iterable(map(blocklist.lines, (*map(Path, paths), *([bundled[name]] if bundled else []))))
        return sorted({re.sub(_SEPARATORS, "", line).lower() for line in listed} - {""})

    subwords = words("banned_subwords", config.subwords)
    return UrlLists(
        domains=long_list("domains", config.domains),
        addresses=long_list("urls", config.addresses),
        hard_words=pa.array(words("banned_words", config.hard_words), pa.string()),
        soft_words=pa.array(words("soft_banned_words", config.soft_words), pa.string()),
        subwords=Phrases.of(subwords) if subwords else None,
        extract=tldextract.TLDExtract(cache_dir=None, suffix_list_urls=()),
    )


def measure(urls: pa.ChunkedArray | pa.Array, lists: UrlLists) -> dict[str, pa.Array]:
    """Columns, all null where the address is null or empty:

    host (string: the name or number, as written), domain, subdomain, exact (bool: the registered domain, the whole host
    name, the address are listed), hard_words, soft_words (int32: how many listed words are among the address's),
    subwords (int32: places where a listed subword ends). datatrove's filter drops a document for the first of domain,
    subdomain, exact, hard_words >= 1, soft_words >= 2, subwords >= 1, with the reasons domain, subdomain, url,
    hard_blacklisted, soft_blacklisted, blacklisted_subword.
    """
    if isinstance(urls, pa.ChunkedArray):
        urls = urls.combine_chunks()
    missing = pc.fill_null(pc.equal(pc.binary_length(urls), 0), True)
    encoded = pc.dictionary_encode(pc.fill_null(pc.struct_field(pc.extract_regex(urls, _HEAD), "head"), ""))
    heads = [lists.extract(head.decode(errors="replace")) for head in encoded.dictionary.cast(pa.binary()).to_pylist()]
    hosts = pa.array([".".join(filter(None, (e.subdomain, e.domain, e.suffix))) for e in heads], pa.string())
    domains = pa.array([e.top_domain_under_public_suffix for e in heads], pa.string())
    names = pa.array([e.fqdn for e in heads], pa.string())
    letters = pc.ascii_lower(pc.replace_substring_regex(pc.fill_null(urls, ""), _SEPARATORS, ""))
    parts = pc.split_pattern_regex(pc.fill_null(urls, ""), _SEPARATORS)
    subwords = counts(lists.subwords, text_of(letters)) if lists.subwords else np.zeros(len(urls), np.int32)
    columns = {
        "host": hosts.take(encoded.indices),
        "domain": _listed(domains, lists.domains).take(encoded.indices),
        "subdomain": _listed(names, lists.domains).take(encoded.indices),
        "exact": _listed(urls, lists.addresses),
        "hard_words": whole(_distinct(parts, lists.hard_words)),
        "soft_words": whole(_distinct(parts, lists.soft_words)),
        "subwords": whole(subwords),
    }
    return {name: pc.if_else(missing, pa.scalar(None, column.type), column) for name, column in columns.items()}


def _listed(strings: pa.Array, block_list: NDArray[np.uint64]) -> pa.Array:
    return pa.array(blocklist.members(blocklist.hashes(text_of(strings)), block_list))


def _distinct(parts: pa.ListArray, words: pa.Array) -> NDArray[np.int64]:
    """How many of the words are among each list's strings."""
    word = pc.index_in(parts.flatten(), value_set=words)
    found = pc.is_valid(word)
    pairs = pc.list_parent_indices(parts).filter(found).to_numpy() * max(1, len(words)) + word.filter(found).to_numpy()
    return np.bincount(np.unique(pairs) // max(1, len(words)), minlength=len(parts))


def _bundled() -> dict[str, Path]:
    """The files of lists in the package datatrove, found without importing it."""
    spec = importlib.util.find_spec("datatrove")
    if spec is None or not spec.submodule_search_locations:
        raise GristmillError("no URL lists: `pip install --no-deps datatrove` (it carries them), or --url.no-bundled")
    folder = Path(spec.submodule_search_locations[0]) / "assets"
    names = {name: folder / f"{name}.txt" for name in ("banned_words", "soft_banned_words", "banned_subwords")}
    return {"archive": folder / "url_filterblacklistsv0_3_0.tar.gz", **names}


def _archived(path: Path, name: str) -> Iterator[bytes]:
    """One member of an archive of lists, in chunks as it is unpacked: all of it is 125 MB."""
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        while file and (chunk := file.read(blocklist.CHUNK)):
            yield chunk
