"""Addresses in one form, so that two that lead to the same page are equal, by rules that hardly ever join two pages.

ada-url reads them as browsers do (WHATWG's URL standard): hosts in lower case and punycode, IP numbers in their short
form, default ports and dot segments gone, what may not stand in a URL escaped. The rest is here: escapes by RFC 3986,
and what of an address says how one came to the page rather than which page it is.
"""

from __future__ import annotations

import re
import string
from urllib.parse import quote

import ada_url
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.text.buffers import text_of
from gristmill.datapipe.text.hashing import mix
from gristmill.datapipe.text.kernel import kernel

VERSION = 1
"""Part of the fingerprint of what is made by these rules: to be raised whenever `canonical` gives any URL another form
than before, or `keys` another hash."""

# Of campaigns, clicks and sessions; none by which some sites choose content (ref, source, cid ...). Many are
# from Brave's list (query_filter).
_TRACKING = """
__hsfp __hssc __hstc __s _branch_match_id _ga _gac _gl _hsenc _hsmi _openstat bsft_clkid bsft_uid dclid ef_id epik
fb_action_ids fb_action_types fb_ref fb_source fbclid gad_campaignid gad_source gbraid gclid gclsrc guce_referrer
guce_referrer_sig hsctatracking igsh igshid irclickid jsessionid li_fat_id mc_cid mc_eid mkt_tok ml_subscriber
ml_subscriber_hash msclkid oly_anon_id oly_enc_id phpsessid piwik_campaign piwik_keyword piwik_kwd pk_campaign
pk_content pk_keyword pk_kwd pk_medium pk_source rb_clickid rdt_cid s_cid s_kwcid srsltid ss_email_id ttclid twclid
vero_conv vero_id vgo_ee wbraid wickedid yclid ysclid
"""
TRACKING = frozenset(_TRACKING.split())
FAMILIES = ("utm_", "mtm_", "hsa_")
"""Parameters whose names begin so, too: Google's, Matomo's, HubSpot's."""

_WHITE = "".join(map(chr, range(0x21)))
_WWW = re.compile(r"^(?:www\.)+(?=[^.]+\.)")
_SLASHES = re.compile("//+")
_UNRESERVED = string.ascii_letters + string.digits + "-._~"  # RFC 3986, 2.3
_ODD = re.compile(r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?]")
_ESCAPES = {f"%{ord(character):02X}": character for character in _UNRESERVED}


def canonical(urls: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """Each URL without its scheme (http, https; others stay), user, "www.", default port, duplicate and trailing slash,
    fragment (but "#!..."), tracking parameters; escapes normalised, parameters sorted by name.

    Null where there was null, and for what is no URL with a host. One without scheme is one only if it begins with "//"
    or "www.": README.md is a file, though there is a domain .md. Each distinct URL is worked on once.
    """
    if isinstance(urls, pa.ChunkedArray):
        urls = urls.combine_chunks()
    encoded = pc.dictionary_encode(urls)
    distinct = encoded.dictionary.cast(pa.large_binary()).to_pylist()  # a buffer may hold what is no UTF-8
    forms = pa.array([_canonical(url.decode(errors="replace")) for url in distinct], pa.string())
    return forms.take(encoded.indices)


def keys(canonical: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """[rows, 2]: 128-bit hash of each string's bytes. A null has the empty string's, which no canonical URL has."""
    text = text_of(canonical)
    out = np.empty((len(text), 2), np.uint64)
    _hash(text.data, text.offsets, out)
    return out


def _canonical(url: str) -> str | None:
    url = url.strip(_WHITE)
    if url.startswith("//"):
        url = "http:" + url
    elif url[:4].lower() == "www.":
        url = "http://" + url
    try:
        parts = ada_url.URL(url)
    except ValueError:
        return None
    host = _WWW.sub("", parts.hostname.removesuffix("."))
    if "" in host.split("."):
        return None
    protocol, port, fragment = parts.protocol, parts.port, parts.hash
    scheme = "" if protocol in ("http:", "https:") else f"{protocol}//"
    path = _SLASHES.sub("/", _escaped(parts.pathname)).removesuffix("/")
    anchor = "#" + _escaped(fragment[1:]) if fragment.startswith("#!") else ""
    return f"{scheme}{host}{':' if port else ''}{port}{path}{_query(parts.search[1:])}{anchor}"


def _query(query: str) -> str:
    """Parameters that tell pages apart, by name; those of one name stay in their order, which may matter."""
    if not query:
        return ""
    pairs = [(pair.partition("=")[0], pair) for pair in _escaped(query.replace("+", "%20")).split("&") if pair]
    kept = [(name, pair) for name, pair in pairs if not _tracks(name.lower())]
    kept.sort(key=lambda item: item[0])
    return "?" + "&".join(pair for _, pair in kept) if kept else ""


def _tracks(name: str) -> bool:
    return name in TRACKING or name.startswith(FAMILIES)


def _escaped(part: str) -> str:
    """RFC 3986, 6.2.2: what needs no escape has none, what does has one in upper case; a bare % is the sign itself."""
    return _ODD.sub(_escape, part)


def _escape(match: re.Match[str]) -> str:
    found = match[0].upper()
    return _ESCAPES.get(found, found) if len(found) == 3 else quote(match[0])


@kernel
def _hash(data, offsets, out):
    for row in range(len(offsets) - 1):
        first, second = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15)
        for at in range(offsets[row], offsets[row + 1]):
            byte = np.uint64(data[at])
            first = (first ^ byte) * np.uint64(0x100000001B3)
            second = (second + byte) * np.uint64(0xD6E8FEB86659FD93)
            second ^= second >> np.uint64(29)
        out[row, 0], out[row, 1] = mix(first), mix(second)
