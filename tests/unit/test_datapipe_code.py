"""Measurements of code against plain Python, Python's own tokenizer, and Pygments where it is installed."""

from __future__ import annotations

import io
import random
import re
import sysconfig
import time
import tokenize
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hostile_texts import assert_measured_alone, hostile

from gristmill.datapipe.filters.code import CodeConfig, measure
from gristmill.datapipe.filters.code_comments import comments
from gristmill.datapipe.filters.code_data import encoded
from gristmill.datapipe.filters.code_languages import NAMES, ids, languages, syntaxes
from gristmill.datapipe.text.buffers import text_of

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


def of(text: str, path: str | None = None, config: CodeConfig | None = None) -> dict[str, object]:
    columns = measure(pa.array([text]), pa.array([path], pa.string()), config or CodeConfig())
    return {name: column.to_pylist()[0] for name, column in columns.items()}


def commented(text: str, language: str) -> int:
    return int(comments(text_of(pa.array([text])), np.array([NAMES.index(language)]))[0])


@settings(max_examples=300)
@given(
    st.lists(
        st.text(alphabet="ab_1²½é٣ \t\r\n\x1c\u2028.=漢\u0301", max_size=40) | st.text(max_size=30),
        min_size=1,
        max_size=5,
    )
)
def test_lines_shares_and_tokens_are_pythons(texts: list[str]) -> None:
    columns = measure(pa.array(texts), pa.nulls(len(texts), pa.string()), CodeConfig())
    for row, text in enumerate(texts):
        found = {name: column[row].as_py() for name, column in columns.items()}
        lengths = [len(line) for line in text.splitlines()]
        tokens = re.findall(r"\w+|[^\w\s]+", text)
        assert found["lines"] == len(lengths)
        assert found["max_line_length"] == max(lengths, default=0)
        assert found["mean_line_length"] == (pytest.approx(np.mean(lengths)) if lengths else None)
        shares = (sum(map(str.isalnum, text)), len(text)), (sum(map(str.isalpha, text)), len(tokens))
        for name, (part, whole) in zip(("alphanumeric", "alphabetic_per_token"), shares):
            assert found[name] == (pytest.approx(part / whole) if whole else None), name


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("/a/b.py", "", "python"), ("https://x.org/y.CPP?raw=1#l3", "", "c++"), ("src/Makefile", "", "make"),
        ("js", "", "javascript"), (".rs", "", "rust"), ("Python", "", "python"), ("a.rst.txt", "", None),
        (None, "", None), ("x.yaml.gz", "", "yaml"), (None, "#!/usr/bin/env python3.11\nx", "python"),
        (None, "#!/bin/sh -e", "shell"), ("C:\\x\\y.R", "", "r"),
        (None, "#!/usr/bin/env -S node --x\n", "javascript"), ("x.unknown", "#!/usr/bin/perl\n", "perl"),
        (None, " #!/bin/sh", None),
    ],
)  # fmt: skip
def test_languages(path: str | None, text: str, language: str | None) -> None:
    assert languages(pa.array([path], pa.string()), pa.array([text])).to_pylist() == [language]


@pytest.mark.parametrize(
    ("language", "text", "comment"),
    [
        ("python", 'x = "#" # é\n', "# é"), ("python", '"""Dóc."""\nx = """no"""\n', '"""Dóc."""'),
        ("python", "x = '''\n# no\n'''", ""), ("python", "def f():\n    r'''Doc\n'''", "'''Doc\n'''"),
        ("python", "x = 'it\\'s # no'#y", "#y"), ("python", "'''open", "'''open"),
        ("c", 'a = "/*"; /* b // \n */ c // d\n"e"', "/* b // \n */// d"), ("c", "'\"' // x", "// x"),
        ("c", "/* open", "/* open"), ("c", 'char *a = "x\n// y', "// y"), ("javascript", "`\n// no` /**/", "/**/"),
        ("shell", "a=$# b#c # d", "# d"), ("shell", "echo 'x\n# no'", ""), ("sql", "select '--' -- x", "-- x"),
        ("html", "<p>\n<!-- c --></p>", "<!-- c -->"), ("rust", "fn f<'a>() // x", "// x"),
        ("tex", "50\\% % x", "% x"), ("haskell", "{- a -} -- b", "{- a -}-- b"), ("json", "// x", ""),
        ("lua", "--[[ a\nb ]] -- c", "--[[ a\nb ]]-- c"), ("batch", "rem x\necho rem y", "rem xrem y"),
    ],
)  # fmt: skip
def test_comments(language: str, text: str, comment: str) -> None:
    assert commented(text, language) == len(comment)


