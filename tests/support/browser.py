"""A real browser over a page: Debian's chromium, headless, driven by playwright. Pictures go where CI keeps its output.

A test takes the fixture `browser` from here. Where no chromium can be had it is skipped, and says so: `./dev test`
installs one where it may (Debian, as root).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from gristmill.report.server import make_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = Path(__file__).parents[2] / ".ci" / "pictures"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--force-color-profile=srgb")  # fmt: skip
SIZE = {"width": 1366, "height": 900}  # a laptop's


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each file of tests: while it is open, playwright's event loop runs in this thread."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server over `folder`, until the block ends."""
    with make_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@contextmanager
def page_of(browser: Browser, address: str, scheme: str = "light") -> Iterator[Page]:
    """A page that must stay free of errors: whatever the browser reports, a refused resource too, fails the test."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme, accept_downloads=True)  # pyright: ignore[reportArgumentType]
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.set_default_timeout(20_000)
    try:
        page.goto(address)
        yield page
        assert not wrong, wrong
    finally:
        context.close()


def settled(page: Page) -> None:
    """Every question that the panels asked at first has its answer."""
    page.wait_for_function("() => !document.querySelector('.answer:not([data-answered])')")


def picture(page: Page, name: str, of: str = "") -> Path:
    """A PNG of the element `of` (a selector), or of the window."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    partial = path.with_name(f".{name}.{os.getpid()}.png")
    if of:
        page.locator(of).first.screenshot(path=partial)
    else:
        page.screenshot(path=partial)
    return partial.rename(path)
