"""WARC files as crawlers write them, and as they must not be: every page comes in or is told with its offset."""

from __future__ import annotations

import gzip
import io
import json
import resource
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from gristmill.base.errors import UsageError
from gristmill.datapipe.ingest import main_text
from gristmill.datapipe.ingest.charset import codec_of, decode_page
from gristmill.datapipe.ingest.documents import Documents
from gristmill.datapipe.ingest.http_body import TooLarge, decode_body
from gristmill.datapipe.ingest.readers import read_rows
from gristmill.datapipe.ingest.rows import Bad, Row
from gristmill.datapipe.ingest.warc import NO_TEXT, PageConfig

SENTENCE = "The miller went down to the brook in the morning, because the wheel had creaked all night. "
HTML = [("Content-Type", "text/html; charset=utf-8")]


def article(number: int = 0, text: str = SENTENCE) -> str:
    paragraphs = "".join(f"<p>{text}Paragraph {number}.{index} ends here.</p>" for index in range(4))
    return f"<html><head><title>x</title></head><body><article><h1>Title</h1>{paragraphs}</article></body></html>"


def written(*pages: bytes | tuple[Any, ...], gz: bool = True) -> bytes:
    """A WARC file of responses, each a body or (body, headers, status line), after a warcinfo record and a request."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=gz)
    writer.write_record(writer.create_warcinfo_record("test.warc", {"software": "test"}))
    for number, page in enumerate(pages):
        given = page if isinstance(page, tuple) else (page,)
        filled: tuple[Any, ...] = (*given, *(b"", HTML, "200 OK")[len(given) :])
        body, headers, status = filled
        url = f"http://example.org/{number}"
        request = StatusAndHeaders(f"GET /{number} HTTP/1.1", [("Host", "example.org")], is_http_request=True)
        writer.write_record(writer.create_warc_record(url, "request", payload=io.BytesIO(), http_headers=request))
        response = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
        extra = {"WARC-Date": f"2024-02-20T21:10:{number:02d}Z", "WARC-Record-ID": f"<urn:uuid:{number}>"}
        record = writer.create_warc_record(
            url, "response", payload=io.BytesIO(body), http_headers=response, warc_headers_dict=extra
        )
        writer.write_record(record)
    return out.getvalue()


def offsets(data: bytes) -> list[int]:
    """Where warcio finds the responses."""
    records = ArchiveIterator(io.BytesIO(data))
    return [records.get_record_offset() for record in records if record.rec_type == "response"]


def read(folder: Path, data: bytes, name: str = "crawl.warc.gz", **config: Any) -> tuple[list[Row], list[Bad]]:
    (folder / name).write_bytes(data)
    rows = list(read_rows(folder / name, name, "text", 1, None, PageConfig(**config)))
    assert [row.number for row in rows] == sorted(row.number or 0 for row in rows)
    return [row for row in rows if isinstance(row, Row)], [row for row in rows if isinstance(row, Bad)]


@pytest.mark.parametrize("gz", [True, False])
def test_pages_become_documents_at_the_offsets_that_other_tools_use(tmp_path: Path, gz: bool) -> None:
    data = written(*(article(number).encode() for number in range(3)), gz=gz)
    rows, bad = read(tmp_path, data, "crawl.warc.gz" if gz else "crawl.warc")
    assert not bad and [row.number for row in rows] == offsets(data)
    values = dict(rows[1].values)
    text = values.pop("text")
    assert text.startswith("Title\nThe miller") and "Paragraph 1.3 ends here." in text and "<" not in text
    assert values == {
        "id": "<urn:uuid:1>", "url": "http://example.org/1", "created": "2024-02-20T21:10:01Z", "status": 200,
        "content_type": "text/html", "charset": "utf-8",
    }  # fmt: skip
    document = Documents("crawl.warc.gz", "text", "id", "source", "", ()).document(rows[1])
    assert isinstance(document, tuple) and document[0] == b"<urn:uuid:1>" and document[2] == "crawl"
    assert json.loads(document[5] or b"") == {"status": 200, "content_type": "text/html", "charset": "utf-8"}


def test_what_is_no_page_is_passed_over_and_a_page_without_text_is_told(tmp_path: Path) -> None:
    page = article().encode()
    data = written(
        (b"\x89PNG", [("Content-Type", "image/png")]), (page, HTML, "404 Not Found"), (page, HTML, "301 Moved"),
        (page, [("Content-Type", "application/xhtml+xml")]), (b"<html><body></body></html>", HTML), (b"", HTML),
        (page, []),
    )  # fmt: skip
    rows, bad = read(tmp_path, data)
    assert [row.values["url"] for row in rows] == ["http://example.org/3"]
    assert [(told.number, told.reason) for told in bad] == [(offset, NO_TEXT) for offset in offsets(data)[4:6]]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("gz", [True, False])
def test_a_file_that_was_cut_off_loses_its_last_record_and_says_so(tmp_path: Path, gz: bool, cut: float) -> None:
    data = written(*(article(number).encode() for number in range(8)), gz=gz)
    starts = offsets(data)
    size = int(len(data) * cut)
    whole = [start for start, end in zip(starts, [*starts[1:], len(data)], strict=True) if end <= size]
    rows, bad = read(tmp_path, data[:size], "crawl.warc.gz" if gz else "crawl.warc")
    assert [row.number for row in rows][: len(whole)] == whole and len(rows) <= len(whole) + 1
    (told,) = bad
    assert told.reason in (("corrupt compressed stream",) if gz else ("record cut off", "broken WARC record"))


def test_damage_in_one_record_leaves_the_others(tmp_path: Path) -> None:
    data = bytearray(written(*(article(number).encode() for number in range(6))))
    starts = offsets(bytes(data))
    middle = (starts[2] + starts[3]) // 2
    data[middle : middle + 8] = b"damaged!"
    rows, bad = read(tmp_path, bytes(data))
    assert [row.number for row in rows] == starts[:2] + starts[3:]
    assert [(told.number, told.reason, told.rows) for told in bad] == [(starts[2], "corrupt compressed stream", 1)]
    plain = written(*(article(number).encode() for number in range(6)), gz=False)
    starts = offsets(plain)
    broken = bytearray(plain)
    broken[starts[2] : starts[2] + 30] = bytes(30)
    rows, bad = read(tmp_path, bytes(broken), "crawl.warc")
    assert [row.number for row in rows] == starts[:2] + starts[3:]
    assert [(told.number, told.reason) for told in bad] == [(starts[2], "broken WARC record")]


BLANK = {gz: written(*(b"<html><body></body></html>" for _ in range(5)), gz=gz) for gz in (True, False)}


@given(gz=st.booleans(), place=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=40))
@settings(max_examples=300)
def test_no_damage_stops_the_reader_or_goes_untold(
    tmp_path_factory: pytest.TempPathFactory, gz: bool, place: float, noise: bytes
) -> None:
    at = int(place * len(BLANK[gz]))
    torn = BLANK[gz][:at] + noise + BLANK[gz][at + len(noise) :]
    with pytest.MonkeyPatch.context() as patch:  # no process for each example
        patch.setattr(main_text.Extractor, "main_text", lambda _self, _page, _charset: main_text.Found("", ""))
        rows, bad = read(tmp_path_factory.mktemp("warc"), torn, "crawl.warc.gz" if gz else "crawl.warc")
    assert not rows and len({(told.number, told.reason) for told in bad}) == len(bad)
    if gz:  # a checksum holds for each record; so short a damage hits two of them at most
        assert sum(told.rows for told in bad) >= 4


def test_a_file_that_was_compressed_as_a_whole_is_read_too(tmp_path: Path) -> None:
    plain = written(*(article(number).encode() for number in range(3)), gz=False)
    rows, bad = read(tmp_path, gzip.compress(plain))
    assert not bad and [row.number for row in rows] == offsets(plain)
    rows, bad = read(tmp_path, written(article().encode()) + bytes(100_000) + written(article().encode()))
    assert len(rows) == 2 and not bad  # padding


@pytest.mark.parametrize("junk", [b"hello world\n" * 1000, b"\x1f\x8b\x08" * 5000, bytes(5000) + b"x", b"WARC/1.0\r\n"])
def test_what_is_no_warc_file_is_one_bad_row(tmp_path: Path, junk: bytes) -> None:
    for name in ("crawl.warc", "crawl.warc.gz"):
        rows, bad = read(tmp_path, junk, name)
        assert not rows and len(bad) == 1


def hostile_record(head: bytes, block: bytes = b"") -> bytes:
    return b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n" + head + b"\r\n\r\n" + block


@pytest.mark.parametrize(
    ("head", "block"),
    [
        (b"Content-Length: 999999999999999", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>x"),
        (b"Content-Length: -1", b""),
        (b"Content-Length: 99999999999999999999999999", b""),
        (b"Content-Length: 9" * 9000, b""),
        (b"X: " + b"a" * 10_000_000, b""),
        (b"Content-Length: 10000000", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_600_000 + b"\r\n" * 200_000),
    ],
)
def test_a_record_that_lies_about_itself_costs_no_memory(tmp_path: Path, head: bytes, block: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = written(article().encode(), gz=False)
    for name, data in (
        ("crawl.warc", hostile_record(head, block) + b"\r\n" + good),
        ("crawl.warc.gz", gzip.compress(hostile_record(head, block), 1) + gzip.compress(good)),
    ):
        rows, bad = read(tmp_path, data, name)
        assert len(bad) >= 1 and len(rows) <= 1
        assert name == "crawl.warc" or len(rows) == 1  # a member of its own keeps it to itself
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_hostile_pages_are_bounded_and_the_next_one_comes_in(tmp_path: Path) -> None:
    attributes = (
        "<html><body><div " + " ".join(f'a{index}="x"' for index in range(60_000)) + ">text</div></body></html>"
    )
    deep = "<html><body>" + "<div>" * 100_000 + SENTENCE * 9
    bomb = gzip.compress(b"<html>" + bytes(300_000_000), 1)
    packed = [*HTML, ("Content-Encoding", "gzip")]
    data = written(
        attributes.encode(), deep.encode(), b"<html><body>" + b"x " * 2_000_000, (bomb, packed), article().encode()
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, bad = read(tmp_path, data, max_bytes=2**21, max_seconds=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    assert [row.values["url"] for row in rows] == ["http://example.org/4"]
    assert [told.reason for told in bad] == ["text extraction took too long", NO_TEXT, *["page too large"] * 2]


def test_an_extraction_that_dies_costs_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with main_text.Extractor(20, True) as extractor:
        found = extractor.main_text(article().encode())
        assert isinstance(found, main_text.Found) and "miller" in found.text
        process = extractor._process
        assert process is not None
        process.terminate()
        process.wait()
        lost = extractor.main_text(article().encode())
        assert isinstance(lost, main_text.Failed) and lost.reason == main_text.CRASHED
        assert isinstance(extractor.main_text(article().encode()), main_text.Found)
        assert extractor._process is not None
        extractor._process.kill()  # from outside: the page is not to blame
        assert isinstance(extractor.main_text(article().encode()), main_text.Found)
    assert extractor._process is None
    monkeypatch.setattr(main_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"gristmill-datapipe\[warc\]"):
        read(tmp_path, b"")


def chunks(body: bytes, size: int = 700) -> bytes:
    cut = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*cut, b""])


def test_bodies_are_unpacked_as_the_headers_say_or_taken_as_they_are() -> None:
    body = article().encode()
    raw_deflate = zlib.compressobj(wbits=-15)
    cases: list[tuple[bytes, dict[str, str]]] = [
        (body, {}), (gzip.compress(body), {"content-encoding": "gzip"}), (body, {"content-encoding": "gzip"}),
        (zlib.compress(body), {"content-encoding": "deflate"}),
        (raw_deflate.compress(body) + raw_deflate.flush(), {"content-encoding": "deflate"}),
        (brotli.compress(body), {"content-encoding": "br"}), (body, {"content-encoding": "br"}),
        (zstandard.compress(body), {"content-encoding": "zstd"}), (chunks(body), {"transfer-encoding": "chunked"}),
        (chunks(gzip.compress(body), 33), {"transfer-encoding": "chunked", "content-encoding": "gzip"}),
        (body, {"transfer-encoding": "chunked"}), (body, {"content-encoding": "identity"}),
        (gzip.compress(brotli.compress(body)), {"content-encoding": "br, gzip"}),
    ]  # fmt: skip
    for packed, headers in cases:
        assert decode_body(packed, headers, len(body)) == body, headers
    for packed, headers in cases:
        if packed != body and headers != {"transfer-encoding": "chunked"}:
            with pytest.raises(TooLarge):
                decode_body(packed, headers, len(body) - 1)
    for wrong in ({"content-encoding": "gzip"}, {"content-encoding": "br"}, {"content-encoding": "foo"}):
        with pytest.raises(ValueError):
            decode_body(b"\x00not packed at all", wrong, 1000)
    with pytest.raises(ValueError, match="one over the other"):
        decode_body(b"x", {"content-encoding": "gzip," * 100}, 1000)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "br", "zstd", "", "x"]), st.booleans())
def test_no_body_does_worse_than_a_value_error(body: bytes, coding: str, chunked: bool) -> None:
    headers = {"content-encoding": coding, "transfer-encoding": "chunked" if chunked else ""}
    try:
        assert len(decode_body(body, headers, 1000)) <= max(1000, len(body))
    except ValueError:
        pass


GERMAN = "Am Morgen ging der Müller zum Bach hinunter, denn das Rad hatte in der Nacht geknarrt. Er hörte Flügel."
RUSSIAN = "Утром мельник спустился к ручью, потому что ночью скрипело колесо, и он хотел посмотреть, что там застряло."
JAPANESE = (
    "朝、粉屋は小川へ下りていった。夜のあいだ水車がきしんでいたので、枝が引っかかっていないか見ようと思ったのだ。"
)
CHINESE = "早晨，磨坊主走到小溪边，因为夜里水轮嘎吱作响，他想看看是不是有树枝卡在里面。"
KOREAN = "아침에 방앗간 주인은 개울로 내려갔다. 밤새 물레바퀴가 삐걱거렸기 때문이다."


@pytest.mark.parametrize(
    ("text", "encoding", "declared", "meta", "found"),
    [
        (GERMAN, "utf-8", "", "", "utf_8"), (GERMAN, "utf-8", "iso-8859-1", "", "utf_8"),
        (GERMAN, "utf-8-sig", "", "", "utf-8-sig"), (GERMAN, "utf-16", "", "", "utf-16"),
        (GERMAN, "cp1252", "ISO-8859-1", "", "cp1252"), (GERMAN, "cp1252", "", "windows-1252", "cp1252"),
        (RUSSIAN, "cp1251", "windows-1251", "", "cp1251"), (RUSSIAN, "koi8-r", "utf-8", "", "koi8_r"),
        (RUSSIAN, "cp1251", "", "", "cp1251"), (RUSSIAN, "cp1251", "punycode", "zip", "cp1251"),
        (JAPANESE, "shift_jis", "Shift_JIS", "", "cp932"), (JAPANESE, "shift_jis", "", "x-sjis", "cp932"),
        (JAPANESE, "euc_jp", "idna", "hex", "euc_jp"), (CHINESE, "gb2312", "gb2312", "", "gb18030"),
        (KOREAN, "euc_kr", "utf-8", "euc-kr", "cp949"),
    ],
)  # fmt: skip
def test_charsets(text: str, encoding: str, declared: str, meta: str, found: str) -> None:
    page = f'<html><head><meta charset="{meta}"></head><body>{text}</body></html>'
    decoded, charset = decode_page(page.encode(encoding), declared)
    assert text in decoded and charset == found.replace("_", "-")


def test_only_charsets_of_pages_are_looked_up() -> None:
    for name in ("zip", "hex", "rot13", "idna", "punycode", "unicode_escape", "utf-7", "undefined", "../os", "", "x"):
        assert codec_of(name) is None
    assert decode_page(b"\xff\xfe\xfd" * 10_000, "punycode")[0]
