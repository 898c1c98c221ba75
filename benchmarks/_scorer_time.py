"""What running a backbone costs for bench scorer: cut at two taps against whole, its exactness, padding."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _results import Row, against, row
from _scorer_text import RUBRIC, damaged_documents
from gristmill.scorer.backbone.staged import BackboneIdentity, StagedBackbone, identify
from gristmill.scorer.backbone.states import Tokens, batches
from gristmill.scorer.backbone.tiny import STAGED, tiny_model
from gristmill.scorer.config import ScoringConfig, TrainConfig
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.calibration import ALL
from gristmill.scorer.heads.modules import AttentionPool
from gristmill.scorer.heads.selftest import SelfTest
from gristmill.scorer.scoring.scorer import Scorer

EXITS, TIMED_TAPS, ARRIVAL = 0.6, (12, 30), 8
WINDOW = 1024  # documents packed by length together


# Time -----------------------------------------------------------------------------------------------------------------


def timing(model: Path, texts: list[str], rounds: int) -> tuple[list[Row], dict[str, float]]:
    torch.set_num_threads(1)
    identity = identify(model)
    scorer = _random_scorer(model, identity)
    peers = {
        "whole model": _whole(model, "AutoModel"), "whole model with logits": _whole(model, "AutoModelForCausalLM"),
        "probe's blocks, then all again": _again(model, texts),
    }  # fmt: skip
    scorer.score(texts[:8])
    mine: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        mine.append(_seconds(lambda: scorer.score(texts)))
        for name, run in peers.items():
            theirs[name].append(_seconds(lambda run=run: run(texts)))
    rate = len(texts)
    rows = [
        against(f"scoring, against the {name}", [rate / s for s in mine], [rate / s for s in theirs[name]],
                "Hugging Face, order of arrival", "documents/CPU s")
        for name in peers
    ]  # fmt: skip
    done = scorer.counters
    rows += [
        row("documents that exited", [done.exits / done.documents], "share"),
        row("documents through a block, over those needed", [forwards(scorer, texts)], "x"),
        row(
            "tokens through a block, padding included, over those needed",
            [done.block_tokens / done.block_tokens_needed],
            "x",
        ),
    ]
    return rows, {"staged_vs_hf": rows[0].median, "staged_vs_causal_lm": rows[1].median}


def forwards(scorer: Scorer, texts: list[str]) -> float:
    """Rows that blocks were called with, over N k + survivors (J - k); every text is one window."""
    rows = [0]
    hooks = [
        block.register_forward_pre_hook(lambda _block, given: rows.__setitem__(0, rows[0] + len(given[0])))
        for block in scorer.backbone.model.layers
    ]
    table = scorer.score(texts)
    for hook in hooks:
        hook.remove()
    k, J = TIMED_TAPS
    survivors = len(texts) - int(table["exit"].to_numpy(zero_copy_only=False).sum())
    return rows[0] / (len(texts) * k + survivors * (J - k))


def _random_scorer(model: Path, identity: BackboneIdentity) -> Scorer:
    """Heads that were never trained cost as much as others; tau_drop is set so that EXITS of the documents exit."""
    backbone = StagedBackbone.load(model, TIMED_TAPS, "bfloat16", 1, identity)
    torch.manual_seed(0)
    probe, judge = (AttentionPool(identity.width, 1).eval().requires_grad_(False) for _ in range(2))
    training = TrainConfig(taps=TIMED_TAPS, batch_tokens=2048, judge_kind="attention")
    bundle = Bundle(
        identity, training, RUBRIC, probe, judge, SelfTest([], torch.empty(0), torch.empty(0), None), "", {}
    )
    tokens = Tokens(model, identity.first_token, training.window_tokens, training.windows)
    quality = Scorer(bundle, backbone, tokens).score(long_texts(None), early_exit=False)["probe"].to_numpy()
    group = {"tau_drop": float(np.quantile(quality, EXITS))}
    bundle = replace(bundle, calibration={"groups": {ALL: group}})
    return Scorer(bundle, backbone, tokens, ScoringConfig(shadow=0))


def _whole(model: Path, kind: str, **config: int) -> Callable[[list[str]], None]:
    """Batches of ARRIVAL documents in the order in which they came, padded to the longest."""
    import transformers

    network = getattr(transformers, kind).from_pretrained(
        model, dtype=torch.bfloat16, local_files_only=True, **config
    ).eval()  # fmt: skip
    tokenizer = _tokenizer(model)

    @torch.inference_mode()
    def run(texts: list[str]) -> None:
        for start in range(0, len(texts), ARRIVAL):
            batch = tokenizer(texts[start : start + ARRIVAL], padding=True, truncation=True, max_length=512,
                              return_tensors="pt")  # fmt: skip
            network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    return run


def _again(model: Path, texts: list[str]) -> Callable[[list[str]], None]:
    """The probe's blocks for all, then the whole model from the tokens for those that go on."""
    first, second = _whole(model, "AutoModel", num_hidden_layers=TIMED_TAPS[0]), _whole(model, "AutoModel")
    survive = np.random.default_rng(0).random(len(texts)).argsort()[: round((1 - EXITS) * len(texts))]

    def run(texts: list[str]) -> None:
        first(texts)
        second([texts[i] for i in np.sort(survive)])

    return run


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.padding_side = "right"
    return tokenizer


