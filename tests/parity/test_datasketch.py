"""Signatures and bands against datasketch 2.0: the same hash values, the same candidates, and found as theory says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gristmill.base.files import write_json
from gristmill.datapipe.dedup.index import SignatureIndex
from gristmill.datapipe.dedup.index_writer import build
from gristmill.datapipe.dedup.minhash import NEVER, MinHashConfig, band_keys, bands_for, has_words, signatures
from gristmill.datapipe.stages.duplicates import Sketch
from gristmill.datapipe.text.features import Features, featurise
from gristmill.datapipe.text.hashing import BASE

CONFIG = MinHashConfig()
THRESHOLD = 0.7
BANDS = bands_for(THRESHOLD, CONFIG.permutations)
WORDS = 1 << 64


def same(value: int) -> int:
    """datasketch's hash function, for what is hashed already."""
    return value


def shingles(features: Features, document: int, ngram: int) -> set[int]:
    """The 32-bit hashes of a document's word n-grams, in plain Python."""
    start, end = features.folded.offsets[document : document + 2].tolist()
    words = features.folded.hashes[start:end].tolist()
    found = set()
    for at in range(max(1, len(words) - ngram + 1) if words else 0):
        value = 0
        for word in words[at : at + ngram]:
            value = (value * BASE + word) % WORDS
        for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = ((value ^ value >> 33) * multiplier) % WORDS
        found.add((value ^ value >> 33) >> 32)
    return found


@pytest.mark.parametrize("config", [CONFIG, MinHashConfig(ngram=3, permutations=128, seed=42)])
def test_signatures_are_those_of_datasketch(config: MinHashConfig) -> None:
    texts = ["", "?!", "one", "One two, THREE four", "a b c d e f g " * 9, "漢字かな交じり文です", "Ünïcode wörds " * 4]
    texts += [" ".join(words) for words in np.random.default_rng(0).integers(0, 99, (40, 60)).astype(str)]
    features = featurise(pa.array(texts))
    for document, row in enumerate(signatures(features, config)):
        peer = MinHash(config.permutations, config.seed, hashfunc=same, scheme="affine32")
        peer.update_batch(shingles(features, document, config.ngram))
        assert (row == peer.hashvalues).all() and row.dtype == peer.hashvalues.dtype
        assert peer.is_empty() == (row == NEVER).all()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("permutations", [64, 112])
def test_bands_are_those_that_datasketch_chooses(threshold: float, permutations: int) -> None:
    bands = bands_for(threshold, permutations)
    peer = MinHashLSH(threshold, permutations, weights=(0.1, 0.9))  # a false negative costs more: it is found no more
    assert (bands.bands, bands.rows) == (peer.b, peer.r)


def corpus() -> list[str]:
    """5,000 texts: 1,500 pairs more or less alike, strangers that share a boilerplate, short ones and empty ones."""
    generator = np.random.default_rng(5)

    def words(count: int) -> list[str]:
        """Frequent and rare ones, as in any text."""
        return [f"w{word}" for word in np.minimum(generator.zipf(1.3, count), 50_000)]

    texts = []
    for similar in generator.uniform(0.45, 1.0, 1500):
        one = words(int(generator.integers(120, 240)))
        other = list(one)
        changed = round(len(one) * (1 - similar) / (1 + similar) / CONFIG.ngram)  # each changes five n-grams of either
        for place in generator.choice(len(one), changed, replace=False):
            other[place] = f"x{generator.integers(0, 10**6)}"
        texts += [" ".join(one), " ".join(other)]
    boilerplates = [" ".join(words(60)) for _ in range(20)]
    texts += [f"{boilerplates[number % 20]} {' '.join(words(80))}" for number in range(1400)]
    texts += [" ".join(words(int(count))) for count in generator.integers(0, 30, 600)]
    return texts


def jaccards(texts: list[str]) -> dict[tuple[int, int], float]:
    """The Jaccard similarity of every pair that shares an n-gram."""
    numbers: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for document, text in enumerate(texts):
        words = text.split()
        ngrams = {tuple(words[at : at + CONFIG.ngram]) for at in range(max(1, len(words) - CONFIG.ngram + 1))}
        ngrams -= {()}
        columns += [numbers.setdefault(ngram, len(numbers)) for ngram in ngrams]
        rows += [document] * len(ngrams)
    sets = csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(texts), len(numbers)))
    sizes, common = sets.sum(axis=1), (sets @ sets.T).tocoo()
    pairs = zip(common.row.tolist(), common.col.tolist(), common.data.tolist(), strict=True)
    return {(a, b): both / (sizes[a] + sizes[b] - both) for a, b, both in pairs if a < b}


