"""Shares of markup against counts by hand and plain regular expressions."""

from __future__ import annotations

import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import assert_measured_alone, hostile

from gristmill.datapipe.filters.markup import measure
from gristmill.datapipe.filters.markup_lines import lines, tex_and_wiki
from gristmill.datapipe.text.buffers import text_of


def of(text: str) -> dict[str, Any]:
    return {name: column.to_pylist()[0] for name, column in measure(pa.array([text])).items()}


def tex(text: str) -> list[int]:
    return tex_and_wiki(text_of(pa.array([text]))).tolist()[0]


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("<p>Hällo <b class='x'>you</b></p>", "Hälloyou"), ("a < b > c <= d <3 <-", "a<b>c<=d<3<-"),
        ("<!-- a <b> > -->c<!doctype x>", "c"), ("<script a=b>if (a<b) c</script >d<STYLE>e</style>f", "df"),
        ("<scripts>a</scripts>", "a"), ("a<br/>b</p>c", "abc"), ("<script>a", "a"), ("<!-- a", "a"),
        ("<?xml version='1.0'?>a", "a"), ("<a <b>c", "<ac"), ("<", "<"), ("<a", "<a"), ("x<a\n href=y>z", "xz"),
        ("<script>a</script><script>b<p>c", "bc"),
    ],
)  # fmt: skip
def test_what_a_browser_shows(text: str, visible: str) -> None:
    found = of(text)
    assert found["visible_characters"] == len(visible)
    assert found["tags"] + found["visible"] == pytest.approx(1)


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(["<p>", "</p>", "<b x=y>", "é", " ", "a ", ">", "< ", "<1", "\n", "&amp;"]), max_size=30
    ).map("".join)
)
def test_tags_are_those_of_a_regular_expression(text: str) -> None:
    rest = re.sub(r"</?[A-Za-z][^<>]*>", "", text)
    found = of(text)
    assert found["visible_characters"] == len(re.sub(r"\s", "", rest))
    assert found["tags"] == (pytest.approx(1 - len(rest.encode()) / len(text.encode())) if text else None)


@pytest.mark.parametrize(
    ("text", "math", "unbalanced"),
    [
        ("$x$", "$x$", 0), ("a $x + y$ b $z$", "$x + y$$z$", 0), ("$$x$$", "$$x$$", 0),
        ("\\(x\\) \\[y\\]", "\\(x\\)\\[y\\]", 0), ("$5 and $10", "", 0), ("it is $5", "", 0), ("\\$x\\$", "", 0),
        ("$x", "", 1), ("$ x $", "", 0), ("$x\n\ny$", "", 1), ("$x\ny$", "$x\ny$", 0), ("\\(x", "", 1),
        ("x\\)", "", 1), ("$$x", "", 1), ("\\[x\\)", "", 1), ("\\\\[2pt]", "", 0), ("$x$5", "", 1),
        ("\\begin{align*}x\\end{align*}", "\\begin{align*}x\\end", 0),
        ("\\begin{align}$x$\\end{align}", "\\begin{align}$x$\\end", 0), ("\\begin{item}x\\end{item}", "", 0),
        ("$$\\begin{align}y\\end{align}$$", "$$\\begin{align}y\\end{align}$$", 0),
        ("x\\[\\begin{math}a\\end{math}\\]", "\\[\\begin{math}a\\end{math}\\]", 0),
        ("$a$ \\begin{math}$b$\\end{math}", "$a$\\begin{math}$b$\\end", 0),
        ("\\begin{a}\\begin{b}\\end{b}", "", 1), ("\\end{a}\\begin{b}", "", 2),
    ],
)  # fmt: skip
def test_math(text: str, math: str, unbalanced: int) -> None:
    found = tex(text)
    assert (found[1], found[3]) == (len(math), unbalanced)


def test_commands_environments_and_wiki() -> None:
    assert tex("\\alpha + \\begin{x} 5\\% \\\\ \\d")[:3] == [6 + 6, 0, 1]
    assert tex("[[a|b]] {{c}} '''d''' ''e''")[4] == 4 + 4 + 4 + 4
    assert tex("== Head ==\nx == y\n=====\n")[4] == 2
    assert [tex("")[column] for column in range(5)] == [0] * 5


def test_prologues_within_the_first_hundred_characters() -> None:
    xml, html = '<?xml version="1.0"?>', "<!DOCTYPE html>"
    for padding in (0, 86, 87, 200):
        text = "é" * padding + xml
        assert of(text)["xml_prologue"] == ("<?xml version=" in text[:100])
    assert (
        of(html)["html_prologue"]
        and of("\n <HTML lang=x>")["html_prologue"]
        and not of("x" * 100 + html)["html_prologue"]
    )
    assert not of("")["html_prologue"] and not of("<htmlx>")["html_prologue"]


def test_lines_of_tables_and_lists() -> None:
    rows = ["| a | b |", "x | y | z", "x || y || z", "a\tb\tc", "\ta", "x & y & z \\\\", "x & y & z"]
    items = ["- item", " -no", "* item", "• item", "12. item", "1234. no", "2) x", "3.", "", " ", ""]
    text = "\n".join(rows + items)
    assert lines(text_of(pa.array([text, ""]))).tolist() == [[15, 4, 5], [0, 0, 0]]
    assert of(text)["list_lines"] == pytest.approx(5 / 15)


def test_columns_of_nothing() -> None:
    columns = measure(pa.chunked_array([["", None], ["x"]]))
    shares = {"tags", "visible", "tex_commands", "math", "wiki", "table_lines", "list_lines"}
    assert {name for name, column in columns.items() if column.null_count} == shares
    assert all(columns[name].is_null().to_pylist() == [True, True, False] for name in shares)
    assert measure(pa.array([], pa.string()))["tags"].to_pylist() == []


def test_prose_holds_hardly_any_markup() -> None:
    folder = Path(sysconfig.get_paths()["purelib"])
    licenses = [
        path.read_text("utf-8", errors="replace") for path in sorted(folder.rglob("LICENSE*"))[:50] if path.is_file()
    ]
    columns = measure(pa.array(licenses))
    for name in ("tags", "tex_commands", "math", "wiki", "table_lines"):
        assert np.nanmean(columns[name].to_numpy(zero_copy_only=False)) < 0.02, name


@pytest.mark.parametrize("seed", range(3))
def test_odd_bytes_are_measured(seed: int) -> None:
    pieces = [
        b"<", b">", b"<!--", b"-->", b"<script>", b"</script", b"$", b"$$", b"\\(", b"\\begin{align}", b"\\end{",
        b"[[", b"|", b"==", b"-", b"\\\\", b"1.", b"&",
    ]  # fmt: skip
    column = hostile(seed, pieces, 2000)
    for values in measure(column).values():
        assert len(values) == len(column)
        if pa.types.is_floating(values.type):
            shares = values.drop_null().to_numpy()
            assert ((shares >= 0) & (shares <= 1)).all()
    assert_measured_alone(column[-300:], measure)


@pytest.mark.parametrize(
    "unit",
    [
        "<", "<a", "<!--", "<script>", "<style><script>", "<a='", "$", "$a ", "\\(", "\\begin{align}", "\\", "|",
        "\n", "1", "- ", "=", "==a\n", "a", "é", " ",
    ],
)  # fmt: skip
def test_time_grows_with_the_bytes(unit: str) -> None:
    spent = []
    for size in (1 << 18, 1 << 22):
        texts = pa.array([unit * (size // len(unit))])
        start = time.process_time()
        measure(texts)
        spent.append(time.process_time() - start)
    assert spent[1] < 64 * max(spent[0], 0.05)
