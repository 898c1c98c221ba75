"""The page as a whole, over a real run: every section draws, served and as a file, light and dark; what can be taken
away from it, and what it does for keys, narrow windows and print."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.support.browser import page_of, picture

from gristmill.report.page import build

SECTIONS = "() => [...document.querySelectorAll('main > section')].map(one => one.id)"
FAILED = "() => [...document.querySelectorAll('.absent.failed')].map(one => one.closest('section').id + ': ' + one.textContent)"


def settled(page: Page) -> None:
    """Every question that the panels asked at first has its answer."""
    page.wait_for_function("() => !document.querySelector('.answer:not([data-answered])')")


@pytest.fixture(scope="session")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(run_folder, tmp_path_factory.mktemp("page") / "page.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["served", "file"])
def test_every_section_draws(browser: Browser, address: str, exported: str, kind: str, scheme: str) -> None:
    with page_of(browser, address if kind == "served" else exported, scheme) as page:
        settled(page)
        sections = page.evaluate(SECTIONS)
        assert len(sections) >= 12 and page.locator("nav li").count() == len(sections)
        assert page.evaluate(FAILED) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        for name in sections:
            picture(page, f"{name}-{kind}-{scheme}", f"#{name}")
        picture(page, f"top-{kind}-{scheme}")
