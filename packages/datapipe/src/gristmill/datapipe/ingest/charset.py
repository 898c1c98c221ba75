"""Which characters a page's bytes are: what is UTF-8 is UTF-8, else what header or markup declare, else a guess."""

from __future__ import annotations

import codecs
import re
from encodings.aliases import aliases

MAX_WRONG = 0.005
"""Share of characters that a declared charset may leave undefined: more, and the declaration is not believed."""
SNIFF_BYTES = 4096
GUESS_BYTES = 5000
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# https://encoding.spec.whatwg.org/#names-and-labels: browsers read these names as the supersets that pages mean.
MEANT = {
    "ascii": "cp1252", "latin_1": "cp1252", "iso8859_9": "cp1254", "iso8859_11": "cp874", "tis_620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
# Python knows charsets that are no text, or slow: none but these is ever looked up by a page's word.
KNOWN = {
    "utf_8", "gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "iso2022_jp", "koi8_r", "koi8_u", "mac_roman",
    "mac_cyrillic", "cp866", "cp874", *(f"cp{number}" for number in range(1250, 1259)),
    *(f"iso8859_{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
}  # fmt: skip
LIKELY = [
    *(f"cp{number}" for number in range(1250, 1259)), "koi8_r", "cp874",
    "cp932", "euc_jp", "gb18030", "big5hkscs", "cp949",
]  # fmt: skip
"""What is worth a guess: with all that Python knows, rare charsets win over common ones."""
_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


def decode_page(page: bytes, declared: str) -> tuple[str, str]:
    """(characters, charset). Bytes that the charset does not define become U+FFFD."""
    text, charset = _decode(page, declared)
    return text, charset.replace("_", "-")


def _decode(page: bytes, declared: str) -> tuple[str, str]:
    for mark, charset in BOMS:
        if page.startswith(mark):
            return page.decode(charset, "replace"), charset
    try:
        return page.decode(), "utf_8"
    except UnicodeDecodeError:
        pass
    meta = _META.search(page, 0, SNIFF_BYTES)
    named = [codec for label in (declared, meta[1].decode("latin-1") if meta else "") if (codec := codec_of(label))]
    for charset in dict.fromkeys(named or ["utf_8"]):
        text = page.decode(charset, "replace")
        if text.count("\ufffd") <= MAX_WRONG * len(text) + 1:  # the last character may be cut off
            return text, charset
    charset = _guess(page)
    return page.decode(charset, "replace"), charset


def codec_of(label: str) -> str | None:
    """Python's codec for a charset's name, as browsers understand it; None for one that pages do not use."""
    name = re.sub(r"[^a-z0-9]+", "_", label.strip().lower()).removeprefix("x_")
    name = aliases.get(name, name)
    name = MEANT.get(name, name)
    return name if name in KNOWN else None


def _guess(page: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(page[:GUESS_BYTES] + page[-GUESS_BYTES:], cp_isolation=LIKELY).best()
    return best.encoding if best is not None else "cp1252"
