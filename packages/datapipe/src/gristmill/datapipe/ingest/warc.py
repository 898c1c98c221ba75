"""Pages out of WARC files: every response that is HTML, from a file that may be cut off or damaged anywhere.

The frame of a record (a line, headers, so many bytes) is read here, within limits: warcio reads a header line however
long it is, fastwarc sets aside as much memory as a record says it has and takes a file that is cut off for a whole one.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gristmill.base.config import check_range
from gristmill.datapipe.ingest.http_body import TooLarge, decode_body
from gristmill.datapipe.ingest.main_text import Extractor, Failed
from gristmill.datapipe.ingest.rows import Bad, Row
from gristmill.datapipe.ingest.storage import Location, open_input, size_of

SUFFIXES = (".warc", ".warc.gz")
PAGE_TYPES = ("text/html", "application/xhtml+xml")
NO_TEXT = "no main text"
"""Why a page gives no document where nothing is wrong with it: the reason that --max-bad-fraction does not count."""
CUT_OFF = "record cut off"
HEAD_BYTES = 2**16
SKIP_BYTES = 2**20
FEED_BYTES = 2**14
PROBE_BYTES = 2**10
MAGIC = b"\x1f\x8b\x08"
MAX_DAMAGES = 100
"""So often is the next record looked for in one gzip file: a crafted one could make every search a long one."""
_LENGTH = re.compile(r"[0-9]{1,15}")
_CONTROL = re.compile(r"[\x00-\x1f]")
_STATUS = re.compile(rb"HTTP/[0-9.]+ +([0-9]{3})(?![0-9])")


@dataclass(frozen=True)
class PageConfig:
    """How the main text of HTML pages is found."""

    max_bytes: int = 8 * 2**20
    """Larger pages go to quarantine: as stored, or as unpacked."""
    max_seconds: int = 20
    """Processor time for one page: trafilatura takes minutes for some that are made to be slow."""
    precision: bool = True
    """Less text, but that for certain (trafilatura's favor_precision, which datatrove takes, too)."""

    def __post_init__(self) -> None:
        check_range("page.max_bytes", self.max_bytes, 1, 2**30)
        check_range("page.max_seconds", self.max_seconds, 1, 3600)


@dataclass(frozen=True)
class _Page:
    offset: int
    values: dict[str, object]
    charset: str
    body: bytes


def is_warc(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def read(path: Location, name: str, text_field: str, config: PageConfig) -> Iterator[Row | Bad]:
    """A row per HTML page with a status of success; its number is the record's offset in the file.

    Values: `text_field`, id (WARC-Record-ID), url, created (WARC-Date), and status, content_type, charset, and
    truncated where the crawler says so. In a file that was compressed as a whole an offset counts its content.

    Raises:
        GristmillError: the file cannot be read, or the packages of the extra `warc` are missing.
    """
    with open_input(path) as raw, Extractor(config.max_seconds, config.precision) as extractor:
        packed = name.lower().endswith(".gz")
        for page in _in_members(raw, size_of(path), config) if packed else _in_stream(raw, 0, config):
            if isinstance(page, Bad):
                yield page
                continue
            found = extractor.main_text(page.body, page.charset)
            if isinstance(found, Failed):
                yield Bad(page.offset, found.reason, found.detail)
            elif not found.text.strip():
                yield Bad(page.offset, NO_TEXT, str(page.values.get("url", "")))
            else:
                yield Row(page.offset, {**page.values, "charset": found.charset, text_field: found.text})


def _in_members(raw: io.BufferedReader, size: int, config: PageConfig) -> Iterator[_Page | Bad]:
    """Records of a gzip file, which is a member per record. A record counts once its member's checksum was right."""
    offset, pages, damages = 0, 0, 0
    while (offset := _past_padding(raw, offset)) < size:
        member = _Member(raw, offset)
        content, held = io.BufferedReader(member), None
        try:
            for record in _in_stream(content, offset, config):
                if held is not None:
                    yield held
                held, pages = record, pages + 1
            while content.read(SKIP_BYTES):
                pass
        except (EOFError, zlib.error) as error:
            damages += 1
            found = _next_record(raw, offset + 1) if damages <= MAX_DAMAGES else None
            told, lost = str(error), 1
            if found is None:
                lost = max(1, round(pages * (size - offset) / max(1, offset)))
                told += f"; nothing after this can be read, about {lost:,} pages"
            yield Bad(offset, "corrupt compressed stream", told, rows=lost)
            offset = size if found is None else found
            continue
        if held is not None:
            yield held
        offset = member.end


def _in_stream(raw: io.BufferedIOBase, base: int, config: PageConfig) -> Iterator[_Page | Bad]:
    """Records one after the other; where none begins, the next line that looks like a record's first is taken."""
    stream, lost = _Counting(raw, base), False
    while True:
        offset, line = stream.position, stream.line(HEAD_BYTES)
        if not line:
            return
        if not line.strip():
            continue
        headers = (stream.headers() if line.startswith(b"WARC/") else None) or {}
        length = headers.get("content-length", "")
        if not _LENGTH.fullmatch(length) or any(map(_CONTROL.search, headers.values())):
            if not lost:
                yield Bad(offset, "broken WARC record", f"no record begins here: {line[:60]!r}")
            lost = True
            continue
        lost, page = False, None
        end = stream.position + int(length)
        if headers.get("warc-type") == "response" and headers.get("content-type", "").startswith("application/http"):
            page = _page(stream, offset, end, headers, config)
            if page is not None:
                yield page
        if not stream.skip_to(end):
            if not isinstance(page, Bad):
                yield Bad(offset, CUT_OFF, f"the file ends before byte {end:,}")
            return


def _page(stream: _Counting, offset: int, end: int, headers: dict[str, str], config: PageConfig) -> _Page | Bad | None:
    """None where the response is no page: another type, or a status that is no success."""
    line = stream.line(min(HEAD_BYTES, end - stream.position))
    status = _STATUS.match(line)
    http = stream.headers(end)
    if status is None or http is None:
        return Bad(offset, "broken HTTP head", f"{line[:60]!r}")
    declared = http.get("content-type", "").partition(";")
    kind = (declared[0].strip() or headers.get("warc-identified-payload-type", "").strip()).lower()
    if kind not in PAGE_TYPES or not status[1].startswith(b"2"):
        return None
    if end - stream.position > config.max_bytes:
        return Bad(offset, "page too large", f"{end - stream.position:,} bytes, limit {config.max_bytes:,}")
    body = stream.read(end - stream.position)
    if stream.position < end:
        return Bad(offset, CUT_OFF, f"the file ends before byte {end:,}")
    try:
        body = decode_body(body, http, config.max_bytes)
    except TooLarge:
        return Bad(offset, "page too large", f"unpacked, more than {config.max_bytes:,} bytes")
    except ValueError as error:
        return Bad(offset, "broken HTTP body", str(error))
    values: dict[str, object] = {
        "id": headers.get("warc-record-id"), "url": headers.get("warc-target-uri", "").strip("<>") or None,
        "created": headers.get("warc-date"), "status": int(status[1]), "content_type": kind,
    }  # fmt: skip
    if "warc-truncated" in headers:
        values["truncated"] = headers["warc-truncated"]
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", declared[2], re.IGNORECASE)
    return _Page(offset, values, charset[1] if charset else "", body)


class _Counting:
    """A stream that knows how far it was read."""

    def __init__(self, raw: io.BufferedIOBase, position: int) -> None:
        self._raw, self.position = raw, position

    def line(self, limit: int) -> bytes:
        line = self._raw.readline(limit)
        self.position += len(line)
        return line

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self.position += len(data)
        return data

    def skip_to(self, end: int) -> bool:
        while self.position < end:
            if not self.read(min(SKIP_BYTES, end - self.position)):
                return False
        return True

    def headers(self, end: int | None = None) -> dict[str, str] | None:
        """Lower-case name to value, up to and with the empty line; None where they do not end within 64 KiB."""
        stop = self.position + HEAD_BYTES if end is None else min(end, self.position + HEAD_BYTES)
        found: dict[str, str] = {}
        while line := self.line(stop - self.position):
            if line in (b"\r\n", b"\n"):
                return found
            name, colon, value = line.partition(b":")
            if colon and line.endswith(b"\n") and not line.startswith((b" ", b"\t")):
                found.setdefault(name.strip().lower().decode("latin-1"), _text(value.strip()))
        return found if end is not None and self.position == end else None  # a response may be headers only


class _Member(io.RawIOBase):
    """What one gzip member holds. Raises EOFError or zlib.error where it is cut off or damaged."""

    def __init__(self, raw: io.BufferedReader, offset: int) -> None:
        self._raw, self._inflate, self._fed = raw, zlib.decompressobj(wbits=31), offset
        raw.seek(offset)

    @property
    def end(self) -> int:
        """Where it ended, once all of it was read."""
        return self._fed - len(self._inflate.unused_data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._raw.read(FEED_BYTES)
            self._fed += 0 if self._inflate.unconsumed_tail else len(data)
            output = self._inflate.decompress(data, len(buffer))
            if output:
                buffer[: len(output)] = output
                return len(output)
            if not data:
                raise EOFError("the last record is cut off")
        return 0


def _past_padding(raw: io.BufferedReader, offset: int) -> int:
    """Tapes and some writers pad with zeros."""
    raw.seek(offset)
    while data := raw.read(FEED_BYTES):
        left = len(data.lstrip(b"\0"))
        offset += len(data) - left
        if left:
            break
    return offset


def _next_record(raw: io.BufferedReader, offset: int) -> int | None:
    """Where the next gzip member begins that holds a WARC record, from `offset` on."""
    while True:
        raw.seek(offset)
        window = raw.read(SKIP_BYTES)
        at = window.find(MAGIC)
        while at >= 0:
            if _begins_record(window[at : at + PROBE_BYTES]):
                return offset + at
            at = window.find(MAGIC, at + 1)
        if len(window) < SKIP_BYTES:
            return None
        offset += SKIP_BYTES - PROBE_BYTES


def _begins_record(data: bytes) -> bool:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 2**8).lstrip().startswith(b"WARC/")
    except zlib.error:
        return False


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
