"""The workflow in a browser: a run that grows is followed, as the runner writes it; a stage shows what it is of."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support import small_filter
from tests.support.browser import page_of, picture, serving
from tests.support.scripts import environment


class Growing:
    """A copy of a run whose run.json is written as a runner would, moment by moment."""

    def __init__(self, run: Path, folder: Path) -> None:
        folder.mkdir()
        shutil.copytree(run / "ledger", folder / "ledger")
        self.path, self.card = folder / "run.json", json.loads((run / "run.json").read_text())
        self.began = datetime.now(UTC) - timedelta(seconds=100)
        self.nodes: dict[str, dict[str, Any]] = {node["name"]: node for node in self.card["nodes"]}
        for node in self.nodes.values():
            node |= {"status": "pending", "partitions_done": 0, "partitions_cached": 0, "seconds": 0.0, "counts": {}}
            node |= {"started_at": None, "identity": None, "documents": 0}
        self.write(status="running", finished_at=None, started_at=self.began.isoformat())

    def set(self, name: str, **values: Any) -> None:
        if values.get("status") == "running":
            values.setdefault("started_at", datetime.now(UTC).isoformat(timespec="seconds"))
        self.nodes[name] |= values

    def write(self, **values: Any) -> None:
        self.card |= {"updated_at": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        partial = self.path.with_name(".run.json.tmp-1")
        partial.write_text(json.dumps(self.card))
        partial.replace(self.path)


@pytest.fixture
def growing(run_folder: Path, tmp_path: Path) -> Growing:
    return Growing(run_folder, tmp_path / "growing")


def row(page: Page, stage: str) -> Any:
    return page.locator("#stages tbody tr").filter(has=page.get_by_role("button", name=stage, exact=True))


def test_a_run_is_followed_while_it_goes_on(browser: Browser, growing: Growing) -> None:
    growing.set("documents", status="running", partitions=8)
    growing.write()
    with serving(growing.path.parent) as address, page_of(browser, address) as page:
        expect(row(page, "documents")).to_contain_text("at work")
        expect(row(page, "selection")).to_contain_text("waiting")
        expect(page.locator("#stages .lead")).to_contain_text("1 is at work")
        page.get_by_role("button", name="language", exact=True).focus()
        for done in (2, 5):
            growing.set(
                "documents", partitions_done=done, documents=40 * done, documents_per_second=12.5, eta_seconds=90.0
            )
            growing.write()
            expect(row(page, "documents")).to_contain_text(f"{done} of 8")
        expect(row(page, "documents")).to_contain_text("12.5 documents/s, about 90 s left")
        expect(row(page, "documents")).to_contain_text("200 documents so far")
        assert page.evaluate("() => document.activeElement.textContent") == "language"  # drawn again, and still there
        growing.set("documents", status="done", partitions_done=8, seconds=61.0, counts={"documents": 388})
        growing.set("language", status="cached", partitions=8, partitions_done=8, partitions_cached=8)
        growing.set("heuristics", status="running", partitions=8, partitions_cached=3, partitions_done=5)
        growing.write()
        expect(row(page, "documents")).to_contain_text("388 documents")
        expect(row(page, "language")).to_contain_text("cached")
        expect(row(page, "heuristics")).to_contain_text("5 of 8, 3 cached")
        picture(page, "workflow-running", "#stages")
        growing.set("heuristics", status="failed", error="heuristics, part-00003.parquet: no space left on <device>")
        growing.write(status="failed", finished_at=datetime.now(UTC).isoformat())
        expect(page.locator("#stages .failed").first).to_contain_text("no space left on <device>")
        expect(page.locator("header.top .state")).to_have_text("failed")
        expect(row(page, "selection")).to_contain_text("not run")
        picture(page, "workflow-failed", "#stages")


def test_a_runner_that_died_is_told_from_one_at_work(browser: Browser, growing: Growing) -> None:
    growing.set("documents", status="running", partitions=8, partitions_done=3)
    growing.write(updated_at=(datetime.now(UTC) - timedelta(seconds=90)).isoformat())
    with serving(growing.path.parent) as address, page_of(browser, address) as page:
        expect(page.locator("header.top .state")).to_have_text("died")
        expect(page.locator("#stages .lead")).to_contain_text("the same command goes on from there")
        expect(row(page, "documents")).to_contain_text("interrupted")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_stage_shows_what_it_is_made_with(browser: Browser, run_folder: Path, address: str, scheme: str) -> None:
    nodes = {node["name"]: node for node in json.loads((run_folder / "run.json").read_text())["nodes"]}
    entries = [json.loads(path.read_text()) for path in (run_folder / "ledger" / "near_pairs").glob("[!.]*.json")]
    with page_of(browser, address, scheme) as page:
        page.get_by_role("button", name="near_pairs", exact=True).click()
        dialog = page.get_by_role("dialog")
        expect(dialog.locator(".answer")).to_have_attribute("data-answered", "true")
        for name in nodes["near_pairs"]["requires"]:
            expect(dialog.locator(".facts").first).to_contain_text(name)
        expect(dialog).to_contain_text("shuffles/near_pairs")
        setting = dialog.get_by_role("row").filter(has=page.get_by_role("rowheader", name="threshold", exact=True))
        expect(setting.locator("code")).to_have_text(str(nodes["near_pairs"]["identity"]["config"]["threshold"]))
        pieces = dialog.get_by_role("table", name="Pieces of near_pairs, gather").locator("tbody tr")
        assert pieces.count() == len(entries)
        expect(pieces.first).to_contain_text(f"{max(entries, key=lambda entry: entry['seconds'])['rows']:,}")
        picture(page, f"workflow-stage-{scheme}", "dialog")
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        assert page.evaluate("() => document.activeElement.textContent") == "near_pairs"


def test_a_pipeline_is_watched_from_its_first_stage_to_its_last(browser: Browser, tmp_path: Path) -> None:
    """A real one, over three dozen documents: what the page says while it runs is what its runner says at the end."""
    corpus, run = small_filter.write_corpus(tmp_path / "corpus"), tmp_path / "run"
    process = subprocess.Popen(small_filter.command(corpus, run), env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        while not (run / "run.json").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        with serving(run) as address, page_of(browser, address) as page:
            expect(page.locator("#stages .lead")).to_contain_text("Done in", timeout=300_000)
            assert process.wait(timeout=60) == 0
            written = json.loads((run / "run.json").read_text())
            for node in written["nodes"]:
                expect(row(page, node["name"])).to_contain_text("done")
                expect(row(page, node["name"])).to_contain_text(f"{node['partitions_done']} of {node['partitions']}")
            expect(page.locator("#funnel")).to_contain_text("Of 42 documents", timeout=30_000)  # the rest followed too
            expect(page.locator("#quarantine")).to_contain_text("2 inputs could not be read")
            expect(page.locator("nav li", has_text="What the policy kept")).not_to_have_class("absent-item")
    finally:
        process.kill()
        process.wait()
