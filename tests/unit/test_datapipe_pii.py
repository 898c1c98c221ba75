"""Phone numbers, cards, IPv6, the shape of the columns; for e-mail and IPv4 datatrove is asked, in tests/parity."""

from __future__ import annotations

import ipaddress
import random
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import assert_measured_alone, hostile

from gristmill.datapipe.filters.pii import KINDS, PiiConfig, measure
from gristmill.datapipe.filters.pii_addresses import _public
from gristmill.datapipe.text import spans
from gristmill.datapipe.text.buffers import text_of

ALL = PiiConfig(public_ips_only=False)


def found(kind: str, text: str, config: PiiConfig = ALL) -> list[str]:
    flat = measure(text_of(pa.array([text])), config)[kind].to_pylist()[0]
    return [text.encode()[start:end].decode() for start, end in zip(flat[::2], flat[1::2])]


PHONES = [
    "+49 30 901820", "+1 (212) 736-5000", "(212) 736-5000", "(212)736-5000", "212-736-5000", "212.736.5000",
    "1-800-225-5288", "+44 (0)20 7946 0958", "+33 1 42 68 53 00", "+12127365000", "+4930901820", "+1 212 736 5000",
    "+86 138 0013 8000", "+352 26 12 34 56", "+33\u00a01\u00a042\u00a068\u00a053\u00a000",
]  # fmt: skip
NO_PHONES = [
    "212 736 5000", "2127365000", "112-736-5000", "211-736-5000", "212-711-5000", "212-736-50001", "2012-10-10",
    "+1 112 736 5000", "+999 12 345 678", "+32768000", "+49 3", "+49 1 2 3 4 5 6 7", "a+4930901820",
    "x = 1+4930901820", "12-34-56", "1.212.736.5000.1", "10.1.212-736-5000", "$212-736-5000", "+1234567890123456789",
    "0.212-736-5000", "212-736-5000-1", "+210 123 456 78",
]  # fmt: skip
CARDS = [
    "4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "378282246310005", "3782 822463 10005",
    "30569309025904", "3056 930902 5904", "5555555555554444", "2223003122003222", "6011111111111117",
    "3530111333300000", "6200000000000005", "4222222222222",
]  # fmt: skip
NO_CARDS = [
    "4111 1111 1111 1112", "1234567890123452", "41111111 11111111", "4111 1111-1111 1111", "0.4111111111111111",
    "4111111111111111.5", "4111 1111 1111 1111 4111", "1111 4111 1111 1111 1111", "x4111111111111111",
    "41111111111111110", "4111  1111 1111 1111", "1.4111111111111111e5",
]  # fmt: skip


@pytest.mark.parametrize("number", PHONES)
def test_phone_numbers(number: str) -> None:
    for text in (
        number,
        f"call {number}, or",
        f"Tel:{number}.",
        f"电话{number}，",
        f"({number})\n7",
        f"\t{number} now",
    ):
        assert found("phone", text) == [number], text


@pytest.mark.parametrize("text", NO_PHONES)
def test_other_numbers_are_no_phones(text: str) -> None:
    assert found("phone", text) == found("phone", f"so {text} it is") == []


@pytest.mark.parametrize("number", CARDS)
def test_cards(number: str) -> None:
    for text in (number, f"card {number} 12/25 123", f"卡号{number}。", f"{number}, {number}"):
        assert set(found("card", text)) == {number}, text


@pytest.mark.parametrize("text", NO_CARDS)
def test_other_numbers_are_no_cards(text: str) -> None:
    assert found("card", text) == []


@settings(max_examples=300)
@given(st.integers(4 * 10**14, 5 * 10**14 - 1))
def test_only_the_luhn_digit_makes_a_visa(body: int) -> None:
    digits = [int(digit) for digit in str(body)]
    total = sum(sum(divmod(2 * digit, 10)) if place % 2 == 0 else digit for place, digit in enumerate(digits))
    for last in range(10):
        number = f"{body}{last}"
        assert found("card", number) == ([number] if (total + last) % 10 == 0 else [])