def candidates(signature: NDArray[np.uint32]) -> set[tuple[int, int]]:
    """Pairs that share the key of a band."""
    found: set[tuple[int, int]] = set()
    usable = has_words(signature)
    for keys in band_keys(signature, BANDS).T:
        buckets: dict[int, list[int]] = {}
        for document in np.flatnonzero(usable):
            buckets.setdefault(int(keys[document]), []).append(int(document))
        found |= {(a, b) for bucket in buckets.values() for a in bucket for b in bucket if a < b}
    return found


def test_candidates_and_found_pairs_against_datasketch_and_brute_force() -> None:
    texts = corpus()
    signature = signatures(featurise(pa.array(texts)), CONFIG)
    ours = candidates(signature)
    lsh = MinHashLSH(num_perm=CONFIG.permutations, params=(BANDS.bands, BANDS.rows))
    peers = [MinHash(hashvalues=row, seed=CONFIG.seed, scheme="affine32") for row in signature]
    for document, peer in enumerate(peers):
        if not peer.is_empty():
            lsh.insert(document, peer)
    theirs = {(a, b) for a in lsh.keys for b in lsh.query(peers[a]) if a < b}
    assert ours == theirs

    true = jaccards(texts)
    planted = np.array([true.get((document, document + 1), 0.0) for document in range(0, 3000, 2)])
    became = np.array([(document, document + 1) in ours for document in range(0, 3000, 2)])
    for low in np.arange(0.45, 1.0, 0.1):  # as often as the S-curve says, within four standard deviations
        here = (planted >= low) & (planted < low + 0.1)
        chance = np.asarray(BANDS.chance(planted[here]))
        assert here.sum() > 50
        assert abs(became[here].sum() - chance.sum()) <= 4 * np.sqrt((chance * (1 - chance)).sum()) + 1
    similarity = {(a, b): float((signature[a] == signature[b]).mean()) for a, b in ours}
    error = np.array([similarity[pair] - true.get(pair, 0.0) for pair in ours])
    assert np.sqrt((error**2).mean()) < 0.06  # sqrt(J (1 - J) / 112) is at most 0.047; candidates err upwards
    found = {pair for pair in ours if similarity[pair] >= THRESHOLD}
    alike = {pair for pair, jaccard in true.items() if jaccard >= 0.85}
    assert len(found & alike) / len(alike) > 0.99
    assert min(true.get(pair, 0.0) for pair in found) > 0.5  # strangers with one boilerplate are no duplicates
    assert sum(true[pair] >= THRESHOLD for pair in found) / len(found) > 0.85


def test_a_saved_index_is_read_by_datasketch(tmp_path: Path) -> None:
    texts = [text for text in corpus()[::7] if text]
    folders = {"documents": "documents", "sketch": "annotations/sketch", "selection": "selection"}
    sketch = Sketch(CONFIG).annotate(pa.table({"text": texts}), {})
    kept = {"id": [f"d{row}" for row in range(len(texts))], "keep": [True] * len(texts)}
    tables = {
        "documents": pa.table({"id": kept["id"]}),
        "sketch": sketch,
        "selection": pa.table({"keep": kept["keep"]}),
    }
    for name, folder in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(tables[name], tmp_path / folder / "part-0.parquet")
    write_json(tmp_path / "ledger" / "outputs.json", folders)
    build([tmp_path], tmp_path / "index")

    index = SignatureIndex.open(tmp_path / "index")
    lsh = MinHashLSH(num_perm=index.recipe.minhash.permutations, params=(index.bands.bands, index.bands.rows))
    for entry, row in enumerate(index.signatures):
        lsh.insert(entry, MinHash(hashvalues=row, seed=index.recipe.minhash.seed, scheme=index.recipe.scheme))
    queries = [text.replace(" w1 ", " w0 ", number % 9) for number, text in enumerate(texts)]
    features = featurise(pa.array(queries))
    unknown = np.zeros((len(queries), 2), np.uint64)  # so that copies, too, are found by their bands
    entries, similarities = index.lookup(signatures(features, CONFIG), unknown, THRESHOLD)
    for document, (entry, similarity) in enumerate(zip(entries.tolist(), similarities, strict=True)):
        peer = MinHash(index.recipe.minhash.permutations, index.recipe.minhash.seed, hashfunc=same, scheme="affine32")
        peer.update_batch(shingles(features, document, index.recipe.minhash.ngram))
        alike = {
            other: peer.jaccard(MinHash(hashvalues=index.signatures[other], seed=1, scheme="affine32"))
            for other in sorted(int(str(key)) for key in lsh.query(peer))
        }
        best = max(alike, key=alike.__getitem__, default=-1)
        if best >= 0 and alike[best] >= THRESHOLD:
            assert (entry, similarity) == (best, np.float32(alike[best]))
        else:
            assert entry == -1 and np.isnan(similarity)
    assert (similarities < 1).mean() > 0.3 and (similarities == 1).mean() > 0.05 and (entries < 0).mean() > 0.03
