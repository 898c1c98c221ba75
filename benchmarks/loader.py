"""The loader against Megatron, grain, MosaicML Streaming and datatrove; plans, packing and the writer by themselves.

./dev bench loader                  five rounds over 1 GiB of tokens after a warm-up
./dev bench loader --quick          one round over 0.25 GiB after a warm-up
./dev bench loader --corpus DIR     real documents (DIR/*.jsonl.gz, field "text") for packing and the writer

Everyone reads windows of 2,049 tokens to int64 with one thread from files that are in the page cache. Ours are rows of
batches of 512 from eight mixed and fully shuffled sources; the peers hand out one window at a time and collate nothing.
The temporary folder needs 6 GiB (TMPDIR moves it), a quarter of that with --quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from _loader_data import LENGTH, WEIGHTS, Stream, write_dataset, write_hollow, write_plain
from _loader_text import Documents, corpus_files, fit_rows, gather, packing_fill, writer_rounds
from _peers import Peer
from _results import Row, against, publish, row
from gristmill.base import cli
from gristmill.base.errors import GristmillError
from gristmill.shards.loader import Batch, Batches
from gristmill.shards.mixture import Mixture
from gristmill.shards.order import permutation
from gristmill.shards.plan import Plan
from gristmill.shards.reader import Dataset, open_dataset
from gristmill.shards.resolve import plan

PEERS = "requirements.txt"  # read by ./dev: this bench needs the peers' environment
NAMES = {
    "megatron": "megatron-core 0.16.1 GPTDataset",
    "grain": "grain 0.2.18 mix + shuffle",
    "mosaicml": "mosaicml-streaming 0.13.0 py1e",
    "mosaicml-ahead": "mosaicml-streaming 0.13.0 py1e, all prepared ahead",
    "datatrove": "datatrove 0.10.1 DatatroveFolderDataset shuffled",
}
KEYS = ("megatron", "grain", "mosaicml", "datatrove")  # each library as it comes
BATCH = 512
FAR = 10**9  # the sequence at which a run is resumed
TRILLION = 10**12
MEGA = 1e6


@dataclass(frozen=True)
class Config:
    quick: bool = False
    """One round, over 0.25 GiB."""
    corpus: Path | None = None
    """A folder of *.jsonl.gz with documents in `text`; without it their text and lengths are made up."""

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 5

    @property
    def tokens(self) -> int:
        return 2**27 if self.quick else 2**29

    @property
    def windows(self) -> int:
        """Of each reader in each round: over half a CPU second for the slowest, and all rounds within one epoch."""
        return 2**14 if self.quick else 2**15


class Speed(NamedTuple):
    """Millions of tokens per second of CPU and of wall clock."""

    cpu: float
    wall: float


def main(arguments: list[str]) -> int:
    config = cli.parse_config(Config, arguments, "bench loader", __doc__ or "")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # before tokenizers is imported
    files = corpus_files(config.corpus)
    rows: list[Row] = []
    keys: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        _say("writing the dataset and its plain copy")
        dataset = write_dataset(folder / "dataset", config.tokens)
        write_plain(dataset, folder / "plain", config.windows)
        _say("starting the peers; each writes its own format")
        peers = [
            stack.enter_context(
                contextlib.closing(Peer("loader_peers.py", name, [folder / "plain"], folder / f"{name}.log"))
            )
            for name in NAMES
        ]
        _verify(dataset, peers)
        _readers(config, dataset, peers, rows, keys)
        stack.close()
        _resume(config, folder / "dataset", rows, keys)
        _plans(config, folder / "hollow", rows, keys)
        documents = gather(files, config.quick)
        _packing(config, documents, rows, keys)
        _writer(config, documents, folder / "written", rows, keys)
    inputs = {
        "tokens": config.tokens,
        "windows": config.windows,
        "rounds": config.rounds,
        "weights": WEIGHTS,
        "text": documents.origin,
        "text_documents": len(documents.lengths),
    }
    publish("loader", inputs, rows, keys)
    return 0


def _say(text: str) -> None:
    print(f"bench loader: {text} ...", file=sys.stderr, flush=True)


def _mixture(**changes: Any) -> Mixture:
    return replace(Mixture("blend", dict(WEIGHTS)), **changes)


def _verify(dataset: Dataset, peers: list[Peer]) -> None:
    """Nobody is timed before it has read the same tokens from the same places as our reader.

    Raises:
        GristmillError: a peer, or our own batches, that hold other tokens.
    """
    _say("comparing what everyone reads")
    stream = Stream.of(dataset)
    indices = np.random.default_rng(0).choice(int(stream.bounds[-1]) // LENGTH // 2, 64, replace=False).tolist()
    for peer in peers:
        for index, found in zip(indices, peer.ask(check=indices), strict=True):
            ours = np.concatenate([stream.read(start, length) for start, length in found["pieces"]])
            digest = hashlib.sha256(ours.astype("<i8").tobytes()).hexdigest()
            if found["tokens"] != LENGTH + 1 or digest != found["sha256"]:
                raise GristmillError(f"{peer.name} reads other tokens than ours in its window {index}")
    resolved = plan(_mixture(), dataset, LENGTH, tokens=BATCH * LENGTH)
    batch = Batches(resolved, dataset, BATCH * LENGTH, prefetch=0).batch(0)
    names = list(WEIGHTS)
    for sequence, tokens in zip(batch.sequence_B.tolist(), batch.tokens_BS):
        name, shard, start = resolved.sequence(sequence)
        before = sum(len(dataset.sources[other].split("train").shards) for other in names[: names.index(name)])
        if not np.array_equal(tokens, stream.read(int(stream.bounds[before + shard]) + start, LENGTH + 1)):
            raise GristmillError(f"our own batch holds other tokens than its plan says in sequence {sequence}")


def _readers(config: Config, dataset: Dataset, peers: list[Peer], rows: list[Row], keys: dict[str, float]) -> None:
    """All readers by turns, a round each."""
    turns = config.rounds + 1
    resolved = plan(_mixture(), dataset, LENGTH, tokens=turns * config.windows * LENGTH)
    kinds: dict[str, Callable[[Batch], int]] = {
        "to int64": lambda batch: batch.tokens_BS.size,
        "dtype kept": lambda batch: batch.tokens_BS.size,
        "to int64, with segment bounds and positions": _with_segments,
    }
    ours = {
        kind: iter(Batches(resolved, dataset, BATCH * LENGTH, prefetch=0, dtype=np.int64 if "int64" in kind else None))
        for kind in kinds
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in (*kinds, *NAMES)}
    for turn in range(turns):
        _say(f"readers, {f'round {turn} of {config.rounds}' if turn else 'warm-up'}")
        found = {kind: _read(ours[kind], use, config.windows // BATCH) for kind, use in kinds.items()}
        for peer in peers:
            answer = peer.ask(first=turn * config.windows, count=config.windows)
            if answer["tokens"] != config.windows * (LENGTH + 1):
                raise GristmillError(f"{peer.name} read {answer['tokens']:,} tokens of {config.windows:,} windows")
            found[peer.name] = Speed(answer["tokens"] / answer["cpu"] / MEGA, answer["tokens"] / answer["wall"] / MEGA)
        if turn:
            for name, speed in found.items():
                speeds[name].append(speed)
    main_kind, *other_kinds = kinds
    for clock, unit in (("cpu", "M tokens/CPU s"), ("wall", "M tokens/s")):
        mine = [getattr(speed, clock) for speed in speeds[main_kind]]
        for name, label in NAMES.items():
            theirs = [getattr(speed, clock) for speed in speeds[name]]
            rows.append(against(f"windows {main_kind} against {name} ({clock})", mine, theirs, label, unit))
            if clock == "cpu" and name in KEYS:
                keys[f"vs_{name}"] = rows[-1].median
        rows += [
            row(f"windows {kind} ({clock})", [getattr(speed, clock) for speed in speeds[kind]], unit)
            for kind in other_kinds
        ]


def _with_segments(batch: Batch) -> int:
    assert len(batch.cu_seqlens) > len(batch.tokens_BS) and batch.positions_BS.size
    return batch.tokens_BS.size


def _read(batches: Iterator[Batch], use: Callable[[Batch], int], count: int) -> Speed:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(use(next(batches)) for _ in range(count))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Speed(tokens / cpu / MEGA, tokens / wall / MEGA)


def _resume(config: Config, folder: Path, rows: list[Row], keys: dict[str, float]) -> None:
    """From nothing (dataset closed, plan not made) to the first batch at sequence 10^9, many epochs on."""
    _say("resuming at sequence 10^9")
    seconds: list[float] = []
    for turn in range(config.rounds + 1):
        # Another blend and another seed each time: nothing that was worked out before is of use.
        mixture = _mixture(weights=_fine_weights(turn), on_exhausted="repeat", seed=turn)
        started = time.perf_counter()
        dataset = open_dataset(folder)
        resolved = plan(mixture, dataset, LENGTH, tokens=2 * FAR * LENGTH)
        batch = next(iter(Batches(resolved, dataset, BATCH * LENGTH, next_sequence=FAR, prefetch=0)))
        seconds.append(time.perf_counter() - started)
        if batch.sequence_B.min() != FAR:
            raise GristmillError(f"resumed at sequence {batch.sequence_B.min():,}, not at {FAR:,}")
    rows.append(row("open, plan and first batch at sequence 10^9", seconds[1:], "s"))
    keys["resume_seconds"] = rows[-1].median


def _fine_weights(turn: int) -> dict[str, int]:
    """The blend in parts of about 10,000 without a common divisor, as computed weights are: a long table to make."""
    return {name: 100 * weight + (turn + 1 if name == "web" else 0) for name, weight in WEIGHTS.items()}


def _plans(config: Config, folder: Path, rows: list[Row], keys: dict[str, float]) -> None:
    """Opening and planning 1 T tokens. Memory is the peak that tracemalloc sees, measured apart from the clock."""
    _say("planning 1 T tokens")
    shards = write_hollow(folder, TRILLION)

    def planned(dataset: Dataset, turn: int) -> Plan:
        mixture = _mixture(weights=_fine_weights(turn), seed=turn)
        resolved = plan(mixture, dataset, LENGTH, tokens=TRILLION)
        resolved.sequences(np.arange(BATCH))
        return resolved

    opened: list[float] = []
    made: list[float] = []
    for turn in range(config.rounds + 1):
        cpu = time.process_time()
        dataset = open_dataset(folder)
        opened.append(time.process_time() - cpu)
        cpu = time.process_time()
        planned(dataset, turn)
        made.append(time.process_time() - cpu)
    dataset = open_dataset(folder)
    permutation.cache_clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    resolved = planned(dataset, config.rounds + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows.append(row(f"open a dataset of {shards:,} shards (cpu)", opened[1:], "s"))
    rows.append(row(f"plan {resolved.tokens / TRILLION:.3f} T tokens and place a batch (cpu)", made[1:], "s"))
    keys["plan_seconds"] = rows[-1].median
    rows.append(row("the same, peak memory (tracemalloc)", [(peak - before) / 2**20], "MiB"))
    keys["plan_mb"] = rows[-1].median


def _packing(config: Config, documents: Documents, rows: list[Row], keys: dict[str, float]) -> None:
    _say("packing")
    keys["packing_fill"] = packing_fill(documents.lengths, LENGTH)
    rows.append(row(f"best-fit fill at {LENGTH:,}, {documents.origin} lengths", [keys["packing_fill"]], "of 1"))
    rows.append(row(f"best fit of a full shard at {LENGTH:,} (cpu)", fit_rows(config.rounds, LENGTH), "ms"))


def _writer(config: Config, documents: Documents, folder: Path, rows: list[Row], keys: dict[str, float]) -> None:
    _say("writing against tokenising")
    written, encoded = writer_rounds(documents, folder, config.rounds)
    rows.append(against("write_source (cpu)", written, encoded, "tokenizers encode_batch, same text", "M tokens/CPU s"))
    keys["writer_vs_tokenizer"] = rows[-1].median


if __name__ == "__main__":
    sys.exit(cli.guarded("bench loader", lambda: main(sys.argv[1:])))
