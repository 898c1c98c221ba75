"""Which documents are looked at for repeats and states, so that of what is cut one copy stays; and what is refused."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gristmill.base.errors import UsageError
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.policy_file import load_policy, read_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.text import spans
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Stage, open_run

PIPELINES = Path(__file__).parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))
duplicates: Any = pytest.importorskip("duplicates")

EDIT = {"column": "paragraphs.cut"}
SHARE = {"name": "mostly_repeats", "column": "paragraphs.share", "max": 0.95}
NEAR = {"name": "near", "column": "near", "keep": "newest"}
BEST = {"name": "near", "column": "near", "keep": "best"}
SEMANTIC = {"name": "semantic", "column": "semantic", "keep": "newest"}
QUALITY = {"name": "quality", "column": "scores.quality", "min": 0.5}


def policy(*rules: dict[str, Any], edit: tuple[dict[str, Any], ...] = (EDIT,), **measure: Any) -> Any:
    return read_policy({"name": "t", "rule": rules, "edit": edit, "measure": measure}, "t.toml")


def words(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 10_000, count))


class States(Stage):
    """Documents that begin alike are alike."""

    name, folder, config = "states", "annotations/states", None

    def __init__(self, _backbone: Path, _config: Any, among: str = "unique") -> None:
        self.requires = (among,)

    def annotate(self, table: pa.Table, previous: Any) -> pa.Table:
        seeds = [zlib.crc32(text[:40].encode()) for text in table["text"].to_pylist()]
        states = np.array([np.random.default_rng(seed).normal(size=16) for seed in seeds], np.float16)
        return pa.table({"state": pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), 16)})


def kept(folder: Path, texts: list[str], wanted: Any, backbone: Path | None = None) -> dict[int, str]:
    """What the policy leaves of which documents; each is newer than the one before."""
    rows = [{"text": text, "created": str(2000 + row)} for row, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = [
        *duplicates.duplicate_stages(wanted, duplicates.DuplicateConfigs(), backbone), Select(wanted, tokens=False),
    ]  # fmt: skip
    Runner(folder / "run", Ingest((str(folder / "in.jsonl"),), IngestConfig()), nodes, workers=0).run()
    run = open_run(folder / "run")
    cut = run.table("paragraphs", ("cut",))["cut"]
    left = spans.apply(run.table("documents", ("text",))["text"], [(cut, "")]).to_pylist()
    return {row: left[row] for row, keep in enumerate(run.table("selection", ("keep",))["keep"].to_pylist()) if keep}


@pytest.mark.parametrize("rules", [(NEAR, SHARE), (SHARE, NEAR)], ids=["near first", "near last"])
def test_a_copy_is_cut_only_where_the_first_stays(tmp_path: Path, rules: tuple[dict[str, Any], ...]) -> None:
    passage = f"{words(1, 60)}\n\n{words(2, 60)}"
    texts = [passage, f"{passage}\n\n{words(3, 20)}", *(words(seed, 60) for seed in range(4, 12))]
    left = kept(tmp_path, texts, policy(*rules, near={"threshold": 0.5}))
    assert 0 not in left and left[1] == texts[1]  # the older one goes, so the newer one holds the first copy


def test_repeats_are_looked_for_in_what_semantic_duplicates_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "States", States)
    passage = words(1, 20)
    texts = [
        f"{passage}\n\n{words(2, 40)}",
        f"{passage}\n\n{words(3, 40)}",
        *(words(seed, 60) for seed in range(9, 40)),
    ]
    left = kept(tmp_path, texts, policy(SEMANTIC), backbone=tmp_path)
    assert 0 not in left and left[1] == texts[1]


def test_the_selections_hold_every_rule_that_is_known_by_then() -> None:
    length = {"name": "words", "column": "heuristics.words", "min": 5}
    by = policy(QUALITY, SHARE, SEMANTIC, NEAR, {"name": "tokens", "column": "tokens.count", "min": 1}, length)
    held = {
        node.name: [rule.name for rule in node.config.rule]
        for node in duplicates.duplicate_stages(by, duplicates.DuplicateConfigs(), Path("model"))
        if isinstance(node, Select)
    }
    assert held == {"before_semantic": ["near", "words"], "unique": ["semantic", "near", "words"]}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (policy(BEST), "leave that [[edit]] out"),
        (policy({**SEMANTIC, "keep": "best"}), "leave that [[edit]] out"),
        (policy(BEST, SHARE, edit=()), "put that rule before this one"),
    ],
    ids=["near", "semantic", "rule"],
)
def test_a_choice_that_comes_after_the_cut_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        duplicates.duplicate_stages(wanted, duplicates.DuplicateConfigs(), Path("model"))
    assert message in str(caught.value) and str(caught.value).startswith("policy 't': rule ")
    assert "longest" in str(caught.value)


def test_a_choice_by_scores_is_allowed_where_nothing_is_cut() -> None:
    for wanted in (policy(BEST, edit=()), policy(SHARE, BEST, edit=()), policy(BEST, edit=({"column": "pii.email"},))):
        duplicates.duplicate_stages(wanted, duplicates.DuplicateConfigs(), None)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ((NEAR, SHARE), ["rule 'mostly_repeats' may drop a document that holds the first copy of what"]),
        ((QUALITY, NEAR), ["rule 'near' chooses before paragraphs is looked for and again behind rule 'quality'"]),
        ((NEAR, QUALITY), []),
        ((QUALITY, {"name": "words", "column": "heuristics.words", "min": 5}), []),
    ],
)
def test_rules_that_may_undo_one_another_are_told(
    rules: tuple[dict[str, Any], ...], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    duplicates.duplicate_stages(policy(*rules), duplicates.DuplicateConfigs(), None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(
        line.startswith("warning: policy 't': ") and text in line for line, text in zip(lines, told, strict=True)
    )


@pytest.mark.parametrize("path", sorted((PIPELINES / "policies").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_policies_have_nothing_to_warn_of(path: Path) -> None:
    shipped = load_policy(path)
    duplicates.refuse_late_choices(shipped)
    assert duplicates.warnings(shipped) == []
