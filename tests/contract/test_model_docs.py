"""docs/models.md: its tables name every kind of attention and every option with its default, and its example runs."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tests.support.attention_layers import KINDS, config, in_pieces, inputs, layer, whole

from gristmill.base.errors import UsageError
from gristmill.trainer.model import attention, precision
from gristmill.trainer.model.filling import Unfilled, place
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.parallel.shards import Shards

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_kind_and_option_is_in_the_tables() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE))
    assert set(KINDS) <= set(rows)
    told = dict(re.findall(r"^\| `(\w+\.\w+)` \| ([\w.]+) \|", PAGE, re.MULTILINE))
    for kind in KINDS:
        options = import_module(f"gristmill.trainer.model.attention.{kind}").Options
        known = {f"{kind}.{field.name}": str(field.default).lower() for field in dataclasses.fields(options)}
        assert {name: default for name, default in told.items() if name.partition(".")[0] == kind} == known


def test_the_kind_of_the_example_does_what_all_kinds_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.partition("## Adding an attention kind in one file")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    (tmp_path / "alibi.py").write_text(code[1], encoding="utf-8")
    monkeypatch.setattr(attention, "__path__", [*attention.__path__, str(tmp_path)])
    made, x_BSD = layer("alibi", torch.float64), inputs(1, 20, torch.float64)
    y_BSD = whole(made, x_BSD)
    changed_BSD = x_BSD.clone()
    changed_BSD[:, 12:] += 1.0
    torch.testing.assert_close(whole(made, changed_BSD)[:, :12], y_BSD[:, :12])
    torch.testing.assert_close(in_pieces(made, x_BSD, [7, 1, 12]), y_BSD)
    packed = whole(made, x_BSD, [(7, 8)])
    torch.testing.assert_close(packed[:, 8:], whole(made, x_BSD[:, 8:]))
    slopes = torch.tensor([2.0 ** (-8 * h / 6) for h in range(1, 7)], dtype=torch.float64)  # section 3 of the paper
    q, k, v = (x_BSD @ part.weight.T for part in (made.query, made.key, made.value))
    far_SS = torch.arange(20)[:, None] - torch.arange(20)
    heads = []
    for h, rows in enumerate(torch.arange(48).split(8)):
        score_SS = (q[0, :, rows] @ k[0, :, rows].T / 8**0.5 - slopes[h] * far_SS).masked_fill(far_SS < 0, -torch.inf)
        heads.append(score_SS.softmax(dim=-1) @ v[0, :, rows])
    expected = torch.cat(heads, dim=-1) @ made.output.weight.T
    torch.testing.assert_close(y_BSD[0], expected, rtol=1e-6, atol=1e-6)
    with Unfilled():
        model = Transformer(config("alibi", "gqa", options={"alibi.span": 4.0}), precision.build("fp32"))
    place(model, torch.device("cpu"))
    shards = Shards(model)
    model.initialise(0, shards.fill)
    shards.require_filled()
    assert torch.isfinite(model.logits(torch.zeros(1, 5, dtype=torch.long))).all()
    with pytest.raises(UsageError, match=r"alibi: span: 0.5 is not from 1"):
        attention.build(config("alibi", options={"alibi.span": 0.5}), 0, precision.build("fp32"))