@settings(max_examples=300)
@given(
    st.integers(0, 2**128 - 1) | st.sampled_from([1, 0x2001 << 112, (0x2001 << 112) + 1, 0xFE80 << 112]), st.booleans()
)
def test_ipv6_addresses(value: int, exploded: bool) -> None:
    address = ipaddress.IPv6Address(value)
    written = address.exploded if exploded else address.compressed
    likely = any(c.isdigit() for c in written) and len([group for group in written.split(":") if group]) > 1
    for text in (f"at {written}.", f"[{written}]:443", f"{written}%eth0", f"from {written}: hello"):
        assert found("ip", text) == ([written] if likely else []), text
        assert found("ip", text, PiiConfig()) == ([written] if _unicast(address) else []), text


def _unicast(address: ipaddress.IPv6Address) -> bool:
    return address in ipaddress.IPv6Network("2000::/3") and address.is_global


@pytest.mark.parametrize(
    "text",
    [
        "std::vector", "Face::add", "12:34:56", "1:2:3:4:5:6:7", "1:::2", "::", "a::b::c", "1:2:3:4:5:6:7:8:9",
        "12345::1", "2001:db8::1.2.3", "x2001:db8::1",
    ],
)  # fmt: skip
def test_other_colons_are_no_addresses(text: str) -> None:
    assert [ip for ip in found("ip", text) if ":" in ip] == []


def test_public_addresses_are_those_of_the_library() -> None:
    starts, public, _, _ = _public()
    rng = random.Random(1)
    borders = [int(start) + step for start in starts for step in (-1, 0, 1)] + [2**32 - 1]
    for value in [*borders, *(rng.randrange(2**32) for _ in range(3000))]:
        if 0 <= value < 2**32:
            ours = public[np.searchsorted(starts, value, "right") - 1]
            assert ours == ipaddress.IPv4Address(value).is_global, ipaddress.IPv4Address(value)


def test_nothing_is_found_twice_or_inside_an_email() -> None:
    text = "8.8.8.8@a.org 212-736-5000@a.org x@4111111111111111.de +4930901820@b.com"
    assert [found(kind, text) for kind in KINDS[1:]] == [[], [], []]
    assert len(found("email", text)) == 4


def test_columns_line_up_with_the_documents() -> None:
    texts = pa.chunked_array([["a@b.co", None], ["", "8.8.8.8 é a@b.co 8.8.4.4"]])
    columns = measure(text_of(texts.slice(1)), PiiConfig())
    assert columns["email"].to_pylist() == [[], [], [11, 17]]
    assert columns["ip"].to_pylist() == [[], [], [0, 7, 18, 25]]
    assert columns["ip_count"].to_pylist() == [0, 0, 2] and columns["email_count"].to_pylist() == [0, 0, 1]
    assert {name: str(column.type) for name, column in columns.items() if name.endswith("count")} == {
        f"{kind}_count": "int32" for kind in KINDS
    }


@pytest.mark.parametrize("seed", range(5))
def test_odd_bytes_give_spans_that_can_be_cut(seed: int) -> None:
    pieces = [
        b"@", b".", b"a", b"b.de", b"1.2.3.4", b":", b"::", b"2001:", b"+49", b"(212) ", b"736-5000", b"4111 1111 ",
    ]  # fmt: skip
    column = hostile(seed, pieces, 2000)
    for config in (ALL, PiiConfig()):
        columns = measure(text_of(column), config)
        for kind in KINDS:
            spans.apply(column, [(columns[kind], "<x>")])  # refuses spans that are out of order or split a character
    for part in (column[:300], column[-300:]):
        assert_measured_alone(part, lambda texts: measure(text_of(texts), ALL))


@pytest.mark.parametrize(
    "unit",
    [
        "a", "a@", "@", "a.", "a@a.", "1.", "1.1.1.", "1", "1:", "ffff:", "::", "+1", "+49 ", "(2", "4111 ", "4111",
        "a.b@c-", "!", "é", "1 1-1.", "a@[1.1.1.", "a-@-",
    ],
)  # fmt: skip
def test_time_grows_with_the_bytes(unit: str) -> None:
    measure(text_of(pa.array(["a"])), ALL)
    spent = []
    for size in (1 << 18, 1 << 22):
        text = text_of(pa.array([unit * (size // len(unit))], pa.large_string()))
        start = time.process_time()
        measure(text, ALL)
        spent.append(time.process_time() - start)
    assert spent[1] < 64 * max(spent[0], 0.05)
