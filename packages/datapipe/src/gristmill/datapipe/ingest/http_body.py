"""The body of an HTTP response as the page's bytes: chunks put together, compression undone, within a limit.

Many crawlers store a body decoded and leave the headers as they came: what looks like markup is taken as it is.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping

import zstandard

from gristmill.datapipe.ingest.compressed import ZSTD_MAX_WINDOW

MAX_CODINGS = 4
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,200})?\r?\n")


class TooLarge(ValueError):
    """More bytes than the limit allows."""


def decode_body(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    """`headers` have lower-case names.

    Raises:
        TooLarge: more than `limit` bytes come out.
        ValueError: an unknown or damaged encoding.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower() and not _is_markup(body):
        body = _join_chunks(body)
    codings = [name.strip() for name in headers.get("content-encoding", "").lower().split(",") if name.strip()]
    if len(codings) > MAX_CODINGS:
        raise ValueError(f"{len(codings)} content encodings one over the other")
    for coding in reversed(codings):
        if coding != "identity" and not _is_markup(body):
            body = _unpack(body, coding, limit)
            if len(body) > limit:
                raise TooLarge
    return body


def _is_markup(body: bytes) -> bool:
    return body[:100].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _join_chunks(body: bytes) -> bytes:
    """All chunks that are there: a crawler may have stopped at any point. A body that has none comes back as it is."""
    position, chunks = 0, []
    while found := _CHUNK.match(body, position):
        size = int(found[1], 16)
        if not size:
            break
        chunks.append(body[found.end() : found.end() + size])
        position = found.end() + size
        position += 2 if body[position : position + 2] == b"\r\n" else 1
    return b"".join(chunks) if chunks else body


def _unpack(body: bytes, coding: str, limit: int) -> bytes:
    try:
        if coding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=31).decompress(body, limit + 1)
        if coding == "deflate":
            return _inflate(body, limit)
        if coding == "zstd":
            with zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW).stream_reader(io.BytesIO(body)) as stream:
                return stream.read(limit + 1)
        if coding == "br":
            return _unbrotli(body, limit)
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{coding}: {error}") from None
    raise ValueError(f"unknown content encoding {coding[:40]!r}")


def _inflate(body: bytes, limit: int) -> bytes:
    """With zlib's header as the standard says, or without as some servers do."""
    try:
        return zlib.decompressobj().decompress(body, limit + 1)
    except zlib.error:
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(body, limit + 1)


def _unbrotli(body: bytes, limit: int) -> bytes:
    import brotli  # of the extra `warc`

    try:
        return brotli.Decompressor().process(body, output_buffer_limit=limit + 1)
    except brotli.error as error:
        raise ValueError(f"br: {error}") from None
