"""Near-duplicates: signatures against three peers, candidates against theory, and the whole search as documents double.

./dev bench dedup                  five rounds over 12 MB; 100,000 planted documents; up to a million documents
./dev bench dedup --quick          one round over 1 MB; fewer documents
./dev bench dedup --corpus DIR     documents of DIR/*.jsonl.gz (`text`, and `lang` where known) instead of the demo's

Signatures: 112 permutations of word 5-grams from English text, one core, CPU time. datatrove splits words by spaCy, its
default; rensa and datasketch get the words of datatrove's own simplification, split at spaces, which is far faster.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from _dedup_contamination import decontamination
from _dedup_scale import Measured, measure
from _dedup_text import NGRAM, fragments, planted_pairs, vocabulary, write_corpus
from _filters_text import gather
from _results import Row, against, publish, row
from gristmill.base import cli
from gristmill.datapipe.dedup.clusters import candidate_pairs
from gristmill.datapipe.dedup.minhash import band_keys, signatures
from gristmill.datapipe.stages.duplicates import NearConfig, Sketch
from gristmill.datapipe.text.features import featurise

MEGA = 1e6
NEAR = NearConfig()
PERMUTATIONS = NEAR.minhash.permutations
STEP, ENOUGH = 0.05, 500
"""Width of the classes of Jaccard similarity, and the least number of pairs in one: a standard deviation of 2.2 points
at most."""
Signer = Callable[[list[str]], object]


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round, over 1 MB; 20,000 planted documents; from 5,000 to 40,000 documents."""
    corpus: Path | None = None
    """A folder of *.jsonl.gz; without it, the demo's text from packages."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench dedup", __doc__ or "")
    pa.set_cpu_count(1)
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's
    rounds, size = (1, 1 * MEGA) if config.quick else (5, 12 * MEGA)
    planted, least = (20_000, 5_000) if config.quick else (100_000, 125_000)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = gather(config.corpus, size, scratch)
        slices = [texts[number::rounds] for number in range(rounds)]
        speed, keys = compare(slices)
        quality, errors = against_theory(vocabulary(texts), planted)
        scale, growth = doubling(texts, least, scratch)
        contamination = row("decontamination", [decontamination(each) for each in slices], "us of a core per document")
    inputs = {
        "corpus": str(config.corpus.name if config.corpus else "demo"),
        "documents": len(texts),
        "megabytes": sum(len(text.encode()) for text in texts) / MEGA,
        "rounds": rounds,
        "planted_documents": planted,
        "permutations": PERMUTATIONS,
        "bands": [NEAR.banding.bands, NEAR.banding.rows],
    }
    keys |= errors | growth | {"decontamination_us_per_document": contamination.median}
    publish("dedup", inputs, [*speed, *quality, *scale, contamination], keys)
    return 0


# Speed ----------------------------------------------------------------------------------------------------------------


def compare(slices: Sequence[list[str]]) -> tuple[list[Row], dict[str, float]]:
    """Text to signatures, ours and each peer's, over each slice."""
    sketch = Sketch(NEAR.minhash)
    peers: dict[str, Signer] = {"datatrove": _datatrove(), "rensa": _rensa(), "datasketch": _datasketch()}
    for sign in peers.values():
        sign(slices[0][:20])
    sketch.annotate(pa.table({"text": slices[0][:20]}), {})
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    for texts in slices:
        megabytes, table = sum(len(text.encode()) for text in texts) / MEGA, pa.table({"text": texts})
        ours.append(megabytes / _seconds(lambda table=table: sketch.annotate(table, {})))
        for name, sign in peers.items():
            theirs[name].append(megabytes / _seconds(lambda sign=sign, texts=texts: sign(texts)))
    notes = {"datatrove": ", spaCy", "rensa": ", from strings", "datasketch": ", bulk"}
    rows = [
        against(f"signatures, {name}", ours, theirs[name], f"{name} {_version(name)}{notes[name]}", "MB/s")
        for name in peers
    ]
    return rows, {f"minhash_vs_{name}": r.median for name, r in zip(peers, rows, strict=True)}


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _datatrove() -> Signer:
    """Shingles and signatures as its first step makes them; without writing or sorting them."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    step = MinhashDedupSignature(tempfile.gettempdir(), MinhashConfig(n_grams=NEAR.minhash.ngram))
    assert step.num_hashes == PERMUTATIONS
    hashed = step._hash_func
    # Its default hash gives xxhash a string, which xxhash 4 refuses: here it gets the bytes that it took before.
    step._hash_func = lambda text: hashed(text.encode())

    def sign(texts: list[str]) -> object:
        return [step.get_signature(shingles) for text in texts if (shingles := step.get_shingles(text)).size]

    return sign


def _rensa() -> Signer:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - compiled, without stubs

    def sign(texts: list[str]) -> object:
        return RMinHash.digest_matrix_from_token_sets(map(_ngrams, texts), PERMUTATIONS, NEAR.minhash.seed)

    return sign


def _datasketch() -> Signer:
    from datasketch import MinHash

    def sign(texts: list[str]) -> object:
        sets = ([ngram.encode() for ngram in _ngrams(text)] for text in texts)
        return MinHash.bulk(sets, num_perm=PERMUTATIONS, seed=NEAR.minhash.seed)

    return sign


def _ngrams(text: str) -> list[str]:
    from datatrove.utils.text import simplify_text

    words = simplify_text(text).split()
    return [" ".join(words[at : at + NGRAM]) for at in range(len(words) - NGRAM + 1)]


# Candidates -----------------------------------------------------------------------------------------------------------


def against_theory(words: pa.Array, documents: int) -> tuple[list[Row], dict[str, float]]:
    """Which planted pairs become candidates, and what else does, against the S-curve of the bands."""
    pieces = list(planted_pairs(words, documents // 2))
    sides = [[signatures(featurise(side), NEAR.minhash) for side in (piece.left, piece.right)] for piece in pieces]
    keys = np.concatenate([band_keys(np.concatenate(side), NEAR.banding) for side in zip(*sides, strict=True)])
    jaccard = np.concatenate([piece.jaccard for piece in pieces])
    first, second = candidate_pairs(keys.reshape(-1), np.repeat(np.arange(len(keys)), keys.shape[1]))
    planted = second - first == len(jaccard)  # a document and its second version
    became = np.zeros(len(jaccard), bool)
    became[first[planted]] = True
    chance = np.asarray(NEAR.banding.chance(jaccard))
    recall, worst = _by_likeness(jaccard, became, chance)
    above = jaccard >= NEAR.threshold
    precision, expected = float(became[above].sum() / len(first)), float(chance[above].sum() / chance.sum())
    rows = [
        *recall,
        row(f"candidates with J >= {NEAR.threshold}", [100 * precision], "%"),
        row("  in theory", [100 * expected], "%"),
        row("candidates that nobody planted", [float((~planted).sum())], "pairs"),
    ]
    return rows, {"recall_error": worst, "precision_error": 100 * abs(precision - expected)}


def _by_likeness(
    jaccard: NDArray[np.float64], became: NDArray[np.bool_], chance: NDArray[np.float64]
) -> tuple[list[Row], float]:
    rows, worst = [], 0.0
    for low in np.arange(0.5, 0.95 - STEP / 2, STEP):
        here = (jaccard >= low) & (jaccard < low + STEP)
        if here.sum() >= ENOUGH:
            found, expected = 100 * float(became[here].mean()), 100 * float(chance[here].mean())
            worst = max(worst, abs(found - expected))
            rows.append(row(f"pairs of J {low:.2f} to {low + STEP:.2f} found ({expected:.1f} in theory)", [found], "%"))
    return rows, worst


# The whole search -----------------------------------------------------------------------------------------------------


def doubling(texts: list[str], least: int, scratch: Path) -> tuple[list[Row], dict[str, float]]:
    """Time and memory of the search over `least` documents, and over twice, four and eight times as many."""
    copies = write_corpus(fragments(texts), scratch / "corpus", 8, least)
    files = sorted((scratch / "corpus").glob("*.parquet"))
    rows, done = [], list[Measured]()
    for count in (1, 2, 4, 8):
        found = measure(files[:count], scratch)
        done.append(found)
        name, planted = f"{count * least:,} documents", sum(copies[:count]) - 1
        rows += [
            row(f"search of {name}", [found.seconds], "s"),
            row("  exact duplicates found", [float(found.duplicates["exact"])], f"of {planted:,} planted"),
            row("  with near ones", [float(found.duplicates["near"])], "documents"),
            row("  peak memory of a worker", [found.worker_gb], "GB"),
            row("  peak memory of the driver", [found.driver_gb], "GB"),
        ]
    ratios = [after.seconds / before.seconds for before, after in pairwise(done)]
    rows.append(row("time as documents double", ratios, "x"))
    return rows, {"time_doubling": max(ratios), "worker_gb": max(done[-1].worker_gb, done[-1].driver_gb)}


if __name__ == "__main__":
    sys.exit(cli.guarded("bench dedup", lambda: main(sys.argv[1:])))
