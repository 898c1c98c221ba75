"""The page as a whole, over a real run: every section draws, served and as a file, light and dark; the switch of that,
the keys, narrow windows; and no script but its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from tests.support.browser import SIZE, page_of, picture, serving, settled
from tests.unit.test_report_page import make_run

SECTIONS = "() => [...document.querySelectorAll('main > section')].map(one => one.id)"
FAILED = (
    "() => [...document.querySelectorAll('.absent.failed')].map(one => one.closest('section').id + one.textContent)"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["served", "file"])
def test_every_section_draws(browser: Browser, address: str, exported: str, kind: str, scheme: str) -> None:
    with page_of(browser, address if kind == "served" else exported, scheme) as page:
        settled(page)
        sections = page.evaluate(SECTIONS)
        assert len(sections) >= 12 and page.locator("nav li").count() == len(sections)
        assert page.evaluate(FAILED) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        for name in sections if kind == "served" else []:
            page.evaluate("(name) => document.getElementById(name).scrollIntoView()", name)
            picture(page, f"{name}-{scheme}")
        picture(page, f"top-{kind}-{scheme}")


def test_the_look_follows_the_system_until_it_is_chosen(browser: Browser, exported: str, address: str) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    for place in (exported, address):
        with page_of(browser, place, "dark") as page:
            assert page.evaluate(ground) == "rgb(21, 24, 28)"
            page.get_by_role("button", name="light", exact=True).click()
            assert page.evaluate(ground) == "rgb(252, 251, 248)"
            expect(page.get_by_role("button", name="light", exact=True)).to_be_focused()
            page.reload()
            assert page.evaluate(ground) == "rgb(252, 251, 248)"  # for the visit
            page.get_by_role("button", name="auto", exact=True).click()
            assert page.evaluate(ground) == "rgb(21, 24, 28)"


def test_on_paper_nothing_is_cut_off_and_nothing_is_to_press(browser: Browser, exported: str) -> None:
    with page_of(browser, exported, "dark") as page:
        settled(page)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 711, "height": 1024})  # A4 between its margins
        assert not page.locator("nav").is_visible() and not page.locator(".tools").first.is_visible()
        assert page.locator("th").first.is_visible()  # heads that sort are buttons
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        boxes = "[...document.querySelectorAll('.scroll, .text, .tokens')]"
        assert page.evaluate(f"() => {boxes}.filter((one) => one.scrollHeight > one.clientHeight + 2).length") == 0


def test_an_address_with_a_section_leads_to_it_whatever_comes_late_above(browser: Browser, address: str) -> None:
    with page_of(browser, f"{address}#training") as page:
        settled(page)
        page.wait_for_function("() => Math.abs(document.getElementById('training').getBoundingClientRect().top) < 40")
        assert page.evaluate("() => scrollY > 2000")


def test_the_keyboard_reaches_everything(browser: Browser, address: str) -> None:
    here = "() => document.activeElement.closest('main > section')?.id"
    with page_of(browser, address) as page:
        settled(page)
        sections = page.evaluate(SECTIONS)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the report")).to_be_focused()
        for key, at in (("j", 0), ("n", 1), ("j", 2), ("k", 1), ("p", 0), ("k", 0)):
            page.keyboard.press(key)
            assert page.evaluate(here) == sections[at], key
            assert abs(page.evaluate("() => document.activeElement.getBoundingClientRect().top")) < 80
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        expect(dialog).to_be_visible()
        page.keyboard.press("j")  # keys of the page rest while it is open
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        assert page.evaluate(here) == sections[0]
        if page.locator("input[type=search]").count():
            page.keyboard.press("/")
            assert page.evaluate("() => document.activeElement.type") == "search"
            page.keyboard.type("jk?")  # what is typed is text
            assert page.evaluate("() => document.activeElement.value") == "jk?"
        outlined = "() => parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 1"
        page.evaluate("() => document.activeElement.blur()")
        seen = set()
        for _ in range(60):  # no trap, and the focus can be seen
            page.keyboard.press("Tab")
            assert page.evaluate(outlined)
            seen.add(page.evaluate("() => [...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert len(seen) == 60


def test_headings_and_landmarks(browser: Browser, exported: str) -> None:
    with page_of(browser, exported) as page:
        settled(page)
        assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
        assert page.get_by_role("navigation", name="Contents").count() == 1
        levels = page.evaluate(
            "() => [...document.querySelectorAll('main :is(h1,h2,h3,h4)')].map(one => +one.localName[1])"
        )
        assert all(after - before <= 1 or (before, after) == (2, 4) for before, after in itertools.pairwise(levels))
        nameless = """() => [...document.querySelectorAll('button, input, select')].filter(one =>
            !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length"""
        assert page.evaluate(nameless) == 0
        doubled = """() => [...document.querySelectorAll('[id]')].map(one => one.id)
            .filter((id, at, ids) => ids.indexOf(id) !== at)"""
        assert page.evaluate(doubled) == []


@pytest.mark.parametrize("width", [1366, 1024, 700])
def test_nothing_flows_over_sideways(browser: Browser, address: str, width: int) -> None:
    with page_of(browser, address) as page:
        page.set_viewport_size({"width": width, "height": 768})
        settled(page)
        over = """() => [...document.querySelectorAll('main *')].filter(one =>
            !one.closest('.scroll, svg, .unseen, .text')
            && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 120))"""
        assert page.evaluate(over) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        picture(page, f"top-{width}")


def test_no_script_but_the_page_s_own_runs(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport=SIZE)  # pyright: ignore[reportArgumentType]
    page, refused = context.new_page(), []
    page.on("console", lambda told: refused.append(told.text))
    page.goto(address)
    page.evaluate(
        """() => {
        const host = document.createElement('div');
        host.innerHTML = '<img src="data:image/png;base64,AAAA" onerror="window.ran = 1">'
            + '<p style="color: red" onclick="window.ran = 2">x</p><iframe src="/"></iframe>'
            + '<svg onload="window.ran = 3"></svg><a href="javascript:window.ran = 4">y</a>';
        document.body.prepend(host);
        const script = document.createElement('script');
        script.textContent = 'window.ran = 5';
        setTimeout('window.ran = 6');
        document.body.append(script);
        host.querySelector('p').click();
        host.querySelector('a').click();
        }"""
    )
    away = "() => fetch('http://localhost:1/').then(() => 'asked', error => error.name)"
    assert page.evaluate(away) == "TypeError"
    assert page.evaluate("() => window.ran") is None
    assert sum("Content Security Policy" in told for told in refused) >= 6, refused
    context.close()


def test_a_large_run_is_a_small_page(browser: Browser, tmp_path: Path) -> None:
    """Sixty thousand documents: what the page holds grows with rules and sources, not with them."""
    run = make_run(tmp_path / "run", documents=60_000, parts=12, text_words=20)
    with serving(run) as address, page_of(browser, address) as page:
        settled(page)
        assert [one for one in page.evaluate(FAILED) if not one.startswith("artifacts")] == []  # it has no tokens
        assert page.evaluate("() => document.documentElement.outerHTML.length") < 3_000_000
        assert page.evaluate("() => document.querySelectorAll('*').length") < 25_000
        rows = "() => Math.max(...[...document.querySelectorAll('tbody')].map(one => one.rows.length))"
        assert page.evaluate(rows) <= 220
