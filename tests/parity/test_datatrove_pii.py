"""E-mail and IPv4 spans against the regular expressions of datatrove's PIIFormatter, on made up and on real text."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.datapipe.filters.pii import PiiConfig, measure
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import text_of

pii = pytest.importorskip("datatrove.pipeline.formatters.pii")
PEER = pii.PIIFormatter()
# What the two expressions are made of, so that most texts come near to a match.
PIECES = ["a", "b.", "@", "1", "2", "25", "6", "0", ".", "-", "[", "]", ":", "é", "٣", "²", "_", "!", " ", "..", "255.",
          "10.", "8.8.8.", "@x.", "漢", "\n", "+", "1.2.3.", "ab@[1.2.3.4]", "x-y:]"]  # fmt: skip


def found(text: str, public_only: bool) -> tuple[list[int], list[int]]:
    """(e-mail spans, IP spans outside of them) in bytes, as the formatter replaces them one after the other."""
    emails = [match.span() for match in PEER.emails_replacer.regex.finditer(text)]
    ips, last = [], 0
    for start, end in [*emails, (len(text), len(text))]:
        matches = PEER.ip_replacer.regex.finditer(text[last:start])
        valid = [match for match in matches if pii.public_ip_validator(match.group(0), public_only)]
        ips += [(last + match.start(), last + match.end()) for match in valid]
        last = end
    in_bytes = [[len(text[:at].encode()) for span in kind for at in span] for kind in (emails, ips)]
    return in_bytes[0], in_bytes[1]


def check(texts: list[str]) -> None:
    for public_only in (True, False):
        columns = measure(text_of(pa.array(texts)), PiiConfig(public_ips_only=public_only, ipv6=False))
        for text, email, ip in zip(texts, columns["email"].to_pylist(), columns["ip"].to_pylist()):
            assert (email, ip) == found(text, public_only), text


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), min_size=1, max_size=8))
def test_spans_are_those_of_the_regular_expressions(texts: list[str]) -> None:
    check(texts)


@settings(max_examples=200)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_spans_on_any_text(texts: list[str]) -> None:
    check(texts)


def test_spans_on_many_near_misses() -> None:
    rng = random.Random(5)
    check(["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(5000)])


def test_spans_on_real_files() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [
        "ipaddress.py",
        "email/_header_value_parser.py",
        "smtplib.py",
        "socket.py",
        "test/test_ipaddress.py",
        "uuid.py",
    ]
    texts = [path.read_text("utf-8") for name in files if (path := library / name).is_file()]
    metadata = sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA"))[:80]
    check(texts + [path.read_text("utf-8", errors="replace") for path in metadata])


def test_masked_text_is_the_formatters() -> None:
    peer = pii.PIIFormatter(email_replacement="<E>", ip_replacement="<I>")
    texts = ["Mail a.b@c.org, or x@[8.8.8.8]; ping 8.8.4.4 from 10.0.0.1, 01.2.3.4", "é1.2@x.de 1.2.3.4567.8.9.10"]
    column = pa.array(texts)
    columns = measure(text_of(column), PiiConfig(ipv6=False))
    masked = spans.apply(column, [(columns["email"], "<E>"), (columns["ip"], "<I>")])
    assert masked.to_pylist() == [peer.format(text) for text in texts]
