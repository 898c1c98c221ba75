"""The report over synthetic run folders: full, partial, empty and broken ones, with documents that attack the page."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.measured_heads import write_heads

from gristmill.base.errors import UsageError
from gristmill.report.page import STATIC, build, render
from gristmill.report.run_folder import collect

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- <script> \u2028 and \u2029 ",
    "pay \u202eesrever\u202c to b\u200bank\x1b[31m \U0001f600 {{data}} {{script}}",
)
SOURCES = ("web", "code", "papers")
WORDS = re.findall(
    r"\w+",
    "the mill stone turns grain into flour and each measure is weighed before it is kept or thrown away by a careful "
    "hand that has seen good harvests and poor ones while water runs under the wheel and the ledger fills",
)
RULES = ("language", "length", "repetition", "exact_duplicate", "near_duplicate", "quality")
LIMITS: dict[str, dict[str, Any]] = {
    "language": {"column": "language.label", "allowed": ["en"]},
    "length": {"column": "heuristics.words", "min": 20, "max": 100000},
    "repetition": {"column": "heuristics.top_bigram_fraction", "max": 0.2, "sources": {"code": {"max": 0.3}}},
    "exact_duplicate": {"column": "exact", "keep": "first"},
    "near_duplicate": {"column": "near", "keep": "first"},
    "quality": {"column": "scores.quality", "min": 0.45, "sources": {"code": {"min": 0.4}, "papers": {"min": 0.35}}},
}


def write_parts(folder: Path, table: pa.Table, parts: int) -> None:
    folder.mkdir(parents=True)
    bounds = np.linspace(0, table.num_rows, parts + 1).astype(int)
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(low, high - low), folder / f"part-{index:05d}.parquet", row_group_size=8192)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_run(run: Path, documents: int = 3000, parts: int = 3, seed: int = 0, text_words: int = 60) -> Path:
    """A run folder as the pipelines write it (every part), from made-up numbers and hostile text."""
    draw = np.random.default_rng(seed)
    source = draw.choice(3, documents, p=[0.62, 0.25, 0.13])
    phrases = [" ".join(draw.choice(WORDS, text_words)) for _ in range(200)]
    texts = [
        f"Document {row}. {phrases[row % 200]}\n\n{HOSTILE[row % 4] if row % 3 == 0 else phrases[(row * 7) % 200]}"
        for row in range(documents)
    ]
    names = np.array(SOURCES)[source]
    document = {
        "id": [f"{name}-{row:06d}" for row, name in enumerate(names)],
        "text": texts,
        "source": names,
        "url": [None] * documents,
        "created": [None] * documents,
        "meta": [None] * documents,
        "file": [f"{name}-{row % 4}.jsonl.gz" for row, name in enumerate(names)],
        "row": np.arange(documents),
    }
    write_parts(run / "documents", pa.table(document), parts)

    words = np.maximum(draw.lognormal(5.4, 1.1, documents), 3).astype(np.int32)
    bigram = np.clip(draw.beta(1.5, 14, documents), 0, 1).astype(np.float32)
    label = draw.choice(np.array(["en", "de", "fr", "zh"]), documents, p=[0.88, 0.06, 0.04, 0.02])
    exact = np.where(
        draw.random(documents) < 0.06,
        draw.integers(0, documents // 60 + 1, documents),
        np.arange(documents) + documents,
    )
    near = np.where(
        draw.random(documents) < 0.12,
        draw.integers(0, documents // 100 + 1, documents),
        np.arange(documents) + documents,
    )
    quality = np.clip(draw.normal(0.5 + 0.06 * source, 0.17, documents), 0, 1).astype(np.float32)
    values = {"language": label, "length": words, "repetition": bigram, "quality": quality}
    size = {"exact_duplicate": _sizes(exact), "near_duplicate": _sizes(near)}

    alive, scored = np.ones(documents, bool), np.ones(documents, bool)
    reason = np.full(documents, None, dtype=object)
    tokens = (words * 1.3).astype(np.int32) + 1
    funnel = [_left("(all)", name, alive & (names == name), tokens) for name in SOURCES]
    for rule in RULES:
        failed = alive & ~_passes(rule, values, size, exact, near, names)
        reason[failed], alive = rule, alive & ~failed
        funnel += [_left(rule, name, alive & (names == name), tokens) for name in SOURCES]
        if rule == "near_duplicate":
            scored = alive.copy()
    probe = np.clip(quality + draw.normal(0, 0.09, documents), 0, 1).astype(np.float32)
    missing = ~scored
    annotations = {
        "language": {"label": label, "score": draw.beta(20, 1, documents).astype(np.float32)},
        "heuristics": {
            "characters": (words * 5.6).astype(np.int32),
            "words": words,
            "mean_word_length": draw.normal(4.8, 0.5, documents).astype(np.float32),
            "top_bigram_fraction": bigram,
            "duplicate_line_fraction": draw.beta(1, 18, documents).astype(np.float32),
        },
        "exact": {"cluster": exact, "size": size["exact_duplicate"]},
        "near": {
            "cluster": near,
            "size": size["near_duplicate"],
            "similarity": draw.beta(9, 2, documents).astype(np.float32),
        },
        "sketch": {
            "identity_high": draw.integers(2**63, 2**64, documents, dtype=np.uint64),
            "signature": pa.array([[1, 2]] * documents, pa.list_(pa.uint32(), 2)),
        },
        "tokens": {"tokens": pa.array([[1, 2]] * documents, pa.list_(pa.uint16())), "count": tokens},
        "scores": {
            "quality": pa.array(quality, mask=missing),
            "probe": pa.array(probe, mask=missing),
            "judge": pa.array(quality, mask=missing | (probe < 0.2)),
            "exit": pa.array(probe < 0.2, mask=missing),
            "educational": pa.array(np.clip(quality * 5, 0, 5), mask=missing),
        },
    }
    for stage, columns in annotations.items():
        write_parts(run / "annotations" / stage, pa.table(columns), parts)
    selection = pa.table(
        {"keep": alive, "reason": pa.array(reason, pa.string()), "weight": np.ones(documents, np.float32)}
    )
    write_parts(run / "selection", selection, parts)
    write_json(run / "selection/funnel.json", {"rules": list(RULES), "rows": funnel})
    write_json(
        run / "selection/policy.json", {"name": "demo", "rules": [{"name": rule, **LIMITS[rule]} for rule in RULES]}
    )
    _labels_and_heads(run, draw, np.flatnonzero(scored), quality, names)
    _training(run, draw)
    _card(run, documents)
    return run


def _sizes(cluster: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(cluster, return_inverse=True, return_counts=True)
    return counts[inverse].astype(np.int32)


def _passes(rule: str, values: dict[str, Any], size: dict[str, Any], exact: Any, near: Any, names: Any) -> np.ndarray:
    if rule == "language":
        return values[rule] == "en"
    if rule in size:  # the first member of a cluster stays
        cluster = exact if rule == "exact_duplicate" else near
        first = np.zeros(len(cluster), bool)
        first[np.unique(cluster, return_index=True)[1]] = True
        return first
    limits = LIMITS[rule]
    low = np.array([limits.get("sources", {}).get(name, {}).get("min", limits.get("min", -np.inf)) for name in names])
    high = np.array([limits.get("sources", {}).get(name, {}).get("max", limits.get("max", np.inf)) for name in names])
    return (values[rule] >= low) & (values[rule] <= high)


def _left(rule: str, source: str, mask: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    return {"rule": rule, "source": source, "documents": int(mask.sum()), "tokens": int(tokens[mask].sum())}


def _labels_and_heads(
    run: Path, draw: np.random.Generator, scored: np.ndarray, quality: np.ndarray, names: np.ndarray
) -> None:
    rows = np.sort(draw.choice(scored, min(600, len(scored)), replace=False))
    split = np.array(["fit", "select", "certify", "audit"])[np.arange(len(rows)) % 4]
    oracle = np.clip(quality[rows] + draw.normal(0, 0.08, len(rows)), 0, 1).astype(np.float32)
    sample = {
        "row": rows,
        "id": [f"row-{row}" for row in rows],
        "source": names[rows],
        "text": ["…"] * len(rows),
        "split": split,
    }
    write_parts(run / "labels/sample", pa.table(sample), 1)
    grades: dict[str, Any] = {
        name: np.clip(np.round(oracle * 5 + draw.normal(0, 0.6, len(rows))), 0, 5).astype(np.float32)
        for name in ("educational", "coherence", "factual", "originality")
    }
    grades |= {
        "quality": oracle,
        "mass": np.ones(len(rows), np.float32),
        "status": np.where(draw.random(len(rows)) < 0.02, "unreadable", "ok"),
        "engine": ["vllm tiny"] * len(rows),
    }
    write_parts(run / "labels/grades", pa.table(grades), 1)
    rates = {"n": 200, "target": 0.4, "keep_rate": 0.405, "exit_rate": 0.02, "deciles": [0.1] * 9, "parent": None}
    groups = {"(all)": {**rates, "tau_drop": None, "tau_keep": 0.35}} | {
        name: {**rates, "tau_drop": 0.22, "tau_keep": 0.5 - 0.05 * index} for index, name in enumerate(SOURCES[:2])
    }
    write_json(run / "thresholds/calibration.json", {"groups": groups})
    write_heads(run, {"general": SOURCES[::2], "code": SOURCES[1:2]})


def _training(run: Path, draw: np.random.Generator, steps: int = 240) -> None:
    for name, floor in (("filtered", 3.1), ("raw", 3.22)):
        folder = run / "training" / name
        folder.mkdir(parents=True)
        lines = []
        for step in range(1, steps + 1):
            bias = draw.normal(0, 0.9 * 0.98**step + 0.12, (4, 16))
            load = np.exp(bias) / np.exp(bias).sum(axis=1, keepdims=True)
            if name == "raw":
                load[2, 5] *= 0.02
            entropy = (-(load * np.log(load)).sum(axis=1) / np.log(16)).tolist()
            loss = floor + 7 * np.exp(-step / 30) + draw.normal(0, 0.09)
            event = {
                "type": "step",
                "step": step,
                "tokens": step * 8192,
                "loss": loss,
                "grad_norm": 1.0,
                "tokens_per_second": 21000.0,
            }
            router: dict[str, Any] = {"load": load.tolist(), "entropy": entropy, "aux_loss": 0.01, "z_loss": 0.0}
            if name == "filtered":  # as runs have it now; the other as it was before
                event |= {"mfu": 0.31, "memory_gb": 1.2, "cost": step / 100, "norms": {"experts": 0.8, "router": 0.6}}
                router |= {"dropped": [0.0] * 4, "logits": None}
            if name == "filtered" and step % 40 == 0:
                event |= {"updates": {"experts": 0.001, HOSTILE[0]: 0.002}}
                router |= {"logits": {"low": -8.0, "high": 8.0, "share": [[0.25] * 4] * 4}}
                written = [{"prompt": HOSTILE[1], "text": HOSTILE[2]}, {"prompt": "", "text": HOSTILE[3]}]
                lines.append({"type": "samples", "step": step, "samples": written})
                alarm = {"alarm": "loss_spike", "policy": "warn", "since": step, "told": HOSTILE[1]}
                lines.append({"type": "alarm", "step": step, **alarm})
            lines.append(event | {"router": router})
            if step % 40 == 0:
                by_source = {
                    source: {"loss": loss, "bits_per_byte": loss / 3 + 0.1 * index}
                    for index, source in enumerate(SOURCES)
                }
                lines.append(
                    {
                        "type": "validation",
                        "step": step,
                        "loss": floor,
                        "bits_per_byte": (floor + 7 * np.exp(-step / 30)) / 2.9,
                        "by_source": by_source,
                    }
                )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "events.jsonl").write_text(text + '{"type":"step","step":9', encoding="utf-8")
        card = {
            "format": "gristmill.train/1",
            "status": "done",
            "parameters": 9_800_000,
            "active_parameters": 3_100_000,
            "tokens": steps * 8192,
            "seconds": 94.2,
        }
        write_json(folder / "run.json", card)
    rows = [
        ("all", 400, -0.002, -0.009, 0.005, "no difference"),
        ("kept by the policy", 150, -0.012, -0.019, -0.004, "better"),
        ("web", 260, -0.021, -0.027, -0.015, "better"),
        ("code", 128, 0.009, 0.003, 0.016, "worse"),
        ("papers", 12, -0.011, -0.015, -0.007, "no difference"),  # too few documents, so trainer.compare abstains
    ]
    sets = [
        {
            "name": set_name,
            "documents": count,
            "a_bits_per_byte": 1.1 + d,
            "b_bits_per_byte": 1.1,
            "difference": d,
            "ci95": [low, high],
            "verdict": verdict,
        }
        for set_name, count, d, low, high, verdict in rows
    ]
    write_json(
        run / "comparison/comparison.json",
        {"a": "filtered", "b": "raw", "budget_tokens": steps * 8192, "sets": sets, "note": "one seed each"},
    )


def _card(run: Path, documents: int) -> None:
    def node(name: str, requires: str, seconds: float, status: str = "done", **counts: float) -> dict[str, Any]:
        return {
            "name": name,
            "kind": "stage",
            "requires": requires.split(),
            "status": status,
            "partitions": 3,
            "partitions_done": 3,
            "partitions_cached": 3 if status == "cached" else 0,
            "seconds": seconds,
            "counts": counts,
            "error": None,
        }

    nodes = [
        node("ingest", "", 4.1, documents=documents, quarantined=37),
        node("language", "ingest", 1.9, "cached"),
        node("heuristics", "ingest", 3.2),
        node("exact", "ingest", 0.8, clusters=180),
        node("near", "exact", 6.7, clusters=310),
        node("tokens", "ingest", 2.6, tokens=1_250_000),
        node("sample", "language heuristics near", 0.4, documents=600),
        node("grade", "sample", 182.0, documents=600),
        node("heads", "grade", 21.5),
        node("scores", "heads", 48.3, documents=2200),
        node("select", "scores tokens", 0.3),
        node("pack", "select", 2.2),
        node("train_filtered", "pack", 94.2),
        node("train_raw", "tokens", 95.7),
        node("compare", "train_filtered train_raw", 3.3),
    ]
    quarantine = {"total": 37, "documents": documents, "by_reason": {"not JSON": 21, "no text field": 16}}
    card = {
        "format": "gristmill.run/1",
        "name": "demo",
        "status": "done",
        "started_at": "2026-11-21T20:00:00+00:00",
        "finished_at": "2026-11-21T20:07:42+00:00",
        "command": ["python", "pipelines/demo.py"],
        "versions": {"pyarrow": "25.0", "ray": "2.60.0"},
        "machine": {"cpus": 2, "memory_gb": 8},
    }
    write_json(run / "run.json", card | {"nodes": nodes, "quarantine": quarantine})
    lines = [
        {
            "file": "web-0.jsonl.gz",
            "row": row,
            "reason": "not JSON" if row % 2 else "no text field",
            "sample": HOSTILE[row % 4],
        }
        for row in range(37)
    ]
    (run / "quarantine").mkdir()
    (run / "quarantine/web-0.jsonl.gz.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    for name in ("raw", "filtered"):
        sources = {}
        for source in SOURCES:
            shard = {"tokens": {"path": "tokens/000/00000.u16"}, "token_count": 1000, "document_count": 10}
            splits = {"train": [shard, {**shard, "continues": True}], "valid": [{**shard, "document_count": 2}]}
            tokenizer = {"name": "demo", "vocab_size": 4096}
            path = run / "shards" / name / "sources" / source / "manifest.json"
            write_json(path, {"dtype": "u16", **splits, "tokenizer": tokenizer, "licence": "ODC-By"})
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sources[source] = {"path": f"sources/{source}/manifest.json", "sha256": digest}
        manifest = {
            "format": "gristmill.shards/1",
            "sources": sources,
            "mixtures": [{"path": "mixtures/web40_code20.toml", "bytes": 80, "sha256": "0" * 64}],
            "content_id": ("3f" if name == "raw" else "a2") * 32,
        }
        write_json(run / "shards" / name / "manifest.json", manifest)
    write_json(run / "published/manifest.json", manifest)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


def inlined(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_a_full_run_fills_every_panel(run: Path, tmp_path: Path) -> None:
    page = build(run, tmp_path / "page.html")
    data = inlined(page.read_text(encoding="utf-8"))
    assert [name for name, panel in data.items() if "missing" in panel or "error" in panel] == []
    assert data["overview"]["documents"] == 3000
    assert data["overview"]["quarantined"] == 37
    assert page.stat().st_size < 1_500_000


def test_hostile_text_reaches_the_page_as_data_only(run: Path, tmp_path: Path) -> None:
    page = build(run, tmp_path / "page.html").read_text(encoding="utf-8")
    data = inlined(page)
    shown = json.dumps([document["text"] for document in data["samples"]["documents"].values()], ensure_ascii=False)
    assert "</script><script>alert(1)" in shown and "\u202e" in shown and "{{data}}" in shown  # there, and unharmed
    for raw in ("alert(1)</script>", "<img", "<!--", "\u2028", "\u202e", "\u200b", "\x1b"):
        assert raw not in page
    assert page.count("<script") == 2 and page.count("</script") == 2


def test_the_page_fetches_nothing_and_its_policy_names_what_it_holds(run: Path, tmp_path: Path) -> None:
    page = build(run, tmp_path / "page.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1] and "connect-src" not in policy[1]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        content = page.rsplit(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy[1]
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    for asset in STATIC.glob("*.js"):
        assert "innerHTML" not in asset.read_text() and "insertAdjacentHTML" not in asset.read_text()


@pytest.mark.parametrize(
    "part", ["run.json", "documents", "annotations", "selection", "heads", "labels", "quarantine", "training", "shards"]
)
def test_a_part_that_is_missing_is_named_and_costs_only_its_panel(run: Path, tmp_path: Path, part: str) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial)
    shutil.rmtree(partial / part) if (partial / part).is_dir() else (partial / part).unlink()
    data = inlined(build(partial).read_text(encoding="utf-8"))
    assert not [panel for panel in data.values() if "error" in panel]
    missing = [panel for panel in data.values() if "missing" in panel]
    assert all(panel["made_by"] for panel in missing)
    assert missing or part == "quarantine"  # whose counts stand in run.json too


def test_the_folder_of_one_training_has_its_page_too(run: Path, tmp_path: Path) -> None:
    data = inlined(build(run / "training" / "filtered", tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [one["name"] for one in data["training"]["runs"]] == ["filtered"]
    assert data["overview"]["status"] == "done" and "missing" in data["funnel"]


def test_an_empty_folder_says_what_makes_each_part(tmp_path: Path) -> None:
    data = inlined(build(tmp_path).read_text(encoding="utf-8"))
    assert data["funnel"] == {"missing": "selection/funnel.json", "made_by": "the select stage"}
    assert all("missing" in panel for name, panel in data.items() if name not in ("overview", "answers"))
    with pytest.raises(UsageError, match="no such run folder"):
        build(tmp_path / "nowhere")


def test_a_stage_that_is_half_done_shows_what_it_has(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial)
    (partial / "annotations/heuristics/part-00001.parquet").unlink()
    columns = {row["column"]: row for row in collect(partial).measures["columns"]}
    assert columns["words"]["measured"] == pytest.approx(2 / 3, abs=0.01)


def test_broken_files_are_named_and_cost_only_their_panel(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial)
    (partial / "selection/funnel.json").write_text("{", encoding="utf-8")
    (partial / "heads/code/metrics.json").write_text('{"splits": 1}', encoding="utf-8")
    (partial / "thresholds/calibration.json").write_text('{"groups": []}', encoding="utf-8")
    (partial / "comparison/comparison.json").write_text('{"sets": [{}]}', encoding="utf-8")
    short = pq.read_table(partial / "annotations/near/part-00001.parquet").slice(5)
    pq.write_table(short, partial / "annotations/near/part-00001.parquet")
    data = collect(partial)
    assert "funnel.json: not JSON" in data.funnel["error"] and "a_bits_per_byte" in data.comparison["error"]
    assert "995 rows beside 1000 documents" in data.duplicates["error"]
    assert "code/metrics.json: no splits" in data.heads["error"]
    assert data.overview["documents"] == 3000 and "heads" in data.scores and not data.scores["calibrated"]
    render(data)


def test_a_corrupt_parquet_file_does_not_hide_the_rest(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial)
    for name in ("documents", "selection", "labels/grades", "annotations/exact"):
        path = partial / name / "part-00000.parquet"
        path.write_bytes(path.read_bytes()[:100])
        data = inlined(build(partial).read_text(encoding="utf-8"))
        assert "rules" in data["funnel"] and "sets" in data["comparison"]
        assert any("error" in panel for panel in data.values())
        shutil.copy(run / name / "part-00000.parquet", path)
