"""Several bundles on one backbone: each document by its own heads, and exactly as those alone would score it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.support.tiny_heads import rubric, texts, write_heads

from gristmill.base.errors import DataError, UsageError
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.scoring.router import Router
from gristmill.scorer.scoring.scorer import Scorer

CODE = rubric("code", ("clarity", "noise"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def general(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"(all)": {"tau_drop": 0.45, "tau_keep": 0.5}}
    return write_heads(tmp_path_factory.mktemp("general") / "heads", backbone, thresholds=thresholds)


@pytest.fixture(scope="module")
def code(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heads(tmp_path_factory.mktemp("code") / "heads", backbone, CODE, seed=3, taps=(1, 3))


def test_each_document_is_scored_as_by_its_own_heads_alone(general: Path, code: Path, backbone: Path) -> None:
    some = [*texts(30), ""]
    sources = ["code" if i % 3 == 0 else "web" for i in range(31)]
    router = Router.load({"": general, "code": code}, backbone)
    table = router.score(some, sources)
    assert table["rubric"].to_pylist() == ["code" if source == "code" else "planted" for source in sources]
    for name, folder in (("code", code), ("web", general)):
        own = [i for i in range(31) if sources[i] == name]
        alone = Scorer.load(folder, backbone).score([some[i] for i in own], [sources[i] for i in own])
        for column in alone.column_names:
            found = table.take(own)[column]
            if column == "reason":
                assert found.equals(alone[column])
            else:
                one, other = (c.cast(pa.float64()).to_numpy() for c in (found, alone[column]))
                np.testing.assert_allclose(one, other, atol=1e-5, err_msg=column)
    web = [i for i in range(31) if sources[i] == "web"]
    assert table.take(web)["clarity"].null_count == len(web)
    assert table["vowels"].null_count == 31 - len(web) and table["noise"].null_count == 1


def test_one_model_serves_bundles_with_different_taps(general: Path, code: Path, backbone: Path) -> None:
    router = Router.load({"": code, "a": general, "b": general}, backbone)
    one, two = router.scorers[""], router.scorers["a"]
    assert one.backbone.model is two.backbone.model and router.scorers["b"] is two
    assert one.backbone.taps == (1, 3) and two.backbone.taps == (2, 4)
    router.score(texts(20), ["a"] * 10 + ["other"] * 10)
    assert one.counters.documents == two.counters.documents == 10
    most = [scorer.counters.padded_tokens * scorer.backbone.taps[1] for scorer in (one, two)]
    assert all(0 < scorer.counters.block_tokens <= 1.2 * full for scorer, full in zip((one, two), most)), "each its own"


def test_content_types_come_before_sources(general: Path, code: Path, backbone: Path) -> None:
    router = Router.load({"": general, "code": code}, backbone)
    found = router.score(texts(4), ["web", "code", "code", "web"], ["code", None, "prose", ""])
    assert found["rubric"].to_pylist() == ["code", "code", "code", "planted"]


def test_where_no_heads_are_for_a_document_it_says_so(code: Path, backbone: Path) -> None:
    found = Router.load({"code": code}, backbone).score(["mill", "grain"], ["web", "code"])
    assert found["reason"].to_pylist() == ["no heads for its content type or source", None]
    assert found["quality"].null_count == 1 and found["rubric"].to_pylist() == [None, "code"]
    assert len(Router.load({"code": code}, backbone).score([], [])) == 0


def test_what_does_not_fit_together_is_refused(general: Path, backbone: Path, tmp_path: Path) -> None:
    other = write_heads(tmp_path / "other", backbone, rubric("planted", ("clarity", "noise")))
    with pytest.raises(UsageError, match="different rubrics of the name 'planted'"):
        Router.load({"": general, "code": other}, backbone)
    with pytest.raises(UsageError, match="2 texts, 1 sources"):
        Router.load({"": general}, backbone).score(["a", "b"], ["web"])
    strange = write_heads(tmp_path / "strange", write_tiny(tmp_path / "tiny", "llama", seed=1, layers=4))
    with pytest.raises(DataError, match="is not the one these heads were trained on"):
        Router.load({"": general, "code": strange}, backbone)
