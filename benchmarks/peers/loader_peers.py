"""The readers that bench loader is measured against: loader_peers.py NAME FOLDER, run by benchmarks/.venv.

FOLDER has the tokens as plain files, sources.json, and gets what a peer's own format needs. Requests, one a line:
{"first": i, "count": n} reads windows i to i + n and answers their tokens and seconds; {"check": [i, ...]} answers of
each window which tokens it must hold ("pieces": [start, length] among all sources in their order) and what it holds.
"""

# pyright: reportMissingImports=false
# These libraries are in benchmarks/.venv, not in the environment that is checked.
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import time
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Reader(ABC):
    """Windows of length + 1 tokens as int64, in a shuffled order. Opened and indexed before any clock runs."""

    def __init__(self, folder: Path) -> None:
        order = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        self.folder, self.length, self.vocabulary = folder, int(order["length"]), int(order["vocabulary"])
        self.weights: dict[str, int] = order["weights"]
        self.round = int(order["round"])  # windows
        sizes = [(folder / f"{name}.ds").stat().st_size // 2 for name in self.weights]
        self.starts = dict(zip(self.weights, np.cumsum([0, *sizes]).tolist()))  # of each source among all tokens
        self.open()

    def tokens(self, source: str) -> np.ndarray:
        return np.asarray(np.memmap(self.folder / f"{source}.ds", np.uint16, "r"))

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def read(self, first: int, count: int) -> int:
        """Read windows first to first + count of this reader's order; the number of tokens read."""

    @abstractmethod
    def check(self, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(pieces that window `index` is made of, its tokens)."""


class Megatron(Reader):
    """GPTDataset.__getitem__ over one .bin/.idx of all documents; masks and positions at their cheapest: cached."""

    def open(self) -> None:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
        from megatron.core.datasets.utils import Split

        prefix = str(self.folder / "megatron")
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for name in self.weights:
            builder.add_document(self.tokens(name), np.load(self.folder / f"{name}.npy").tolist())
        builder.finalize(f"{prefix}.idx")
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=self.length,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            path_to_cache=str(self.folder / "megatron-cache"),
            tokenizer=_Vocabulary(self.vocabulary),
        )
        indexed = IndexedDataset(prefix, mmap=True)
        documents = np.arange(len(indexed), dtype=np.int32)
        self.dataset = GPTDataset(indexed, prefix, documents, None, Split.train, config)

    def read(self, first: int, count: int) -> int:
        dataset, total = self.dataset, 0
        for index in range(first, first + count):
            total += len(dataset[index]["tokens"]) + 1
        return total

    def check(self, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        dataset = self.dataset
        sample = int(dataset.shuffle_index[index])
        (begin, offset), (end, stop) = dataset.sample_index[sample].tolist(), dataset.sample_index[sample + 1].tolist()
        pieces = []
        for place in range(begin, end + 1):
            document = int(dataset.document_index[place])
            start = int(dataset.dataset.index.sequence_pointers[document]) // 2
            first = offset if place == begin else 0
            last = stop + 1 if place == end else int(dataset.dataset.sequence_lengths[document])
            pieces.append((start + first, last - first))
        item = dataset[index]
        return pieces, np.concatenate([item["tokens"].numpy()[:1], item["labels"].numpy()])


class _Vocabulary:
    """All that GPTDataset asks of a tokenizer."""

    def __init__(self, size: int) -> None:
        self.vocab_size, self.eod, self.eos, self.pad = size, 0, 0, -1
        self.unique_identifiers = {"class": type(self).__name__, "size": size}


class Grain(Reader):
    """Eight sources, each shuffled, then mixed: grain's own index arithmetic over the same memory maps as ours."""

    def open(self) -> None:
        import grain

        sources = [_Windows(self.tokens(name), self.length) for name in self.weights]
        self.parts = [grain.MapDataset.source(source).seed(1).shuffle() for source in sources]
        self.dataset = grain.MapDataset.mix(self.parts, list(self.weights.values()))

    def read(self, first: int, count: int) -> int:
        dataset, total = self.dataset, 0
        for index in range(first, first + count):
            total += len(dataset[index])
        return total

    def check(self, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        part, ordinal = self.dataset._selection_map[index]
        window = self.parts[part]._shuffled_index(ordinal)
        start = self.starts[list(self.weights)[part]] + window * self.length
        return [(start, self.length + 1)], self.dataset[index]


class _Windows:
    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.windows[index].astype(np.int64)


class Mosaicml(Reader):
    """StreamingDataset as it comes, shuffled by py1e; its samples are windows, written with MDSWriter.

    Each round is an epoch of its own, of as many windows as the round has: what its threads prepare falls into it.
    """

    batch_size = 512  # as ours; by default it prepares eight batches ahead

    def open(self) -> None:
        _skip_init("streaming")
        from streaming.base import MDSWriter, StreamingDataset

        self.places: list[int] = []
        mds = str(self.folder / type(self).__name__.lower())
        with MDSWriter(out=mds, columns={"tokens": f"ndarray:uint16:{self.length + 1}"}) as out:
            for name in self.weights:
                tokens = self.tokens(name)
                for start in range(0, len(tokens) - self.length, self.length):
                    out.write({"tokens": tokens[start : start + self.length + 1]})
                    self.places.append(self.starts[name] + start)
        self.dataset = StreamingDataset(
            local=mds,
            epoch_size=self.round,
            shuffle=True,
            shuffle_algo="py1e",
            shuffle_seed=1,
            num_canonical_nodes=1,
            batch_size=self.batch_size,
            predownload=self.ahead(),
        )

    def ahead(self) -> int | None:
        return None

    def read(self, first: int, count: int) -> int:
        return sum(len(sample["tokens"].astype(np.int64)) for sample in self.dataset)

    def check(self, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        tokens = self.dataset[index]["tokens"].astype(np.int64)
        return [(self.places[index], self.length + 1)], tokens


class MosaicmlAhead(Mosaicml):
    """The same at its best: its threads prepare all of the round at once and never wait for one another."""

    def ahead(self) -> int | None:
        return self.round


def _skip_init(package: str) -> None:
    """Let a package's parts be imported without its __init__, which wants torchvision for data sets of pictures."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    hollow = types.ModuleType(package)
    hollow.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = hollow


class Datatrove(Reader):
    """DatatroveFolderDataset over the plain files, its files and its windows in random order. It mixes nothing."""

    def open(self) -> None:
        from datatrove.utils.dataset import DatatroveFolderDataset

        self.dataset = DatatroveFolderDataset(str(self.folder), self.length, "*.ds", token_size=2, shuffle=True, seed=1)
        self.order = np.random.default_rng(1).permutation(len(self.dataset)).tolist()

    def read(self, first: int, count: int) -> int:
        dataset, total = self.dataset, 0
        for index in self.order[first : first + count]:
            total += len(dataset[index]["input_ids"])
        return total

    def check(self, index: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        tokens = self.dataset[index]["input_ids"].numpy()
        name = Path(self.dataset.files[self.dataset.current_file].file_path).stem
        window = index - self.dataset.lens[self.dataset.current_file]
        return [(self.starts[name] + window * (self.length + 1), self.length + 1)], tokens


READERS: dict[str, type[Reader]] = {
    "megatron": Megatron,
    "grain": Grain,
    "mosaicml": Mosaicml,
    "mosaicml-ahead": MosaicmlAhead,
    "datatrove": Datatrove,
}


def main(name: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not disturb the answers
    torch.set_num_threads(1)
    reader = READERS[name](folder)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _checked(reader, request["check"]) if "check" in request else _timed(reader, **request)
        print(json.dumps(answer), file=answers, flush=True)


def _timed(reader: Reader, first: int, count: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = reader.read(first, count)
    return {"tokens": tokens, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _checked(reader: Reader, indices: list[int]) -> list[dict[str, Any]]:
    found = []
    for index in indices:
        pieces, tokens = reader.check(index)
        digest = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
        found.append({"pieces": pieces, "sha256": digest, "tokens": len(tokens)})
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
