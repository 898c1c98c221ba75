"""Scores, heads and oracle as a person sees them: probe by judge, promises at the lines, where calibration stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.support.browser import page_of, picture, serving
from tests.support.measured_heads import write_audit, write_heads, write_scores

from gristmill.report.page import build

ROUTES = {"general": ("papers", "web"), "code": ("code",)}
SETTLED = "() => !document.querySelector('.answer:not([data-answered])')"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose heads have a judge, and whose oracle was audited."""
    folder = tmp_path_factory.mktemp("scores") / "run"
    write_heads(folder, ROUTES)
    write_scores(folder, ROUTES)
    write_audit(folder)
    return folder


@pytest.fixture(scope="module")
def place(judged: Path) -> Iterator[str]:
    with serving(judged) as found:
        yield found


def choose(page: Page, label: str, value: str) -> None:
    page.locator("#scores").get_by_label(label, exact=True).select_option(value)
    page.wait_for_function(SETTLED)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sources_side_by_side_and_one_by_itself(browser: Browser, place: str, scheme: str) -> None:
    with page_of(browser, place, scheme) as page:
        page.wait_for_function(SETTLED)
        scores = page.locator("#scores")
        assert scores.locator(".multiples > div").count() == 5  # all, and four sources
        assert "keeps 40" in scores.locator(".multiples").inner_text()
        assert "exited early" in scores.inner_text()
        picture(page, f"scores-judged-{scheme}", "#scores")
        choose(page, "Score", "probe")
        choose(page, "Source", "web")
        line = scores.locator(".mark-label").first.text_content() or ""
        assert line.startswith("tau_drop 0.") and "of good lost" in line
        assert "graded documents" in scores.inner_text() and scores.locator(".fill-dropped").count() > 5
        picture(page, f"scores-web-{scheme}", "#scores")
        for name in ("heads", "oracle"):
            picture(page, f"{name}-judged-{scheme}", f"#{name}")


def test_the_density_counts_every_judged_document(browser: Browser, place: str) -> None:
    with page_of(browser, place) as page:
        page.wait_for_function(SETTLED)
        found = page.evaluate("() => answers.get('probe_judge?')")
        titles = page.locator("#scores [data-question=probe_judge] rect title").all_text_contents()
        assert sum(int(one.split(": ")[1].split()[0]) for one in titles) == found["judged"] > 1000
        cells = page.locator("#scores table.slim tbody td").all_inner_texts()
        assert sum(int(one.replace(",", "")) for one in cells) == found["scored"]
        choose(page, "Source", "forum")
        assert page.locator("#scores .mark.tau_drop").count() == 0  # nothing exits in a source that nobody calibrated


def test_the_curve_says_where_the_calibration_stands(browser: Browser, place: str) -> None:
    with page_of(browser, place) as page:
        heads = page.locator("#heads")
        assert (
            heads.locator(".point-now").count() == 2
            and "good documents of split certify were lost" in heads.inner_text()
        )
        heads.get_by_role("button", name="code").click()
        assert heads.locator(".point-now").count() == 2
        oracle = page.locator("#oracle").inner_text()
        assert "weighted kappa" in oracle and "Injection" not in oracle.split("was not asked for")[0][-40:]
        assert page.locator("#oracle .table").count() >= 5


def test_the_page_as_a_file_has_the_same_scores(browser: Browser, judged: Path, tmp_path: Path) -> None:
    with page_of(browser, build(judged, tmp_path / "page.html").as_uri()) as page:
        page.wait_for_function(SETTLED)
        assert "have both scores" in page.locator("#scores").inner_text()
        choose(page, "Source", "web")
        text = page.locator("#scores").inner_text()
        assert "in 40 bins" in text and "report open RUN" in text  # the coarse bars; by source the rest needs a server
