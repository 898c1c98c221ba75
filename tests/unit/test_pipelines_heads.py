"""Heads in the DAG: a bundle for each rubric, documents routed by source, thresholds in one place, drift told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.support.tiny_heads import rubric, texts, write_heads

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json
from gristmill.datapipe.workflow.stage import Inputs
from gristmill.scorer.backbone.tiny import write_tiny
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.scoring.others import parse
from gristmill.scorer.tables import graded_with, read_documents, read_parquet, rubrics_of

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
heads: Any = pytest.importorskip("heads")
dag: Any = pytest.importorskip("dag")
nodes: Any = pytest.importorskip("nodes")
GENERAL, CODE = rubric("general"), rubric("code", ("clarity", "noise"))
ROUTES = {"": "heads_general", "code": "heads_code"}
SOURCES = ["web", "code"] * 60


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama", layers=4)


@pytest.fixture(scope="module")
def folders(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run = tmp_path_factory.mktemp("run")
    web = {"(all)": {"tau_drop": 0.4, "tau_keep": 0.5}, "web": {"tau_drop": 0.3, "tau_keep": 0.45}, "code": {}}
    code = {"(all)": {"tau_drop": None, "tau_keep": 0.6}, "code": {"tau_drop": None, "tau_keep": 0.61}}
    return {
        "heads_general": write_heads(run / "heads" / "general", backbone, GENERAL, thresholds=web),
        "heads_code": write_heads(run / "heads" / "code", backbone, CODE, thresholds=code, taps=(1, 3)),
    }


def score(backbone: Path, folders: dict[str, Path], keep: np.ndarray) -> pa.Table:
    stage = heads.Score(backbone, ROUTES, ScoringConfig(shadow=0))
    assert stage.needs == ("heads_general", "heads_code")
    stage.setup(folders)
    table = pa.table({"text": texts(len(SOURCES)), "source": SOURCES})
    return stage.annotate(table, {"survivors": pa.table({"keep": keep})})


def test_documents_are_scored_by_the_heads_of_their_source(backbone: Path, folders: dict[str, Path]) -> None:
    keep = np.arange(len(SOURCES)) % 5 > 0
    table = score(backbone, folders, keep)
    expected = [{"web": "general", "code": "code"}[s] if kept else None for s, kept in zip(SOURCES, keep)]
    assert table["rubric"].to_pylist() == expected
    assert [value is not None for value in table["quality"].to_pylist()] == keep.tolist()
    assert [value is not None for value in table["clarity"].to_pylist()] == [name == "code" for name in expected]
    nothing = score(backbone, folders, np.zeros(len(SOURCES), bool))
    assert nothing.schema.equals(table.schema), "partitions of one output have the same columns"


def test_other_scorers_stand_beside_and_an_ensemble_is_the_same_in_any_partition(
    backbone: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    fasttext = pytest.importorskip("fasttext")
    (tmp_path / "train.txt").write_text("__label__hq flour bread mill\n__label__lq salt night\n" * 60)
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=4, thread=1, verbose=0)
    model.save_model(str(tmp_path / "quality.bin"))
    others = parse([f"dclm=fasttext:{tmp_path / 'quality.bin'}:hq"])
    stage = heads.Score(backbone, ROUTES, ScoringConfig(), others, "mean")
    assert stage.needs[-1] == "reference" and tmp_path / "quality.bin" in stage.files()
    reference = heads.Reference(stage)
    assert reference.requires == ("sample", "heads_general", "heads_code")
    (tmp_path / "sample").mkdir()
    sample = pa.table({"text": texts(80, seed=5), "source": SOURCES[:80]})
    pq.write_table(sample, tmp_path / "sample" / "unlabelled.parquet")
    assert reference.run(Inputs({**folders, "sample": tmp_path / "sample"}, {}), tmp_path) == {"documents": 80}
    stage.setup({**folders, "reference": tmp_path})
    table = pa.table({"text": [*texts(39), ""], "source": SOURCES[:40]})

    def annotate(part: pa.Table) -> pa.Table:
        return stage.annotate(part, {"survivors": pa.table({"keep": np.ones(len(part), bool)})})

    whole = annotate(table)
    assert whole["dclm"].null_count == whole["ensemble"].null_count == 1
    assert all(0 <= value <= 1 for value in whole["ensemble"].to_pylist()[:-1])
    parts = pa.concat_tables([annotate(table.slice(0, 11)), annotate(table.slice(11))])
    one, other = (scores["ensemble"].to_numpy() for scores in (whole, parts))
    np.testing.assert_allclose(one, other, atol=0.02)


def test_a_sources_thresholds_are_those_of_the_heads_that_score_it(folders: dict[str, Path], tmp_path: Path) -> None:
    step = heads.Thresholds({**ROUTES, "proofs": "heads_code"})
    assert step.run(Inputs(folders, {}), tmp_path) == {"groups": 4}
    groups = read_json(tmp_path / "calibration.json")["groups"]
    found = {name: (group["tau_drop"], group["tau_keep"]) for name, group in groups.items()}
    assert found == {"(all)": (0.4, 0.5), "web": (0.3, 0.45), "code": (None, 0.61), "proofs": (None, 0.6)}


def test_drift_is_written_and_ends_the_run_where_that_is_asked(
    backbone: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    everywhere = dict(folders)
    tables = {
        "documents": pa.table({"id": [str(i) for i in range(len(SOURCES))], "source": SOURCES}),
        "scores": score(backbone, folders, np.ones(len(SOURCES), bool)),
    }
    for name, table in tables.items():
        everywhere[name] = tmp_path / name
        everywhere[name].mkdir()
        pq.write_table(table, everywhere[name] / "part-0.parquet")
    inputs = Inputs(everywhere, dict.fromkeys(tables, ("part-0.parquet",)))
    step = heads.Drift([GENERAL, CODE], fail=False)
    assert step.requires == ("documents", "scores", "heads_general", "heads_code")
    counts = step.run(inputs, tmp_path)
    rows = read_json(tmp_path / "drift.json")["sources"]
    assert [(row["rubric"], row["source"], row["n"]) for row in rows] == [("general", "web", 60), ("code", "code", 60)]
    assert counts == {"sources": 2, "drifted": sum(row["drifted"] for row in rows)} and counts["drifted"]
    with pytest.raises(DataError, match="drifted from the thresholds: web: 60 documents"):
        heads.Drift([GENERAL, CODE], fail=True).run(inputs, tmp_path)


def test_each_rubric_has_its_heads_and_no_two_share_a_name(backbone: Path, tmp_path: Path) -> None:
    general, code = PIPELINES / "rubrics" / "general.toml", PIPELINES / "rubrics" / "code.toml"

    def build(**rubrics: Path) -> list[Any]:
        config = dag.PipelineConfig(
            input=(str(tmp_path / "*.jsonl"),), output=tmp_path / "run", oracle="http://localhost:1/v1#stub",
            backbone=backbone, rubrics=rubrics, policy=PIPELINES / "policies" / "olmo3_scored.toml",
        )  # fmt: skip
        return dag.build(config)[1]

    found = {node.name: node for node in build(code=code, scripts=code, web=general)}
    assert [name for name in found if name.startswith("heads_")] == ["heads_general", "heads_code"]
    assert found["heads_code"].folder == "heads/code" and found["selection"].requires[-1] == "thresholds"
    assert found["scores"].config["routes"] == {
        "": "heads_general", "code": "heads_code", "scripts": "heads_code", "web": "heads_general",
    }  # fmt: skip
    assert found["scores"].needs == ("heads_general", "heads_code") and "reference" not in found
    renamed = tmp_path / "renamed.toml"
    renamed.write_text(code.read_text().replace('name = "code"', 'name = "general"', 1))
    with pytest.raises(UsageError, match="different rubrics that have the same name"):
        build(code=renamed)


def test_a_runs_labels_are_a_table_that_train_heads_reads(tmp_path: Path) -> None:
    """The grades have no ids and no rubric of their own: both are joined to them, for whoever wants other heads."""
    ids, shas = [["a", "b"], ["c"]], [[GENERAL.sha, CODE.sha], [GENERAL.sha]]
    for name in ("sample", "grades"):
        (tmp_path / name).mkdir()
    for number, (own, sha) in enumerate(zip(ids, shas)):
        more = {"source": own, "weight": [1.0] * len(own), "uniform": [True] * len(own), "split": ["fit"] * len(own)}
        whole = {"id": own, "text": [f"{one} and the rest" for one in own], "flagged": [False] * len(own)}
        pq.write_table(pa.table({**whole, **more}), tmp_path / "sample" / f"part-{number}.parquet")
        graded = {"text": own, "rubric_sha": sha, "prompt_tokens": [100] * len(own), "reply_tokens": [1] * len(own)}
        pq.write_table(pa.table(graded), tmp_path / "grades" / f"part-{number}.parquet")
    names: list[str] = ["sample", "grades"]
    parts = dict.fromkeys(names, ("part-0.parquet", "part-1.parquet"))
    inputs = Inputs({name: tmp_path / name for name in parts}, parts)
    assert nodes.Labels([GENERAL, CODE]).run(inputs, tmp_path) == {"labels": 3, "oracle_tokens": 303}
    labels = read_parquet(tmp_path / "labels.parquet")
    assert [one.sha for one in rubrics_of(labels, "labels")] == [GENERAL.sha, CODE.sha]
    assert (
        graded_with(labels, GENERAL)["id"].to_pylist() == graded_with(labels, GENERAL)["text"].to_pylist() == ["a", "c"]
    )
    assert read_documents(tmp_path / "documents.parquet")["text"].to_pylist()[2] == "c and the rest"
