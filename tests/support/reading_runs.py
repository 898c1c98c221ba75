"""A small run folder for the reader: known texts, spans, clusters, matches, and a policy that datapipe applied."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.support.hostile_texts import column_of

from gristmill.datapipe.policy import Bounds, Edit, Policy, Rule, as_json, decide

SPANS = pa.list_(pa.int32())
SOURCES = ("web", "code", "papers")
POLICY = Policy(
    "reading",
    (
        Rule("contaminated", "contamination.score", max=0.79),
        Rule("words", "heuristics.words", min=20.0, max=400.0),
        Rule("share", "heuristics.share", max=0.2, sources={"code": Bounds(max=0.3), "papers": Bounds()}),
        Rule("language", "language.label", allowed=("en", "fr"), missing="keep"),
        Rule("exact_duplicate", "exact", keep="first"),
        Rule("near_duplicate", "near", keep="longest"),
        Rule("quality", "scores.quality", min=0.4),
    ),
    (Edit("pii.email", "<EMAIL>"), Edit("paragraphs.cut", "", ("web",))),
)
LETTERS = "añ漢🌾 "  # of one to four bytes


def make(
    run: Path, documents: int = 300, parts: int = 3, seed: int = 0, ids: Sequence[str] = (), texts: Sequence[str] = ()
) -> Path:
    """The columns are drawn, the selection is what datapipe.policy.decide() makes of them."""
    draw = np.random.default_rng(seed)
    source = np.array(SOURCES)[draw.choice(3, documents, p=[0.5, 0.3, 0.2])]
    written = [texts[row] if row < len(texts) else _text(draw, row) for row in range(documents)]
    sizes = [len(text.encode()) for text in written]
    label = draw.choice(np.array(["en", "fr", "de", None], object), documents, p=[0.7, 0.15, 0.1, 0.05])
    quality = draw.normal(0.55, 0.15, documents).astype(np.float32)
    exact, near = _clusters(draw, documents, 0.1), _clusters(draw, documents, 0.2)
    score = np.where(draw.random(documents) < 0.9, 0, draw.random(documents)).astype(np.float32)
    columns: dict[str, dict[str, Any]] = {
        "documents": {
            "id": [ids[row] if row < len(ids) else f"doc-{row:05d}" for row in range(documents)],
            "text": written, "source": source, "url": [None] * documents,
            "created": [f"2026-01-{1 + row % 28:02d}" for row in range(documents)], "meta": ['{"a": 1}'] * documents,
            "file": [f"{name}.jsonl" for name in source], "row": np.arange(documents),
        },
        "annotations/heuristics": {
            "words": draw.integers(5, 500, documents).astype(np.int32),
            "characters": np.array([len(text) for text in written], np.int32),
            "share": draw.choice(np.array([0, 0.1, 0.2, 0.3, 0.4], np.float32), documents),
        },
        "annotations/language": {"label": pa.array(label, pa.string()), "score": draw.random(documents)},
        "annotations/exact": {"cluster": exact, "size": _sizes(exact)},
        "annotations/near": {
            "cluster": near, "size": _sizes(near), "similarity": draw.random(documents).astype(np.float32),
        },
        "annotations/pii": {"email": pa.array([_spans(draw, text) for text in written], SPANS)},
        "annotations/paragraphs": {
            "cut": pa.array([_spans(draw, text) for text in written], SPANS),
            "number": draw.integers(0, 3, documents).astype(np.int32),
            "share": pa.array(draw.random(documents).astype(np.float32), mask=draw.random(documents) < 0.2),
        },
        "annotations/contamination": {
            "score": score, "ngram_13": (score * (score > 0.6)).astype(np.float32),
            "ngram_8": (score / 2).astype(np.float32),
            "items": (score >= 0.5).astype(np.int32),
            "set": pa.array([None if value == 0 else f"set{row % 2}" for row, value in enumerate(score)], pa.string()),
            "item": pa.array([None if value == 0 else f"item/{row}" for row, value in enumerate(score)], pa.string()),
            "spans": pa.array([[7, 9] if one >= 0.5 and many > 9 else [] for many, one in zip(sizes, score)], SPANS),
            "spans_13": pa.array([[]] * documents, SPANS),
        },
        "annotations/scores": {"quality": pa.array(quality, mask=draw.random(documents) < 0.1)},
        "annotations/tokens": {"count": np.array(sizes, np.int32) // 3 + 1, "bytes": np.array(sizes)},
    }  # fmt: skip
    tables = {folder: pa.table(one) for folder, one in columns.items()}

    def column(annotation: str, name: str) -> pa.ChunkedArray:
        return tables[annotation if annotation == "documents" else f"annotations/{annotation}"][name]

    decision = decide(POLICY, source.astype(str), column, lambda name, source: None)
    reasons = [None if code < 0 else POLICY.rule[code].name for code in decision.reason.tolist()]
    keep = decision.reason < 0
    tables["selection"] = pa.table(
        {"keep": keep, "reason": pa.array(reasons, pa.string()), "weight": keep.astype(np.float32)}
    )
    bounds = np.linspace(0, documents, parts + 1).astype(int)
    for folder, table in tables.items():
        (run / folder).mkdir(parents=True)
        for index, (low, high) in enumerate(itertools.pairwise(bounds)):
            pq.write_table(table.slice(low, high - low), run / folder / f"part-{index:05d}.parquet", row_group_size=40)
    (run / "selection/policy.json").write_text(json.dumps(as_json(POLICY, decision)))
    (run / "run.json").write_text(json.dumps({"name": "reading", "status": "done", "nodes": []}))
    _funnel(run, source, tables["annotations/tokens"]["count"].to_numpy(), decision.reason)
    return run


ATTACKS = (
    "</script><script>window.attacked = 1; alert(1)</script>",
    "<img src=x onerror='window.attacked = 1; alert(1)'><svg onload=alert(1)><style>body { display: none }</style>",
    "<a href='javascript:alert(1)'>here</a> <iframe srcdoc='<script>alert(1)</script>'></iframe> <!-- <script> ",
    "{{data}} ${alert(1)} {{constructor.constructor('alert(1)')()}} <%= 7 * 7 %> \\u003cscript\\u003e",
    '{"documents": [], "error": "not data", "__proto__": {"attacked": 1}}',
    "pay \u202eesrever\u202c to b\u200bank\x1b[31m\x1b]8;;http://x\x07 \u2066\u2069 \u2028 \u2029 \ufeff \x00 \x7f",
    "Z" + "\u0301\u0489\u20dd" * 1_500,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff \ue000 \U000e0041\U000e0042",
    "=HYPERLINK(1)\t+1\t@x",
    "__proto__", "constructor", "hasOwnProperty", "",
)  # fmt: skip
"""Texts, ids and names that would be more than text on a page that is careless."""
BROKEN = (b"half a pair \xed\xa0\x80 <b>and</b> \xff\xfe more \xf4\x90\x80\x80", b"\xc3", b"\x00" * 50, b"a\xe2\x80 b")
"""Bytes that are no UTF-8, which Parquet holds all the same."""


def make_hostile(run: Path, megabytes: int = 10) -> Path:
    """A run in which texts, ids, sources, labels, columns, rules, sets and items attack; one is a very long line."""
    texts = [*ATTACKS, *(f"{attack} " * 3 for attack in ATTACKS), "<b>x" * (megabytes * 250_000)]
    make(run, 60, 2, ids=ATTACKS, texts=texts)
    attack = [ATTACKS[row % len(ATTACKS)] for row in range(60)]
    for number, path in enumerate(sorted((run / "documents").glob("*.parquet"))):
        old = pq.read_table(path)
        blobs = [text.encode() for text in old["text"].to_pylist()]
        if number == 1:
            blobs[-len(BROKEN) :] = BROKEN
        mine = attack[number * 30 : number * 30 + len(old)]
        _replace(path, old, source=mine, url=mine, meta=mine, file=mine, text=column_of(blobs))
        _replace(run / "annotations/language" / path.name, label=mine)
        _replace(run / "annotations/contamination" / path.name, set=mine, item=mine, score=np.ones(30, np.float32))
        own = {name or "-": np.arange(30.0) for name in ATTACKS if "\0" not in name}
        pq.write_table(pa.table(own), _folder(run / "annotations" / "<img src=x onerror=alert(1)>") / path.name)
        reasons = [ATTACKS[row % 4] if row % 3 else None for row in range(30)]
        _replace(run / "selection" / path.name, keep=[reason is None for reason in reasons], reason=reasons)
    bounds = {"min": 400.0, "max": None, "allowed": []}
    listed = [
        {"name": name, "column": "heuristics.words", "keep": None, "missing": "drop", "sources": {name: bounds}}
        for name in ATTACKS[:4]
    ]
    edits = [{"column": "pii.email", "replace": ATTACKS[1], "sources": []}]
    written = {"name": ATTACKS[0], "rule": [{**one, **bounds} for one in listed], "edit": edits, "measure": {}}
    policy = {"name": ATTACKS[0], "rules": listed, "policy": written}
    (run / "selection/policy.json").write_text(json.dumps(policy))
    left = [
        {"rule": rule, "source": source, "documents": 60 - at, "tokens": 60}
        for at, rule in enumerate(["(all)", *ATTACKS[:4]])
        for source in ATTACKS[:5]
    ]
    (run / "selection/funnel.json").write_text(json.dumps({"rules": list(ATTACKS[:4]), "rows": left}))
    items = [{"set": one, "item": one, "texts": {"question": one, "answer": one, "passage": one}} for one in ATTACKS]
    (_folder(run / "contamination") / "report.json").write_text(json.dumps({"matches": items}))
    return run


def _replace(path: Path, old: pa.Table | None = None, **columns: Any) -> None:
    new = pq.read_table(path) if old is None else old
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        new = new.set_column(new.column_names.index(name), name, array)
    pq.write_table(new, path)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def table(run: Path, folder: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / folder).glob("part-*.parquet")))


def _text(draw: np.random.Generator, row: int) -> str:
    words = ["".join(draw.choice(list(LETTERS[:4]), draw.integers(1, 9))) for _ in range(int(draw.integers(1, 60)))]
    return f"Number {row} " + " ".join(words)


def _spans(draw: np.random.Generator, text: str) -> list[int]:
    """A few disjoint spans on the borders of characters, in bytes; mostly none."""
    if draw.random() < 0.5:
        return []
    borders = [0, *itertools.accumulate(len(letter.encode()) for letter in text[:5_000])]
    count = min(4, len(borders) // 2 * 2)
    return sorted(int(at) for at in draw.choice(borders, count, replace=False))


def _clusters(draw: np.random.Generator, documents: int, share: float) -> np.ndarray:
    """The first row of each document's cluster."""
    name = np.where(
        draw.random(documents) < share,
        draw.integers(0, documents // 20 + 1, documents),
        np.arange(documents) + documents,
    )
    _, first, inverse = np.unique(name, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _sizes(cluster: np.ndarray) -> np.ndarray:
    return np.bincount(cluster)[cluster].astype(np.int32)


def _funnel(run: Path, source: np.ndarray, tokens: np.ndarray, reason: np.ndarray) -> None:
    from gristmill.datapipe.select import funnel

    (run / "selection/funnel.json").write_text(json.dumps(funnel(POLICY, source.astype(str), tokens, reason)))
