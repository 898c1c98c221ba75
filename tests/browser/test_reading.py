"""Reading in a browser: from a count to its documents, a search, a document with its cuts, clusters; hostile documents
stay text on the live page and in the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.support.browser import page_of, picture, serving, settled
from tests.support.reading_runs import ATTACKS, make, make_hostile, table

from gristmill.report.page import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("reading") / "run")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hostile(tmp_path_factory.mktemp("hostile") / "run")


def status(page: Page) -> str:
    return page.locator("#browse .pager [role=status]").first.inner_text()


def test_a_count_of_the_funnel_leads_to_its_documents_by_mouse_and_by_keyboard(browser, run: Path) -> None:
    selection, documents = table(run, "selection"), table(run, "documents")
    reason, source = selection["reason"].to_pylist(), documents["source"].to_pylist()
    with serving(run) as address, page_of(browser, address) as page:
        link = page.locator("#funnel table.funnel tr", has_text="exact duplicate").locator("a.lead-to").nth(-1)
        link.focus()
        page.keyboard.press("Enter")
        dropped = reason.count("exact_duplicate")
        expect(page.locator("#browse .pager [role=status]").first).to_have_text(
            f"Documents 1 to {min(dropped, 20)} of {dropped}."
        )
        assert page.locator("#browse select[name=rule]").input_value() == "exact_duplicate"
        assert page.evaluate("document.activeElement.id") == "browse-title"
        page.locator("#funnel details.more summary").click()
        cell = page.locator("#funnel details.more tr", has_text="words").locator("a").first
        mine = sum(one == "words" and where == "web" for one, where in zip(reason, source))
        assert cell.inner_text() == str(mine)
        cell.click()
        expect(page.locator("#browse .pager [role=status]").first).to_contain_text(f"of {mine}.")
        assert page.locator("#browse select[name=source]").input_value() == "web"
        page.locator("#funnel [role=group][aria-label=By] button", has_text="language").click()
        expect(page.locator("#funnel .legend")).to_contain_text("fr")
        bar = page.locator("#funnel table.funnel svg a").first
        bar.click()
        assert page.locator("#browse select[name=language]").input_value() == "en"
        picture(page, "reading-funnel", "#funnel")


def test_a_document_is_found_by_its_text_and_shown_with_its_cuts(browser, run: Path) -> None:
    with serving(run) as address, page_of(browser, address) as page:
        page.locator("#browse input[name=text]").fill("number 29")
        page.keyboard.press("Enter")
        expect(page.locator("#browse .found > li")).to_have_count(11)
        assert status(page) == "11 found here; looked at 300 of 300 documents, all of them."
        assert page.locator("#browse .found mark.hit").first.inner_text() == "Number 29"
        page.locator("#browse [type=checkbox][name=fold]").check()  # the case
        expect(page.locator("#browse .found > li")).to_have_count(0)
        page.locator("#browse button", has_text="Clear").click()
        page.locator("#browse select[name=sort]").select_option("scores.quality")
        page.locator("#browse select[name=order]").select_option("nearest")
        expect(page.locator("#browse .found > li").first).to_contain_text(re.compile(r"scores\.quality 0\.(39|40)"))
        page.locator("#browse button", has_text="Next").last.click()  # at the foot: the next page begins at its head
        expect(page.locator("#browse .pager [role=status]").first).to_contain_text("Documents 21 to 40")
        expect(page.locator("#browse .pager").first).to_be_in_viewport()
        assert page.evaluate("document.activeElement.textContent") == "Next"
        page.locator("#browse button", has_text="Clear").click()
        spans = table(run, "annotations/pii")["email"].to_pylist()
        row = next(at for at, one in enumerate(spans) if one and one[1] > one[0])
        page.locator("#browse input[name=id]").fill(f"doc-{row:05d}")
        page.keyboard.press("Enter")
        settled(page)
        page.locator("#browse .found button", has_text="Read").click()
        cut = page.locator("#browse .document del.cut").first
        expect(cut).to_have_attribute("title", "pii.email: replaced by <EMAIL>")
        blob = table(run, "documents")["text"][row].as_py().encode()
        assert cut.evaluate("one => one.textContent") == blob[spans[row][0] : spans[row][1]].decode()
        page.locator("#browse .spans label", has_text="pii.email").click()  # not shown any more
        expect(page.locator("#browse .document del[title^='pii.email']")).to_have_count(0)
        assert page.locator("#browse .checks").inner_text().count("words") == 1
        picture(page, "reading-document", "#browse")


def test_clusters_and_matches_lead_to_their_documents(browser, run: Path) -> None:
    with serving(run) as address, page_of(browser, address, "dark") as page:
        card = page.locator("#duplicates article.cluster").first
        card.locator("button", has_text="compare").first.click()
        expect(page.locator("#duplicates .words ins.plus").first).to_be_visible()
        name = card.locator(".member a").first.inner_text()
        picture(page, "reading-clusters", "#duplicates")
        card.locator(".member a").first.click()
        expect(page.locator("#browse .document header .id, #browse .found li.open .id").first).to_have_text(name)
        expect(page.locator("#contamination .match")).to_have_count(5)
        assert len(page.locator("#contamination .match mark.found").first.inner_text()) > 0
        picture(page, "reading-contamination", "#contamination")
        page.locator("#contamination .match h4 a").nth(2).click()
        expect(page.locator("#browse .document")).to_be_visible()


def unharmed(page: Page) -> None:
    """Nothing was made of text: no element that the page does not make, no script of a document, nothing broken."""
    made = "main script, nav script, main style, iframe, img, object, embed, link[rel], base, a[href^=javascript]"
    assert page.locator(made).count() == 0
    assert page.evaluate("[window.attacked, Object.prototype.attacked, document.scripts.length]") == [None, None, 2]
    assert page.evaluate("getComputedStyle(document.body).display") != "none"


def test_hostile_documents_stay_text_on_the_live_page(browser, hostile: Path) -> None:
    with serving(hostile) as address, page_of(browser, address) as page:
        page.on("dialog", lambda told: pytest.fail(told.message))
        expect(page.locator("#browse .found > li")).to_have_count(20)
        for at in range(len(ATTACKS)):
            line = page.locator("#browse .found > li").nth(at)
            line.locator("button").first.click()
            expect(page.locator("#browse .found .document .text")).to_be_visible()
            unharmed(page)
        page.locator("#browse .found > li").nth(5).locator("button").first.click()
        expect(page.locator("#browse .found .document .hidden-character", has_text="RLO").first).to_be_visible()
        picture(page, "reading-hostile", "#browse")
        page.locator("#browse input[name=text]").fill("<B>x<b>X")  # the line of ten megabytes
        page.keyboard.press("Enter")
        expect(page.locator("#browse .found > li")).to_have_count(1)
        page.locator("#browse .found button").first.click()
        page.locator("#browse .document button", has_text="Last").click()
        expect(page.locator("#browse .document .pager")).to_contain_text("Part 417 of 417")
        for select in ("source", "language", "rule", "sort"):
            options = page.locator(f"#browse select[name={select}] option")
            for at in (1, 2)[: options.count() - 1]:
                page.locator(f"#browse select[name={select}]").select_option(index=at)
                expect(page.locator("#browse [data-question=documents]")).to_have_attribute("data-answered", "true")
            page.locator("#browse button", has_text="Clear").click()
        page.locator("#duplicates button", has_text="compare").first.click()
        expect(page.locator("#contamination .match").first).to_be_visible()
        unharmed(page)


def test_hostile_documents_stay_text_in_the_file(browser, hostile: Path, tmp_path: Path) -> None:
    page_file = build(hostile, tmp_path / "page.html")
    with page_of(browser, page_file.as_uri()) as page:
        page.on("dialog", lambda told: pytest.fail(told.message))
        views = page.locator("#samples select option")
        for at in range(views.count()):
            page.locator("#samples select").select_option(index=at)
            unharmed(page)
        expect(page.locator("#browse .absent")).to_contain_text("report open")
        page.locator("#funnel a.lead-to").first.click()  # a rule's chosen samples
        assert page.evaluate("document.activeElement.id") == "samples-title"
        expect(page.locator("#contamination .match").first).to_be_visible()
        unharmed(page)
