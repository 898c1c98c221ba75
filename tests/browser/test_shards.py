"""The shard inspector in a browser, over a packed run: tokens, keys, bounds, back to the documents, hashes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support.browser import page_of, picture, serving

from gristmill.base.files import read_json
from gristmill.datapipe.policy import Edit
from gristmill.datapipe.stages.tokens import edited
from gristmill.report.asked import Asked
from gristmill.report.live_run import LiveRun
from gristmill.report.questions import answer

TOKENS = "#artifacts .tokens"


def test_every_window_is_the_text_after_edits(run_folder: Path) -> None:
    """No browser: each packed document of the run, byte for byte, put together from the windows that hold it."""
    policy = read_json(run_folder / "selection" / "policy.json")["policy"]
    edits = [Edit(one["column"], one.get("replace", ""), tuple(one.get("sources", ()))) for one in policy["edit"]]
    assert edits
    wanted: dict[str, bytes] = {}
    for path in sorted((run_folder / "documents").glob("*.parquet")):
        table = pq.read_table(path)
        names = {edit.column.partition(".")[0] for edit in edits}
        previous = {name: pq.read_table(run_folder / "annotations" / name / path.name) for name in names}
        wanted |= dict(zip(table["id"].to_pylist(), edited(table, previous, edits).cast(pa.binary()).to_pylist()))
    live, held = LiveRun(run_folder), {}
    for source in read_json(run_folder / "shards/filtered/manifest.json")["sources"]:
        place = {"dataset": "shards/filtered", "source": source}
        for shard in answer("shard_list", live, Asked(place))["shards"][:4]:
            at = 0
            while at < min(shard["tokens"], 60_000):
                own = {**place, "split": shard["split"], "shard": str(shard["number"]), "at": str(at), "size": "1024"}
                found = answer("shard_window", live, Asked(own))
                for run in found["runs"]:
                    if "name" in run:
                        continue
                    owner = next(one for one in found["documents"] if one["end"] > at + run["start"])
                    blob = bytes.fromhex(run["bytes"]) if "bytes" in run else run["text"].encode()
                    key = owner["id"].removesuffix(f"@{owner['file']}:{owner['file_row']}")
                    held.setdefault((key, owner["end"] <= at + 1024), []).append(blob)
                at += len(found["ids"])
    whole: dict[str, bytes] = {}
    for (key, _), blobs in held.items():
        whole[key] = whole.get(key, b"") + b"".join(blobs)
    assert len(whole) > 50
    equal = sum(wanted[key] == blob for key, blob in whole.items())
    assert all(wanted[key].startswith(blob) for key, blob in whole.items())  # the last of a shard may be cut off above
    assert equal >= 0.9 * len(whole)


def ready(page: Page) -> None:
    page.wait_for_selector(TOKENS)
    page.wait_for_function("() => !document.querySelector('.answer:not([data-answered])')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_window_and_what_it_leads_to(browser: Browser, address: str, scheme: str) -> None:
    with page_of(browser, address, scheme) as page:
        ready(page)
        tokens, told = page.locator(TOKENS), page.locator("#artifacts .token-told")
        tokens.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        found = page.evaluate("() => answers.get('shard_window?')")
        assert f"id {found['ids'][1]}" in told.inner_text().replace("\n", " ")
        assert "null" not in told.inner_text() and page.locator(f"{TOKENS} .pointed").count() == 1
        page.keyboard.press("PageDown")
        page.wait_for_function(
            "() => document.querySelector('#artifacts .window-head').textContent.includes('Tokens 256 to')"
        )
        assert page.evaluate("() => document.activeElement.className").startswith("tokens")
        page.keyboard.press("PageUp")
        page.wait_for_function(
            "() => document.querySelector('#artifacts .window-head').textContent.includes('Tokens 0 to')"
        )
        page.locator("#artifacts").get_by_role("button", name="both").click()
        assert page.locator(f"{TOKENS} .number").count() == len(found["ids"])
        picture(page, f"shard-both-{scheme}", "#artifacts .inspector")
        page.locator("#artifacts").get_by_label("or document").fill("2")
        page.locator("#artifacts").get_by_role("button", name="Go").click()
        expect(page.locator(f"{TOKENS} .bound").first).to_contain_text("document 2")
        page.locator("#artifacts").get_by_role("button", name="text", exact=True).click()
        page.get_by_role("button", name="Compare the hashes of this shard").click()
        page.wait_for_selector("#artifacts .state.done")
        picture(page, f"shard-{scheme}", "#artifacts")
        name = page.locator("#artifacts table a").first.inner_text()
        page.locator("#artifacts table a").first.click()
        assert page.url.endswith("#browse")
        page.wait_for_function("(id) => document.querySelector('#browse .found .id')?.textContent === id", arg=name)
        assert page.locator("#browse .found > li").count() == 1
        page.go_back()
        assert not page.url.endswith("#browse")


def test_a_document_is_found_by_its_id_and_one_that_is_not_there_is_told(browser: Browser, address: str) -> None:
    with page_of(browser, address) as page:
        ready(page)
        box = page.locator("#artifacts")
        box.get_by_label("Source", exact=True).select_option(index=1)
        page.wait_for_function("() => !document.querySelector('#artifacts .answer:not([data-answered])')")
        box.get_by_label("or document").fill("3")
        box.get_by_role("button", name="Go").click()
        page.wait_for_function(
            "() => document.querySelector('#artifacts .bound')?.textContent.startsWith('document 3')"
        )
        wanted = box.locator(".bound .id").first.inner_text()
        box.get_by_label("Source", exact=True).select_option(index=0)
        page.wait_for_function(
            "() => document.querySelector('#artifacts .window-head').textContent.includes('Tokens 0 to')"
        )
        box.get_by_label("or id").fill(wanted)
        box.get_by_role("button", name="Go").click()
        page.wait_for_function(
            "(id) => document.querySelector('#artifacts .bound .id')?.textContent === id", arg=wanted
        )
        box.get_by_label("or id").fill("<img src=x onerror=alert(1)>")
        box.get_by_role("button", name="Go").click()
        page.wait_for_function(
            "() => document.querySelector('#artifacts .inspector').textContent.includes('has the id <img')"
        )
        assert box.locator(".bound .id").first.inner_text() == wanted and page.locator("img").count() == 0


def test_hostile_tokens_stay_text(browser: Browser, tmp_path: Path) -> None:
    from tests.support.byte_tokenizer import byte_tokenizer

    from gristmill.shards.tokenizer import tokenizer_info
    from gristmill.shards.writer import SourceSpec, write_manifest, write_source

    path = byte_tokenizer(tmp_path / "tokenizer.json", special=("<|endoftext|>", "<script>alert(1)</script>"))
    text = "<img src=x onerror=alert(1)>\u202egnp.exe\x1b[31m 😀</script><!-- "
    ids = [*text.encode(), 257, 0xFF, 0xC3]
    table = pa.table(
        {"id": ["<b>x</b>"], "tokens": pa.array([ids], pa.list_(pa.uint16())), "file": ["<i>.jsonl"], "row": [0]}
    )
    root = tmp_path / "run" / "shards" / "odd"
    write_source(root, SourceSpec("odd", tokenizer_info(path), salt="s", valid_fraction=0.0), [table])
    write_manifest(root, [], path)
    (tmp_path / "run" / "run.json").write_text("{}")
    with serving(tmp_path / "run") as address, page_of(browser, address) as page:
        ready(page)
        shown = page.locator(TOKENS)
        assert "<img src=x onerror=alert(1)>" in (shown.text_content() or "") and page.locator("img").count() == 0
        assert shown.locator(".special").all_inner_texts() == ["<script>alert(1)</script>", "<|endoftext|>"]
        assert shown.locator(".bytes").all_inner_texts() == ["‹ff›", "‹c3›"] and "RLO" in shown.inner_text()
        picture(page, "shard-hostile", "#artifacts .window")
