"""The policy desk in a browser: sliders by key, what they show, what is saved; and the same run's page as a file."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support.browser import page_of, picture, serving
from tests.support.desk_run import make_desk_run

from gristmill.datapipe.policy_file import load_policy
from gristmill.datapipe.what_if import policy_of, what_if
from gristmill.report.page import build

WORDS = '[data-control="words min "]'
KEPT = '[data-kept="{}"]'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_desk_run(tmp_path_factory.mktemp("desk") / "run")


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[str]:
    with serving(run) as address:
        yield address


def at_the_desk(page: Page) -> None:
    page.locator("#desk").scroll_into_view_if_needed()
    page.locator(WORDS).wait_for()
    page.locator(KEPT.format("documents")).wait_for()
    settled(page)


def shown(page: Page, unit: str = "documents") -> int:
    return int(page.locator(KEPT.format(unit)).get_attribute("data-value") or -1)


def settled(page: Page) -> None:
    """The desk has shown the answer to the last movement: what it says beside is of the same answer."""
    page.locator('.desk[aria-busy="false"]').wait_for()


def test_a_slider_shows_what_what_if_says(browser: Browser, served: str, run: Path, tmp_path: Path) -> None:
    with page_of(browser, served) as page:
        at_the_desk(page)
        before = shown(page)
        assert before == what_if(run, policy_of(run, None, [], [])).kept[0].documents
        page.locator(WORDS).focus()
        for _ in range(12):
            page.keyboard.press("ArrowRight")
        settled(page)
        expect(page.locator(".desk-changed li")).to_have_count(1)
        settled(page)
        command = shlex.split(page.locator(".desk-command").inner_text())
        answer = what_if(run, policy_of(run, None, command[4::2], []))
        assert (shown(page), shown(page, "tokens")) == (answer.kept[0].documents_then, answer.kept[0].tokens_then)
        assert shown(page) < before
        dropped = page.locator('[data-rule="words"] .desk-dropped b').inner_text()
        (words,) = [each for each in answer.dropped if each.name == "words"]
        assert dropped == str(words.documents_then)
        near = page.locator(".desk-side-of.dropped details").first
        expect(near.locator(".excerpt")).to_contain_text("Document ")
        near.locator("summary").click()
        expect(near.locator(".text .hidden-character")).to_have_text("RLO")
        assert near.locator(".text b").count() == 0  # text stays text
        with page.expect_download() as download:
            page.locator(".desk-save").click()
        assert download.value.suggested_filename == "made-up.toml"
        saved = load_policy(Path(shutil.copy(download.value.path(), tmp_path / "saved.toml"))).asking()
        assert what_if(run, saved).kept == answer.kept
        expect(page.locator(".desk-curve > svg")).to_be_visible()
        picture(page, "desk", "#desk .desk")
        page.locator('[data-control="reset"]').click()
        expect(page.locator(".desk-changed li")).to_have_count(0)
        settled(page)
        assert shown(page) == before


def test_own_bounds_words_and_rules_that_are_not_asked(browser: Browser, served: str, run: Path) -> None:
    with page_of(browser, served, "dark") as page:
        at_the_desk(page)
        page.locator('[data-control="split quality"]').select_option("web")
        page.locator('[data-control="quality min web number"]').fill("0.6")
        page.locator('[data-control="word language  de"]').check()
        page.locator('[data-control="ask near"]').uncheck()
        page.locator('[data-control="repetition max  number"]').fill("0.35")
        expect(page.locator(".desk-changed li")).to_have_count(4)
        settled(page)
        changes = ["quality.sources.web.min=0.6", 'language.allowed=["en", "de"]', "repetition.max=0.35"]
        answer = what_if(run, policy_of(run, None, changes, ["near"]))
        assert (shown(page), shown(page, "tokens")) == (answer.kept[0].documents_then, answer.kept[0].tokens_then)
        picture(page, "desk-dark", "#desk .desk")
        page.locator('[data-rule="repetition"] button.back').click()
        expect(page.locator(".desk-changed li")).to_have_count(3)


def test_a_number_never_crosses_the_other_side(browser: Browser, served: str) -> None:
    with page_of(browser, served) as page:
        at_the_desk(page)
        number = page.locator('[data-control="words min  number"]')
        number.fill("5000")
        number.press("Tab")
        expect(number).to_have_value("400")


def test_what_was_moved_stays_when_the_run_changes(browser: Browser, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with serving(copy) as address, page_of(browser, address) as page:
        at_the_desk(page)
        page.locator(WORDS).focus()
        page.keyboard.press("End")
        settled(page)
        moved = shown(page)
        page.evaluate("document.activeElement.blur()")
        page.evaluate("change('desk', {})")
        at_the_desk(page)
        expect(page.locator(".desk-changed li")).to_have_count(1)
        settled(page)
        assert shown(page) == moved


def test_a_file_tells_what_each_threshold_does(browser: Browser, run: Path, tmp_path: Path) -> None:
    with page_of(browser, build(run, tmp_path / "page.html").as_uri()) as page:
        charts = page.locator("#desk .multiples svg")
        charts.first.wait_for()
        assert charts.count() == 8 and page.locator("#desk input").count() == 0
        first = page.locator("#desk .multiples > div").first
        assert "words" in first.inner_text()
        told = first.locator("rect.hover title").all_text_contents()
        (at_run,) = [text for text in told if text.startswith("at least 20:")]
        kept = what_if(run, policy_of(run, None, [], [])).kept[0]
        assert f"{kept.documents:,} documents" in at_run and f"{kept.tokens:,} tokens" in at_run
        picture(page, "desk-file", "#desk")
