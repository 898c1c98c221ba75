"""Trainings in a browser: curves that zoom and grow, routers by step, mixtures, and several runs on one page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support.browser import page_of, picture, serving
from tests.support.training_logs import line, routed, step_event, write_log
from tests.unit.test_report_page import HOSTILE

from gristmill.report import page as pages
from gristmill.report.page import build

STEPS, SPIKE, LAYERS = 3000, 1234, [1, 3, 5]
SETTLED = "() => !document.querySelector('.answer:not([data-answered])')"


def events(seed: int, steps: int = STEPS, first: int = 1) -> Iterator[dict]:
    draw = np.random.default_rng(seed)
    for step in range(first, steps + 1):
        loss = 3 + 5 * np.exp(-step / 300) + float(draw.normal(0, 0.05)) + 20 * (step == SPIKE and seed == 0)
        read = {"web": 96, "code": 32} if step % 2 else {"web": 64, "code": 64}
        more = {"grad_norm": 1.0 + step / STEPS, "learning_rate": 1e-3, "tokens_per_second": 2000.0 + step % 7}
        router = routed(step, 3, 8, seed)
        if step % 50 == 0:
            router["logits"] = {"low": -8.0, "high": 8.0, "share": [[0.25] * 4] * 3}
        yield step_event(
            step, loss, tokens_by_source=read, norms={"experts": 0.5}, router=router, cost=step / 100, **more
        )
        if step % 500 == 0:
            by_source = {name: {"bits_per_byte": 2.0 - step / STEPS, "documents": 9} for name in ("web", HOSTILE[0])}
            yield {"type": "validation", "step": step, "bits_per_byte": 2.5 - step / STEPS, "by_source": by_source}
            yield {"type": "samples", "step": step, "samples": [{"prompt": "The", "text": HOSTILE[1]}]}
            yield {"type": "checkpoint", "step": step}
        if step == SPIKE and seed == 0:
            yield {"type": "alarm", "step": step, "alarm": "loss_spike", "policy": "warn", "told": HOSTILE[1]}


def card(seed: int) -> dict:
    plan = {
        "mixture": "two", "packing": "concat", "unit": 32, "tokens": 128 * STEPS,
        "phases": [{"name": "all", "tokens_before": 0, "sequence_length": 32, "weights": {"web": 5, "code": 3}}],
        "sources": [
            {"source": "web", "tokens": 80 * STEPS, "epochs": 1.0, "windows": 80 * STEPS // 32},
            {"source": "code", "tokens": 48 * STEPS, "epochs": 0.5, "windows": 96 * STEPS // 32},
        ],
    }  # fmt: skip
    config = {"seed": seed, "batch": {"sequence": 32, "sequences": 4}}
    return {"status": "running", "steps": STEPS, "moe_layers": LAYERS, "plan": plan, "config": config}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    for seed, name in enumerate(("filtered", "raw")):
        write_log(folder / "training" / name, events(seed), card(seed))
    return folder


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[str]:
    with serving(run) as address:
        yield address


def loss_chart(page: Page):
    return page.locator("#training .curves .curve").first


def lines(page: Page) -> int:
    return loss_chart(page).locator("path.line:not(.faint)").count()


def shown_points(page: Page) -> list[int]:
    found = loss_chart(page).locator("path.line[data-points]")
    return [int(found.nth(index).get_attribute("data-points") or 0) for index in range(found.count())]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_about_trainings_draws(browser: Browser, served: str, scheme: str) -> None:
    with page_of(browser, served, scheme) as page:
        page.wait_for_function(SETTLED)
        training, mixture = page.locator("#training"), page.locator("#mixture")
        expect(training.locator(".absent")).to_have_count(0)
        for words in (
            "Training loss of filtered (n = 3,000 steps)",
            "Held-out bits per byte",
            "alarm (1)",
            "checkpoint (12)",
        ):
            expect(training).to_contain_text(words)
        expect(training).to_contain_text("3 layers with experts, 8 experts each")
        assert "undefined" not in training.inner_text() and "NaN" not in training.inner_text()
        names = training.locator(".routers .chart").first.locator("text.tick").all_text_contents()
        assert names[:3] == ["1", "3", "5"]  # layers by their numbers in the model: 0, 2 and 4 are dense
        expect(mixture).to_contain_text("At no step was any source further than 16 tokens from its target")
        row = mixture.locator("tbody tr", has_text="code").first
        assert row.locator("td").all_inner_texts()[:3] == ["37.5\u2009%", "37.5\u2009%", "144,000"]
        assert page.evaluate("() => !document.querySelector('#training img, #training script')")
        picture(page, f"training-{scheme}", "#training")
        picture(page, f"mixture-{scheme}", "#mixture")


def test_a_spike_is_drawn_and_read_by_the_crosshair(browser: Browser, served: str) -> None:
    spiked = next(event["loss"] for event in events(0) if event["step"] == SPIKE)
    with page_of(browser, served) as page:
        page.wait_for_function(SETTLED)
        page.get_by_role("group", name="Over").get_by_role("button", name="steps").click()
        expect(loss_chart(page).locator("text.label").first).to_have_text("step")
        expect(loss_chart(page).locator(".beyond title", has_text=f"{spiked:.4g}")).to_have_count(1)
        page.locator("#training").get_by_role("button", name="everything").click()
        expect(loss_chart(page).locator(".beyond")).to_have_count(0)
        page.locator(".zoom-from").fill("1230")
        page.locator(".zoom-from").press("Enter")
        page.locator(".zoom-to").fill("1240")
        page.locator(".zoom-to").press("Enter")
        expect(page.locator("#training")).to_contain_text("filtered (n = 11 steps of 3,000)")
        assert shown_points(page) == [11, 11]
        norm = page.locator("#training figure", has_text="Norm of the gradient").first
        norm.locator(".catcher").scroll_into_view_if_needed()
        box = norm.locator(".catcher").bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 30)
        expect(norm.locator(".readout")).to_have_text("step 1,234: filtered 1.411 raw 1.411")
        expect(loss_chart(page).locator(".readout")).to_contain_text(f"({spiked:.4g} at 1,234)")
        expect(loss_chart(page).locator(".pointer line")).to_have_count(1)  # the others follow
        page.get_by_role("button", name="Reset").click()
        expect(page.locator("#training")).to_contain_text("filtered (n = 3,000 steps)")


def test_a_window_is_dragged_and_runs_are_chosen(browser: Browser, served: str) -> None:
    with page_of(browser, served) as page:
        page.wait_for_function(SETTLED)
        page.get_by_role("group", name="Over").get_by_role("button", name="steps").click()
        expect(loss_chart(page).locator("text.label").first).to_have_text("step")
        catcher = loss_chart(page).locator(".catcher")
        catcher.scroll_into_view_if_needed()
        box = catcher.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
        picture(page, "training-dragged")
        page.mouse.up()
        expect(page.locator("#training")).to_contain_text("steps of 3,000)")
        low, high = (float(page.locator(f".zoom-{end}").input_value()) for end in ("from", "to"))
        assert low == pytest.approx(750, abs=8) and high == pytest.approx(1500, abs=8)
        assert lines(page) == 2
        page.locator("#training .toggles").get_by_role("button", name="raw").click()
        expect(page.locator("#training .curves figcaption").first).not_to_contain_text("raw (n")
        assert lines(page) == 1
        page.locator("#training").get_by_role("button", name="logarithmic").click()
        expect(loss_chart(page)).to_be_visible()


def test_the_routers_are_looked_at_step_by_step(browser: Browser, served: str) -> None:
    with page_of(browser, served) as page:
        page.wait_for_function(SETTLED)
        routers = page.locator("#training .routers")
        page.locator(".router-step-number").fill("700")
        page.locator(".router-step-number").press("Enter")
        expect(routers).to_contain_text("Run filtered, step 700")
        page.locator(".router-step").press("ArrowRight")
        expect(routers).to_contain_text("Run filtered, step 701")
        load = np.array(routed(701, 3, 8, 0)["load"])
        expect(routers).to_contain_text(f"The busiest has {load.max() * 8:.3g} × its even share")
        cell = routers.locator(".catcher").first
        cell.scroll_into_view_if_needed()
        box = cell.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 1.5 / 3)
        expect(routers.locator(".readout").first).to_contain_text(f"layer 3, expert 2: {100 * load[1][2]:.1f}")
        page.locator(".router-layer").select_option("5")
        expect(routers).to_contain_text("Load of the 8 experts of layer 5, run filtered")
        routers.locator("summary", has_text="By layer").first.click()
        expect(routers.locator("table").first).to_contain_text("0.700")  # the lowest layer's entropy, as written


def test_a_run_that_goes_on_grows_and_keeps_what_was_chosen(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "REFRESH_SECONDS", 0.2)
    folder = write_log(tmp_path / "run", events(0, 40), card(0))
    with serving(folder) as address, page_of(browser, address) as page:
        page.wait_for_function(SETTLED)
        page.locator("#training").get_by_role("button", name="logarithmic").click()
        expect(page.locator("#training")).to_contain_text("(n = 40 steps)")
        loss_chart(page).evaluate("element => { element.closest('.curves').stays = true; }")
        stop = threading.Event()

        def train() -> None:
            with (folder / "events.jsonl").open("a") as file:
                for event in events(0, 400, 41):
                    text = line(event)
                    file.write(text[:30])
                    file.flush()
                    file.write(text[30:])
                    file.flush()
                    stop.wait(0.002)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            expect(page.locator("#training .curves figcaption").first).to_contain_text("(n = 400 steps)")
        finally:
            stop.set()
            thread.join()
        assert shown_points(page)[0] == 400
        expect(page.locator("#training .standing table")).to_contain_text("400 of 3,000")
        expect(page.locator("#training .routers")).to_contain_text("step 400")
        expect(page.locator("#mixture")).to_contain_text("400 logged steps")
        pressed = page.locator("#training").get_by_role("button", name="logarithmic")
        expect(pressed).to_have_attribute("aria-pressed", "true")
        assert page.locator("#training .curves").evaluate("element => element.stays")  # it was not drawn anew


def test_the_file_shows_curves_and_the_last_loads(browser: Browser, run: Path, tmp_path: Path) -> None:
    with page_of(browser, build(run, tmp_path / "page.html").as_uri()) as page:
        page.wait_for_function(SETTLED)
        training = page.locator("#training")
        expect(training).to_contain_text("Training loss of filtered (n = 3,000 steps)")
        expect(training).to_contain_text("Run filtered, step 3,000")
        expect(training).to_contain_text("report open zooms into them")
        expect(training.locator(".router-step, .zoom-from")).to_have_count(0)
        expect(page.locator("#mixture")).to_contain_text("240,000")
        assert (tmp_path / "page.html").stat().st_size < 1_000_000


def test_many_runs_are_listed_overlaid_and_their_settings_told(browser: Browser, tmp_path: Path) -> None:
    for seed in range(2):
        for arm in ("filtered", "random-drop"):
            write_log(tmp_path / f"{arm}-seed{seed}", events(seed + 1, 600), card(seed))
    with serving(tmp_path) as address, page_of(browser, address) as page:
        page.wait_for_function(SETTLED)
        expect(page.locator("#runs tbody tr")).to_have_count(4)
        expect(page.locator("#runs tbody tr").first).to_contain_text("600 of 3,000")
        expect(page.locator("#overlay")).to_contain_text("filtered n = 2, random-drop n = 2")
        assert page.locator("#overlay .band").count() == 4
        expect(page.locator("#settings tbody")).to_contain_text("seed")
        picture(page, "all-runs", "#main")
        page.locator("#runs a", has_text="random-drop-seed1").click()
        expect(page.locator("h1")).to_contain_text("random-drop-seed1")
        expect(page.locator("#training")).to_contain_text("random-drop-seed1 (n = 600 steps)")


def test_of_more_runs_than_can_be_overlaid_some_are_chosen(browser: Browser, tmp_path: Path) -> None:
    for number in range(14):
        write_log(tmp_path / f"run{number:02}", events(number, 20), card(0))
    with serving(tmp_path) as address, page_of(browser, address) as page:
        page.wait_for_function(SETTLED)
        runs = page.locator("#overlay .toggles")
        expect(runs.locator("button[aria-pressed=true]")).to_have_count(6)
        runs.get_by_role("button", name="run13").click()
        runs.get_by_role("button", name="run00").click()
        caption = page.locator("#overlay .curves figcaption").first
        expect(caption).to_contain_text("run13 (n = 20 steps)")
        expect(caption).not_to_contain_text("run00")
        expect(runs.locator("button[aria-pressed=true]")).to_have_count(6)
