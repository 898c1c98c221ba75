"""What readers do with tables and figures: sort them, and take them away as CSV, SVG and PNG."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from tests.support.browser import page_of, settled


def saved(page: Page, button: Locator) -> tuple[str, bytes]:
    """(name, content) of what a button saves."""
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def column(table: Locator, index: int) -> list[str]:
    return [row.strip() for row in table.locator(f"tbody tr > :nth-child({index})").all_inner_texts()]


def test_tables_are_sorted_by_their_heads(browser: Browser, exported: str, run_folder: Path) -> None:
    nodes = json.loads((run_folder / "run.json").read_text())["nodes"]
    with page_of(browser, exported) as page:
        table = page.get_by_role("table", name="Stages of the run")
        as_it_came, head = column(table, 2), table.get_by_role("columnheader", name="time")
        button = head.get_by_role("button")
        button.focus()
        page.keyboard.press("Enter")  # numbers begin with the largest
        expect(head).to_have_attribute("aria-sort", "descending")
        seconds = {node["name"]: node["seconds"] for node in nodes}
        told = [seconds[name] for name in column(table, 2)]
        assert told == sorted(told, reverse=True) and len(set(told)) > 3
        page.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "ascending")
        assert [seconds[name] for name in column(table, 2)] == sorted(told)
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") is None and column(table, 2) == as_it_came
        table.get_by_role("button", name="stage", exact=True).click()  # words with the first
        assert column(table, 2) == sorted(as_it_came)


def test_sorting_knows_numbers_as_people_read_them(browser: Browser, exported: str) -> None:
    texts = [
        "1.2\u2009M",
        "999",
        "1,234",
        "\u22120.5",
        "4.5\u2009%",
        "–",
        "2 min 3 s",
        "90 s",
        "120 ms",
        "3 of 7",
        "5e-5",
    ]
    numbers = [1_200_000, 999, 1234, -0.5, 4.5, "–", 123, 90, 0.12, 3, 5e-5]
    with page_of(browser, exported) as page:
        assert page.evaluate("texts => texts.map(amount)", texts) == numbers
        words = ["abc", "12 apples", "2026-11-21"]
        assert page.evaluate("words => words.map(amount)", words) == words
        rows = page.evaluate("sorted(['b', null, 'a10', 3, 'a9', '', 20], {value: x => x}, false)")
        assert rows == [3, 20, "a9", "a10", "b", None, ""]
        assert page.evaluate("sorted([1, null, 2], {value: x => x}, true)") == [2, 1, None]  # what is not known is last


def test_a_table_leaves_as_csv(browser: Browser, exported: str, run_folder: Path) -> None:
    funnel = json.loads((run_folder / "selection" / "funnel.json").read_text())
    documents = {row["rule"]: 0 for row in funnel["rows"]}
    for row in funnel["rows"]:
        documents[row["rule"]] += row["documents"]
    with page_of(browser, exported) as page:
        name, content = saved(page, page.locator("#funnel figure").first.get_by_role("button", name="CSV"))
        assert re.fullmatch(r"small-demo-funnel-[a-z-]+\.csv|demo-funnel-[a-z-]+\.csv", name)
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
        head = rows[0].index("documents left")
        assert [int(row[head]) for row in rows[1:]] == list(documents.values())
        made = page.evaluate(
            """() => csv([{value: r => r[0]}, {value: r => r[1], unit: 's'}], ['text', 'time'],
            [['=1+1', 0.1], ['+x', -2], ['-x', null], ['@x', NaN], ['a "b", c\\nd', 1e21], ['\\tx', 7], ['é–😀', 1]])"""
        )
        assert list(csv.reader(io.StringIO(made, newline=""))) == [
            ["text", "time (s)"], ["'=1+1", "0.1"], ["'+x", "-2"], ["'-x", ""], ["'@x", ""], ['a "b", c\nd', "1e+21"],
            ["'\tx", "7"], ["é–😀", "1"],
        ]  # fmt: skip
        assert made.endswith("\r\n") and "\n" not in made.replace("\r\n", "").replace("c\nd", "")


def test_long_tables_are_cut_until_all_is_asked_for(browser: Browser, exported: str) -> None:
    make = """() => document.querySelector('#stages').append(table('Many rows', [{head: 'row', cell: r => String(r)},
        {head: 'n', number: true, value: r => r, cell: r => count(r)}], [...Array(5000).keys()]))"""
    with page_of(browser, exported) as page:
        page.evaluate(make)
        table = page.get_by_role("table", name="Many rows")
        assert table.locator("tbody tr").count() == 200
        table.get_by_role("button", name="n", exact=True).click()
        assert column(table, 1)[0] == "4999"  # sorted over all, not over what is shown
        _, content = saved(page, page.locator("#stages .table").last.get_by_role("button", name="CSV"))
        assert content.count(b"\r\n") == 5001
        page.get_by_role("button", name="Show all").click()
        assert table.locator("tbody tr").count() == 5000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_leave_as_svg_and_png(browser: Browser, exported: str, scheme: str) -> None:
    with page_of(browser, exported, scheme) as page:
        settled(page)
        figure = page.locator("#comparison figure").first
        name, content = saved(page, figure.get_by_role("button", name="SVG"))
        assert re.fullmatch(r".*demo-comparison-figure-\d+-1\.svg", name)
        drawn = ET.fromstring(content)
        assert not re.search(rb"(class|style)=|var\(|color-mix|href=|<script", content)
        texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert "all held-out documents" in texts
        ground = drawn.find("{http://www.w3.org/2000/svg}rect")
        assert (
            ground is not None
            and ground.get("fill") == {"light": "rgb(252, 251, 248)", "dark": "rgb(21, 24, 28)"}[scheme]
        )
        name, content = saved(page, figure.get_by_role("button", name="PNG"))
        assert name.endswith(".png") and content.startswith(b"\x89PNG")
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert (width, height) == (2 * int(drawn.get("width", "0")), 2 * int(drawn.get("height", "0")))
        for each in page.locator("figure:has(.needs-chart:visible)").all():  # no figure of any panel fails
            ET.fromstring(each.evaluate("figure => svgText(figure, 'every one')"))