def _seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


# Exactness and padding ------------------------------------------------------------------------------------------------


def parity(keys: dict[str, float]) -> Row:
    """Cut and resumed against the uncut model, in float32, on padded batches."""
    found = []
    generator = np.random.default_rng(0)
    mask_BS = (torch.arange(40)[None, :] < torch.tensor([40, 17, 29, 8])[:, None]).long()
    ids_BS = torch.from_numpy(generator.integers(3, 300, (4, 40)))
    for name in STAGED:
        identity = BackboneIdentity("tiny", name, 64, 6, 1, "none")
        backbone = StagedBackbone.from_model(tiny_model(name), identity, (2, 5))
        whole = backbone.at((2, 5), ids_BS, mask_BS)
        first, _ = backbone.first(ids_BS, mask_BS)
        if not backbone.staged:
            found.append(float("inf"))
            continue
        some, width = [1, 3], 17  # two of four go on, with less padding
        own, survivors = mask_BS.bool(), mask_BS[some, :width].bool()
        second = backbone.second(first[some, :width], mask_BS[some, :width])
        pairs = ((first[own], whole[0][own]), (second[survivors], whole[1][some, :width][survivors]))
        found += [float((cut - state).norm() / state.norm()) for cut, state in pairs]
    keys["parity_max"] = max(found)
    return row(f"cut against uncut, relative, {len(STAGED)} architectures", found, "of the state's norm")


def padding(model: Path, corpus: Path | None, keys: dict[str, float]) -> list[Row]:
    """Of batches of 16 windows packed from WINDOW documents together, at two lengths of context."""
    texts = _whole_documents(corpus)
    rows = []
    for context in (2048, 4096):
        tokens = Tokens(model, 1, context, 1)
        lengths = [len(own[0]) for own in tokens(texts) if own]
        padded = used = 0
        for start in range(0, len(lengths), WINDOW):
            chunk = lengths[start : start + WINDOW]
            for batch in batches(chunk, 16 * context):
                padded += len(batch) * max(chunk[i] for i in batch)
                used += sum(chunk[i] for i in batch)
        rows.append(row(f"padding at a context of {context:,}", [100 * (1 - used / padded)], "% of tokens"))
    keys["padding_waste_percent"] = rows[0].median
    return rows


# Text -----------------------------------------------------------------------------------------------------------------


def long_texts(corpus: Path | None) -> list[str]:
    """48 documents of 78 to 443 tokens or so, in no order."""
    documents = damaged_documents(corpus, 96, seed=1)
    lengths = np.random.default_rng(1).integers(1, 5, 48)
    sound = [d.text for d in documents]
    return ["\n".join(sound[i : i + int(n)])[: 320 * int(n)] for i, n in enumerate(lengths)]


def _whole_documents(corpus: Path | None, most: int = 2048) -> list[str]:
    """Documents as they are, of all lengths: of the corpus, or the files of installed packages."""
    if corpus is None:
        import importlib.metadata

        found = [
            Path(str(d.locate_file(f))) for d in importlib.metadata.distributions() for f in d.files or ()
            if f.name.endswith((".py", ".md", ".rst"))
        ]  # fmt: skip
        picked = np.random.default_rng(0).permutation(len(found))[: 2 * most]
        texts = [found[i].read_text(encoding="utf-8", errors="replace") for i in picked if found[i].is_file()]
    else:
        texts = []
        for path in sorted(corpus.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                texts += [json.loads(line)["text"] for _, line in zip(range(most // 4), file)]
        order = np.random.default_rng(0).permutation(len(texts))
        texts = [texts[i] for i in order]
    return [text for text in texts if text.strip()][:most]
