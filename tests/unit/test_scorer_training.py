"""What heads learn from: every window once per document's weight, no missing grade, nothing that is not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json
from gristmill.scorer.backbone.cache import States
from gristmill.scorer.backbone.staged import StagedBackbone
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import TrainConfig
from gristmill.scorer.heads import bundle
from gristmill.scorer.heads.distil import train_bundle
from gristmill.scorer.heads.labels import Labels
from gristmill.scorer.heads.modules import CHUNK, AttentionPool, Encoder, MeanPool, chunked
from gristmill.scorer.heads.training import TrainedHeads, predict, train_heads
from gristmill.scorer.rubric import rubric_from_mapping

WIDTH, TOKENS = 16, 12
ANCHORS = {"0": "no", "4": "yes"}
RUBRIC = rubric_from_mapping(
    {
        "name": "planted",
        "dimensions": [{"name": name, "question": "?", "anchors": ANCHORS} for name in ("clear", "deep")],
    },
    "test",
)
CONFIG = TrainConfig(taps=(1, 2), epochs=6, judge_epochs=4, batch_tokens=512, judge=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def labels(truth_ND: np.ndarray, **columns: Any) -> Labels:
    n = len(truth_ND)
    table: dict[str, Any] = {
        "id": [f"d{i}" for i in range(n)], "text": ["x"] * n, "split": (["fit", "fit", "select"] * n)[:n],
        **{name: pa.array(truth_ND[:, i], from_pandas=True) for i, name in enumerate(("clear", "deep"))},
    }  # fmt: skip
    return Labels.of(pa.table({**table, **columns}), RUBRIC)


def states(rows: list[torch.Tensor]) -> States:
    return States(rows, torch.stack([row.mean(0) for row in rows]))


def plain(n: int = 150, seed: int = 0) -> tuple[States, np.ndarray]:
    """A window a document, whose scores are in the mean of its first two features."""
    generator = torch.Generator().manual_seed(seed)
    truth_ND = 4 * torch.rand(n, 2, generator=generator)
    rows = [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(n)]
    for row, truth_D in zip(rows, truth_ND):
        row[:, :2] += truth_D - 2
    return states(rows), truth_ND.double().numpy()


def train(
    given: States, of: Labels, config: TrainConfig = CONFIG, documents_M: np.ndarray | None = None
) -> TrainedHeads:
    documents_M = np.arange(len(of)) if documents_M is None else documents_M
    return train_heads(given, given, documents_M, of, RUBRIC, config)


def same(one: TrainedHeads, other: TrainedHeads) -> bool:
    pairs = [(one.probe, other.probe), (one.judge, other.judge)]
    return all(
        (a is None) == (b is None)
        and (a is None or b is None or all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters())))
        for a, b in pairs
    )


def test_the_mean_is_fitted_in_closed_form_and_learns_both_dimensions() -> None:
    given, truth_ND = plain()
    heads = train(given, labels(truth_ND), replace(CONFIG, pooling="mean"))
    assert isinstance(heads.probe, MeanPool)
    predicted_ND = predict(heads.probe, given, np.arange(150), 150, RUBRIC, CONFIG)
    assert np.abs(predicted_ND - truth_ND).mean() < 0.4
    assert heads.report["probe_spearman"] == heads.report["mean_pool_spearman"] > 0.9
    assert heads.judge is None and heads.report["reason"] == "the judge is switched off"


def test_attention_finds_the_tokens_that_matter_and_the_mean_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    truth_ND = 4 * torch.rand(600, 1, generator=generator).repeat(1, 2)
    rows = [0.5 * torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(600)]
    for row, (truth, _) in zip(rows, truth_ND):
        row[:, 0] += 4 * torch.randn(TOKENS, generator=generator)  # no token but one says anything by this feature
        place = int(torch.randint(TOKENS, (), generator=generator))
        row[place, 0], row[place, 1] = truth - 2, 8.0
    config = replace(CONFIG, epochs=40, patience=10, learning_rate=0.03)
    report = train(states(rows), labels(truth_ND.double().numpy()), config).report
    assert report["mean_pool_spearman"] < 0.4
    assert report["probe_spearman"] > 0.8


def test_a_documents_windows_share_its_weight() -> None:
    given, truth_ND = plain()
    cut_M = np.repeat(np.arange(150), np.arange(150) % 3 + 1)  # one to three windows
    cut = States([given.rows[i] for i in cut_M], given.means_MD[cut_M])
    config = replace(CONFIG, pooling="mean")
    once, often = train(given, labels(truth_ND), config), train(cut, labels(truth_ND), config, cut_M)
    for one, other in zip(once.probe.parameters(), often.probe.parameters()):
        torch.testing.assert_close(one, other)
    assert (often.report["fit"], often.report["select"], often.report["windows"]) == (100, 50, len(cut_M))
    predicted = [
        predict(head.probe, s, d, 151, RUBRIC, config)
        for head, s, d in ((once, given, np.arange(150)), (often, cut, cut_M))
    ]
    np.testing.assert_allclose(predicted[0], predicted[1], atol=1e-5)
    assert np.isnan(predicted[0][150]).all(), "a document without windows has no score"


def test_weights_count() -> None:
    given, truth_ND = plain()
    liars = np.arange(150) % 2 == 0
    lied_ND = np.where(liars[:, None], 4 - truth_ND, truth_ND)
    config = replace(CONFIG, pooling="mean")
    heads = train(given, labels(lied_ND, weight=np.where(liars, 1e-3, 1.0)), config)
    predicted_ND = predict(heads.probe, given, np.arange(150), 150, RUBRIC, config)
    assert np.corrcoef(predicted_ND[:, 0], truth_ND[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_missing_grade_teaches_nothing_and_the_others_of_its_document_do(pooling: Any) -> None:
    given, truth_ND = plain()
    gaps_ND = truth_ND.copy()
    gaps_ND[::2, 1] = np.nan
    wild_ND = gaps_ND.copy()
    config = replace(CONFIG, pooling=pooling)
    heads = train(given, labels(wild_ND), config)
    predicted_ND = predict(heads.probe, given, np.arange(150), 150, RUBRIC, config)
    assert (np.abs(predicted_ND - truth_ND).mean(0) < 0.6).all()
    gaps_ND[1::2, 1] = np.nan
    with pytest.raises(DataError, match=r"no document of split 'fit' has a grade on deep; grade it, or take it out"):
        train(given, labels(gaps_ND), config)


def test_a_document_whose_states_are_not_finite_is_named_and_not_trained_on() -> None:
    given, truth_ND = plain()
    broken = States([row.clone() for row in given.rows], given.means_MD.clone())
    for i in (3, 4, 5):
        broken.rows[i][2] = torch.nan
        broken.means_MD[i] = torch.nan
    without_ND = truth_ND.copy()
    without_ND[3:6] = np.nan
    config = replace(CONFIG, judge=True, judge_gain=-1.0, judge_kind="encoder")
    heads, expected = train(broken, labels(truth_ND), config), train(given, labels(without_ND), config)
    assert heads.report["not_finite"] == ["d3", "d4", "d5"]
    assert same(heads, expected)
    for row in broken.rows:
        row[0] = torch.nan
    every = States(broken.rows, torch.full_like(broken.means_MD, torch.nan))
    with pytest.raises(DataError, match=r"0 graded documents in split 'fit', 8 needed.*150 have states that are not"):
        train(every, labels(truth_ND), config)


def test_the_better_kind_of_judge_is_kept_and_ships_only_where_it_gains() -> None:
    given, truth_ND = plain()
    noise, _ = plain(seed=7)

    def judged(**settings: Any) -> TrainedHeads:
        config = replace(CONFIG, judge=True, **settings)
        return train_heads(noise, given, np.arange(150), labels(truth_ND), RUBRIC, config)

    best = judged()
    assert isinstance(best.judge, AttentionPool) and best.judge_kind == "attention" and best.report["judge_shipped"]
    assert set(best.report["judge_kinds"]) == {"attention", "encoder"}
    assert best.report["judge_spearman"] == max(best.report["judge_kinds"].values())
    encoder = judged(judge_kind="encoder", judge_gain=-2.0)
    assert isinstance(encoder.judge, Encoder) and set(encoder.report["judge_kinds"]) == {"encoder"}
    refused = judged(judge_gain=2.0)
    assert refused.judge is None and "not enough: probe only" in refused.report["reason"]
    level = judged(taps=(2, 2))
    assert level.judge is None and "both read after block 2: probe only" in level.report["reason"]


def test_training_is_the_same_to_the_bit_and_leaves_the_random_state_alone() -> None:
    given, truth_ND = plain()
    config = replace(CONFIG, judge=True, judge_gain=-2.0, judge_kind="encoder")
    torch.manual_seed(1)
    first = train(given, labels(truth_ND), config)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert same(first, train(given, labels(truth_ND), config))


def test_chunks_are_means_of_their_own_tokens() -> None:
    mask_BS = torch.arange(20)[None, :] < torch.tensor([[20], [9], [3]])
    x_BSW = torch.randn(3, 20, 4) * mask_BS[..., None]
    means_BCW, tokens_BC = chunked(x_BSW, mask_BS)
    assert tokens_BC.tolist() == [[8, 8, 4], [8, 1, 0], [3, 0, 0]] and CHUNK == 8
    torch.testing.assert_close(means_BCW[0, 2], x_BSW[0, 16:].mean(0))
    torch.testing.assert_close(means_BCW[1, 1], x_BSW[1, 8])
    assert not means_BCW[2, 1:].any()
    encoder = Encoder(4, 2, inner=8).eval()
    alone = encoder(x_BSW[2:, :3], mask_BS[2:, :3])
    torch.testing.assert_close(encoder(x_BSW, mask_BS)[2:], alone, rtol=1e-5, atol=1e-6)


def table(n: int = 150, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    shares = generator.random(n)
    texts = ["".join(np.where(generator.random(generator.integers(8, 60)) < share, "a", "#")) for share in shares]
    splits = [("fit", "fit", "select", "audit", "certify")[i % 5] for i in range(n)]
    return pa.table(
        {
            "id": [f"d{i}" for i in range(n)],
            "text": texts,
            "source": ["web"] * n,
            "split": splits,
            "clear": 4 * shares,
            "deep": 4 - 4 * shares,
        }
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=6)


SWEPT = TrainConfig(window_tokens=24, dtype="float32", batch_tokens=512, epochs=2, judge_epochs=2, judge_gain=-2.0)


def test_a_swept_bundle_names_its_taps_and_training_again_extracts_nothing(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_bundle(table(), RUBRIC, backbone, tmp_path / "one", SWEPT, cache=tmp_path / "cache")
    report = first.metrics["sweep"]
    assert first.config.taps == (report["probe"], report["judge"])
    assert [row["tap"] for row in report["taps"]] == [1, 2, 3, 4]
    loaded = bundle.load(tmp_path / "one")
    assert loaded.config == first.config
    assert read_json(tmp_path / "one" / "metrics.json")["sweep"] == report

    def never(*arguments: object) -> None:
        raise AssertionError("extracted again")

    monkeypatch.setattr(StagedBackbone, "at", never)
    train_bundle(table(), RUBRIC, backbone, tmp_path / "two", SWEPT, cache=tmp_path / "cache")
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_without_a_cache_nothing_is_left_behind(backbone: Path, tmp_path: Path) -> None:
    config = replace(SWEPT, taps=(2, 4), epochs=1, judge_epochs=1)
    bundles = [
        train_bundle(table(), RUBRIC, backbone, tmp_path / name, config, cache=cache)
        for name, cache in (("one", None), ("two", tmp_path / "cache"))
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "one", "two"]
    assert "sweep" not in bundles[0].metrics
    config = bundle.load(tmp_path / "one").config
    assert config == bundles[0].config and config.judge_kind in ("attention", "encoder")
    assert (tmp_path / "one" / "heads.safetensors").read_bytes() == (
        tmp_path / "two" / "heads.safetensors"
    ).read_bytes()


def test_what_cannot_be_trained_on_is_refused(backbone: Path, tmp_path: Path) -> None:
    empty = table().set_column(1, "text", pa.array(["  "] * 150))
    with pytest.raises(DataError, match="no document outside split certify has any text"):
        train_bundle(empty, RUBRIC, backbone, tmp_path / "heads", SWEPT)
    with pytest.raises(DataError, match="choose taps; grade more, or name two taps"):
        train_bundle(table(20), RUBRIC, backbone, tmp_path / "heads", SWEPT)
    with pytest.raises(UsageError, match="taps"):
        train_bundle(table(), RUBRIC, backbone, tmp_path / "heads", replace(SWEPT, taps=(3, 7)))
    assert not (tmp_path / "heads").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"taps": (4, 2)}, "taps"),
        ({"window_tokens": 0}, "window_tokens"),
        ({"windows": 0}, "windows"),
        ({"sweep_false_drop": 1.5}, "sweep_false_drop"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainConfig(**settings)
    with pytest.raises(UsageError, match="not chosen yet"):
        TrainConfig().chosen_taps  # noqa: B018
