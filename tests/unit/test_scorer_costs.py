"""The cost of grading, computed: against counting by hand, against the prompts themselves, and in docs/oracle.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gristmill.base.errors import UsageError
from gristmill.scorer.costs import BLOCK, TEMPLATE, Cost, Node, grading_cost
from gristmill.scorer.oracle.prompt import Form, prompts
from gristmill.scorer.oracle.tokens import RoughTokenizer
from gristmill.scorer.rubric import load_rubric

ROOT = Path(__file__).parents[2]
GENERAL = load_rubric(ROOT / "pipelines" / "rubrics" / "general.toml")
NODE = Node(prefill_per_second=50_000, decode_per_second=10_000, price=20)
ROUGH = RoughTokenizer()


def cost(documents: int = 10, shown: int = 500, form: Form = "level", cached: bool = True, **asking: int) -> Cost:
    return grading_cost(GENERAL, ROUGH, NODE, documents, shown, form, cached=cached, **asking)


@pytest.mark.parametrize("form", ["level", "json"])
def test_prompt_tokens_are_those_of_the_prompts(form: Form) -> None:
    text = "word " * 300
    shown = len(ROUGH.spans(text))
    sent = sum(
        len(ROUGH.spans(message["content"])) for prompt in prompts(text, GENERAL, form) for message in prompt.messages
    )
    found = grading_cost(GENERAL, ROUGH, NODE, 1, shown, form)
    assert found.prompt_tokens == pytest.approx(sent + TEMPLATE * found.requests, abs=2 * found.requests)


def test_a_cache_spares_the_document_in_all_requests_but_its_first() -> None:
    cold, warm = cost(cached=False), cost()
    assert cold.prefilled_tokens == cold.prompt_tokens == warm.prompt_tokens
    longer = cost(shown=1500)
    assert longer.prefilled_tokens - warm.prefilled_tokens == 10 * 1000
    assert longer.prompt_tokens - warm.prompt_tokens == 10 * 5 * 1000
    # Of a json request, the only one about its document, the cache spares what all documents share, less a block.
    assert cost(form="json").prompt_tokens - cost(form="json").prefilled_tokens < 10 * (TEMPLATE + 2 * BLOCK)


def test_thinking_is_paid_for_with_every_request() -> None:
    assert cost().reply_tokens == 10 * 5
    assert cost(thinking=200).reply_tokens == 10 * 5 * 201
    assert cost(form="json", thinking=200).reply_tokens - cost(form="json").reply_tokens == 10 * 200
    assert cost(form="json", reason=402).reply_tokens - cost(form="json").reply_tokens == 10 * 101


def test_hours_and_price_follow_from_the_node() -> None:
    one = cost()
    assert one.hours == pytest.approx((one.prefilled_tokens / 50_000 + one.reply_tokens / 10_000) / 3600)
    assert one.price == pytest.approx(20 * one.hours)
    assert cost(documents=100).hours == pytest.approx(10 * one.hours)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="documents"):
        cost(documents=0)
    with pytest.raises(UsageError, match="more than 0 tokens"):
        grading_cost(GENERAL, ROUGH, replace(NODE, decode_per_second=0), 1, 1)


def test_the_table_of_the_docs_is_what_this_computes() -> None:
    text = (ROOT / "docs" / "oracle.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "`thinking=" in line]
    assert len(rows) >= 5
    for how, *cells in rows:
        form, thinking, reason = re.findall(r"`(\w+)`", how)[0], *map(int, re.findall(r"=(\d+)", how))
        assert form in ("level", "json")
        found = cost(100_000, 1000, form, thinking=thinking, reason=reason, cached="without cache" not in how)
        tokens = [f"{n / 1e6:,.0f} M" for n in (found.prompt_tokens, found.prefilled_tokens, found.reply_tokens)]
        assert cells == [f"{found.requests:,}", *tokens, f"{found.hours:.1f}", f"{found.price:.0f}"], how


def test_the_code_of_the_docs_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "oracle.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    monkeypatch.chdir(ROOT)
    exec(code[1], {})
    assert capsys.readouterr().out.strip() == str(cost(100_000, 1000, "json", thinking=300))
