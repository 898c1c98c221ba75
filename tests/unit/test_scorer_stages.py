"""Two stages over documents: no score knows its batch, exits spare their blocks, and what fails, fails alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.support.tiny_heads import texts, write_heads

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.backbone.states import batches
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.scoring.scorer import Scorer

WEB = {"tau_drop": 0.45, "tau_keep": 0.5}
TAU = {"(all)": WEB, "web": WEB, "open": {"tau_drop": None, "tau_keep": 0.5}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def heads(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads") / "heads", backbone, thresholds=TAU)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def same(one: pa.Table, other: pa.Table) -> None:
    assert one.schema == other.schema
    for name in one.column_names:
        if name == "reason":
            assert one[name].equals(other[name])
        else:
            np.testing.assert_allclose(numbers(one[name]), numbers(other[name]), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("early_exit", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "gpt2"])
def test_scores_do_not_depend_on_batch_mates(architecture: str, early_exit: bool, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", architecture, layers=4)
    scorer = Scorer.load(write_heads(tmp_path / "heads", folder, thresholds=TAU), folder)
    scorer.backbone.model.float()
    some = [*texts(40), "", "x" * 300, " ", texts(1, 5, (200, 201))[0]]
    together = scorer.score(some, early_exit=early_exit)
    same(together, pa.concat_tables([scorer.score([text], early_exit=early_exit) for text in some]))
    backwards = scorer.score(some[::-1], early_exit=early_exit)
    same(together, backwards.take(pa.array(np.arange(len(some))[::-1])))
    assert len(set(together["windows"].to_pylist())) > 2


@pytest.mark.parametrize("changed", [{"chunk": 7}, {"held_bytes": 0}, {"batch_tokens": 100}, {"batch_tokens": 8192}])
def test_how_it_is_run_changes_no_score(changed: dict[str, Any], heads: Path, backbone: Path) -> None:
    some = texts(60)
    same(Scorer.load(heads, backbone).score(some), Scorer.load(heads, backbone, ScoringConfig(**changed)).score(some))


def test_exits_follow_the_source_and_are_really_spared_the_second_stage(heads: Path, backbone: Path) -> None:
    scorer = Scorer.load(heads, backbone, ScoringConfig(shadow=0))
    some = [text[:40] for text in texts(80, words=(12, 13))]  # of one length, so nothing is padded
    rows = scorer.score(some, ["web"] * 80).to_pylist()
    for row in rows:
        assert row["exit"] == (row["probe"] < 0.45) and not row["shadow"]
        assert (row["judge"] is None) == row["exit"]
        assert row["quality"] == (row["probe"] if row["exit"] else row["judge"])
        assert row["least"] == row["greatest"] == pytest.approx(row["quality"], abs=1e-6)
    exits = sum(row["exit"] for row in rows)
    assert 5 < exits < 75
    work = scorer.counters
    assert work.block_tokens == work.block_tokens_needed == 2 * 41 * 80 + 2 * 41 * (80 - exits)
    assert work.saved == pytest.approx(exits / 80 * 0.5) and work.padding_waste == 0
    assert work.sources == {"web": {"documents": 80, "tokens": 41 * 80, "exits": exits, "shadow": 0}}
    assert work.flops == work.block_tokens * work.flops_per_block_token > 0
    assert not any(scorer.score(some, ["open", "unseen"] * 40)["exit"].to_pylist())
    assert not any(scorer.score(some, ["web"] * 80, early_exit=False)["exit"].to_pylist())


def test_padding_of_real_lengths_stays_under_two_percent() -> None:
    generator = np.random.default_rng(0)
    for most, count, budget in ((512, 3, 32_768), (512, 3, 4096), (2048, 1, 16_384)):
        characters = np.exp(generator.normal(7.2, 1.1, 1024))  # median 1,340 tokens
        longest = np.minimum(np.maximum(characters, 4), most).astype(int)
        windows = np.minimum(np.ceil(characters / most), count).astype(int)
        packed = batches(longest.tolist(), budget, windows.tolist())
        padded = sum(windows[batch].sum() * longest[batch].max() for batch in packed)
        assert padded / (windows * longest).sum() < 1.02


def test_all_columns_are_explained_and_nothing_is_scored_without_words(heads: Path, backbone: Path) -> None:
    scorer = Scorer.load(heads, backbone)
    table = scorer.score(["mill", "", None, " \n", "half a pair \ud800"])
    assert table.column_names == [
        "quality", "probe", "judge", "exit", "shadow", "least", "greatest", "vowels", "noise", "tokens", "windows",
        "truncated", "reason",
    ]  # fmt: skip
    assert all(name in (Scorer.score.__doc__ or "") for name in table.column_names[:7])
    assert table["reason"].to_pylist() == [None, "empty", "empty", "empty", "no Unicode text"]
    for row in table.to_pylist()[1:]:
        assert {name for name, value in row.items() if value is not None} == {
            "tokens", "windows", "truncated", "reason",
        }  # fmt: skip
    assert len(scorer.score([])) == 0
    with pytest.raises(UsageError, match="2 texts but 1 sources"):
        scorer.score(["a", "b"], ["web"])


def test_a_document_of_a_megabyte_costs_three_windows(heads: Path, backbone: Path) -> None:
    scorer = Scorer.load(heads, backbone)
    row = scorer.score(["grain " * 200_000]).to_pylist()[0]
    assert row["windows"] == 3 and row["tokens"] == 3 * 64 and row["truncated"] and row["quality"] is not None
    assert scorer.counters.tokens == 3 * 65


def test_states_that_are_no_numbers_are_told_by_name(
    heads: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = texts(30)
    scorer = Scorer.load(heads, backbone)
    clean = scorer.score(some, early_exit=False)
    first, second = scorer.backbone.first, scorer.backbone.second
    bad = scorer.tokens([some[3]])[0][0]

    def broken_first(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
        hidden_BSD, last = first(ids_BS, mask_BS)
        hidden_BSD = hidden_BSD.clone()
        hidden_BSD[[row[: len(bad)].tolist() == bad.tolist() for row in ids_BS]] = torch.nan
        return hidden_BSD, last

    monkeypatch.setattr(scorer.backbone, "first", broken_first)
    table = scorer.score(some, early_exit=False)
    reasons = table["reason"].to_pylist()
    assert reasons[3] == "not finite" and reasons.count(None) == 29
    assert table["quality"][3].as_py() is table["vowels"][3].as_py() is None
    others = [i for i in range(30) if i != 3]
    same(clean.take(others), table.take(others))
    monkeypatch.setattr(scorer.backbone, "first", first)
    monkeypatch.setattr(scorer.backbone, "second", lambda *given: second(*given) * torch.inf)
    assert set(scorer.score(some, early_exit=False)["reason"].to_pylist()) == {"not finite"}


def test_what_fails_alone_gets_a_reason_and_the_others_their_scores(
    heads: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = texts(30)
    scorer = Scorer.load(heads, backbone)
    clean, first = scorer.score(some), scorer.backbone.first
    bad = {tuple(scorer.tokens([some[3]])[0][0].tolist())}

    def failing(ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> Any:
        for ids, mask in zip(ids_BS, mask_BS):
            if tuple(ids[: int(mask.sum())].tolist()) in bad:
                raise RuntimeError("index out of range")
        return first(ids_BS, mask_BS)

    monkeypatch.setattr(scorer.backbone, "first", failing)
    table = scorer.score(some)
    assert table["reason"].to_pylist()[3] == "RuntimeError: index out of range"
    assert scorer.counters.unscored == {"RuntimeError: index out of range": 1}
    others = [i for i in range(30) if i != 3]
    same(clean.take(others), table.take(others))
    bad |= {tuple(scorer.tokens([text])[0][0].tolist()) for text in some[:10]}
    with pytest.raises(RuntimeError, match="out of range"):  # it is not the documents, then
        scorer.score(some)


def test_where_memory_is_short_batches_shrink(heads: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = texts(60)
    scorer = Scorer.load(heads, backbone)
    clean, first, second = scorer.score(some), scorer.backbone.first, scorer.backbone.second
    sizes: list[int] = []

    def small(run: Any) -> Any:
        def inner(x: torch.Tensor, mask_BS: torch.Tensor) -> Any:
            sizes.append(mask_BS.numel())
            if mask_BS.numel() > 300:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(x, mask_BS)

        return inner

    monkeypatch.setattr(scorer.backbone, "first", small(first))
    monkeypatch.setattr(scorer.backbone, "second", small(second))
    same(clean, scorer.score(some))
    assert max(sizes) > 300
    sizes.clear()
    same(clean, scorer.score(some))
    assert max(sizes) <= 300, "the next call packs for what there was room for"


def test_another_backbone_is_refused(heads: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", "llama", seed=1, layers=4)
    with pytest.raises(DataError, match="is not the one these heads were trained on"):
        Scorer.load(heads, other)


def test_heads_without_a_judge_load_no_block_above_the_probe(backbone: Path, tmp_path: Path) -> None:
    scorer = Scorer.load(write_heads(tmp_path / "heads", backbone, judge=False, thresholds=TAU), backbone)
    rows = scorer.score(texts(10)).to_pylist()
    assert scorer.backbone.model.config.num_hidden_layers == 2 and scorer.counters.blocks == 2
    assert all(row["judge"] is None and not row["exit"] and row["quality"] == row["probe"] for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without such a device does")
def test_heads_of_a_machine_with_an_accelerator_run_on_one_without(backbone: Path, tmp_path: Path) -> None:
    folder = write_heads(tmp_path / "heads", backbone, device="cuda")
    assert Scorer.load(folder, backbone).backbone.device.type == "cpu"
    with pytest.raises(UsageError, match="cuda"):
        Scorer.load(folder, backbone, ScoringConfig(device="cuda"))