def python_comments(source: str) -> int:
    """Comments, and strings in three quotes that stand alone at the start of a line."""
    total = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        alone = re.fullmatch(r"\s*[rRuU]?", token.line.split("\n")[0][: token.start[1] + 1].rstrip("\"'"))
        if token.type == tokenize.COMMENT:
            total += len(token.string)
        elif (
            token.type == tokenize.STRING and alone and (body := token.string.lstrip("rRuU")).startswith(('"""', "'''"))
        ):
            total += len(body)
    return total


def test_comments_of_the_standard_library() -> None:
    sources = [path.read_text("utf-8", errors="replace") for path in sorted(LIBRARY.glob("*.py"))]
    column = pa.array(sources)
    ours = comments(text_of(column), np.full(len(sources), NAMES.index("python")))
    expected = np.array([python_comments(source) for source in sources])
    assert (ours == expected).mean() > 0.98, [i for i in range(len(sources)) if ours[i] != expected[i]]


def test_comments_of_headers_and_scripts() -> None:
    lexers = pytest.importorskip("pygments.lexers")
    token = pytest.importorskip("pygments.token")
    folder = Path(sysconfig.get_paths()["purelib"])
    for suffix, language in ((".h", "c"), (".js", "javascript"), (".css", "css")):
        paths = sorted(path for path in folder.rglob(f"*{suffix}") if 500 < path.stat().st_size < 20_000)[:60]
        for path in paths[:: max(1, len(paths) // 12)]:
            text = path.read_text("utf-8", errors="replace")
            lexed = lexers.get_lexer_by_name(language, ensurenl=False, stripnl=False).get_tokens(text)
            kinds = (token.Comment.Single, token.Comment.Multiline, token.Comment)
            expected = sum(len(value) for kind, value in lexed if kind in kinds)
            if "\\\n" not in text and "#if 0" not in text and max(map(len, text.split("\n"))) < 500:  # minified: `/"/`
                assert commented(text.replace("\r\n", "\n"), language) == pytest.approx(expected, rel=0.05, abs=100), (
                    path
                )


def test_every_language_has_a_syntax_that_fits() -> None:
    assert len(NAMES) == len(syntaxes()) == len(set(NAMES))
    for name, syntax in zip(NAMES, syntaxes()):
        assert len(syntax.lines) <= 3 and all(len(mark.encode()) <= 4 for mark in (*syntax.lines, *syntax.block)), name
    assert ids(pa.array(["python", None, "nothing"])).tolist() == [NAMES.index("python"), -1, -1]


def test_generated_files_say_so_early() -> None:
    assert of("/* Auto-Generated by x */")["generated"] and of("a\nb\nc\nd\n# DO NOT EDIT\n")["generated"]
    assert not of("a\nb\nc\nd\ne\n# do not edit")["generated"] and not of("")["generated"]
    assert of("a\nb\n# autogenerated", config=CodeConfig(generated_lines=3))["generated"]


RNG = random.Random(1)
BASE64 = "".join(RNG.choices("ABCDwxyz0189+/", k=76))


@pytest.mark.parametrize(
    ("text", "stretch"),
    [
        (BASE64, BASE64),
        (f'x = "{BASE64}"', BASE64),
        (f"{BASE64}\n{BASE64}\n", f"{BASE64}\n{BASE64}"),
        (BASE64[:60], ""),
        ("a = [" + "1, " * 16 + "]", ("1, " * 16)[:-2]),
        ("a = [" + "1, " * 15 + "]", ""),
        ("-1.5e-3 " * 20, ("-1.5e-3 " * 20)[:-1]),
        ("{0x1F, 0xffu, " * 9, ("0x1F, 0xffu, {" * 9)[:-3]),
        ("de ad be ef " * 5, ("de ad be ef " * 5)[:-1]),
        ("\\x41" * 8, "\\x41" * 8),
        ("'" + "\\u00e9" * 9 + "'", "\\u00e9" * 9),
        ("\\101" * 7, ""),
        ("word " * 40, ""),
        ("word\n" * 400, ""),
        ("-" * 200, ""),
        ("a1-b2 " * 40, ""),
        ("x = 1 y = 2 " * 20, ""),
        ("=" * 100 + "1", ""),
        ("9" * 100, ""),
        ("", ""),
        ("1.2.3.4 " * 30, ""),
    ],
)
def test_encoded_data(text: str, stretch: str) -> None:
    assert encoded(text_of(pa.array([text, "x"]))).tolist() == [[len(stretch)] * 2, [0, 0]]


def test_encoded_data_adds_up() -> None:
    text = f"first {BASE64} then " + "7, " * 30 + f" and last {BASE64}"
    assert encoded(text_of(pa.array([text]))).tolist() == [[76 + 88 + 76, 88]]
    assert of(text)["encoded"] == pytest.approx((76 + 88 + 76) / len(text)) and of("")["encoded"] is None


@pytest.mark.parametrize(
    ("text", "parses"),
    [
        ("x = 1", True), ("print 'two'", False), ("", True), ("a\0b", False), ("x = '\\d'", True),
        ("(" * 5000, False), ("1" + "+1" * 100_000, None), ("-" * 100_000 + "1", None),
        ("if 1:\n pass\n" + "elif 1:\n pass\n" * 30_000, None), ("é = 1\r\n", True), ("1" * 10_000, False),
        ("# coding: nonsense\nx", True), ("x" * 2_000_000, None), ("\ufeffx", True),
    ],
)  # fmt: skip
def test_parse_of_python(text: str, parses: bool | None) -> None:
    assert of(text, "x.py")["parses"] is parses
    assert of(text, "x.c")["parses"] is None and of(text, "x.py", CodeConfig(parse=False))["parses"] is None


def test_columns_of_nothing() -> None:
    empty = of("", "x.py")
    assert [name for name, value in empty.items() if value is None] == [
        "mean_line_length",
        "alphanumeric",
        "alphabetic_per_token",
        "encoded",
        "comments",
    ]
    assert of("x", "x.unknown")["comments"] is None and of("x", "x.py")["comments"] == 0
    assert measure(pa.array([], pa.string()), pa.array([], pa.string()), CodeConfig())["lines"].to_pylist() == []
    chunked = measure(pa.chunked_array([["x"], [None]]), pa.chunked_array([["", "a.py"]], pa.string()), CodeConfig())
    assert chunked["lines"].to_pylist() == [1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_odd_bytes_are_measured_in_every_language(seed: int) -> None:
    column = hostile(
        seed, [b'"', b"'", b'"""', b"#", b"/*", b"*/", b"//", b"\\", b"\\x41", b"0x1", b"1,", b"\r", b"--[["], 60
    )
    for name in NAMES:
        columns = measure(column, pa.array([name] * len(column)), CodeConfig(parse=name == "python"))
        assert {len(values) for values in columns.values()} == {len(column)}
        shares = columns["comments"].drop_null().to_numpy()
        assert ((shares >= 0) & (shares <= 1)).all(), name


@pytest.mark.parametrize("language", ["python", "c", "lua", "shell", "html"])
def test_neighbours_change_nothing(language: str) -> None:
    column = hostile(9, [b'"', b"'", b'"""', b"#", b"/*", b"*/", b"//", b"\\", b"\\x41" * 8, b"0x1,", b"\r", b"-"], 600)
    config = CodeConfig(parse=False)
    assert_measured_alone(column, lambda texts: measure(texts, pa.array([language] * len(texts)), config))


@pytest.mark.parametrize(
    "unit", ["#", '"', '"""', "'", "/*", "/", "\\", "\\x4", "1,", "1", "a", " '''", "\n", "r'", "é", "0x"]
)
def test_time_grows_with_the_bytes(unit: str) -> None:
    spent = []
    for size in (1 << 18, 1 << 22):
        texts = pa.array([unit * (size // len(unit))] * 3)
        start = time.process_time()
        measure(texts, pa.array(["x.py", "x.c", "x.sh"]), CodeConfig(parse=False))
        spent.append(time.process_time() - start)
    assert spent[1] < 64 * max(spent[0], 0.05)
