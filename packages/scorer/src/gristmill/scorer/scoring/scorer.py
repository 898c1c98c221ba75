"""Scores for documents, in their order: all get the probe, survivors go on to the judge from where the probe read.

Batches are packed by length, so a score does not depend on who came along; survivors are packed again before stage two.
Shapes: N documents, M windows, D dimensions, B batch, S sequence.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.progress import Progress
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.backbone.staged import BackboneIdentity, StagedBackbone, identify
from gristmill.scorer.backbone.states import (
    Tokens,
    average_windows,
    batches,
    flatten,
    head_input,
    pad,
    pad_states,
)
from gristmill.scorer.config import ScoringConfig
from gristmill.scorer.heads import bundle as bundles
from gristmill.scorer.heads.bundle import Bundle
from gristmill.scorer.heads.calibration import ALL
from gristmill.scorer.heads.selftest import check_selftest
from gristmill.scorer.heads.training import to_scale
from gristmill.scorer.heads.weights import weighted
from gristmill.scorer.scoring.counters import Counters, flops_per_block_token
from gristmill.scorer.scoring.decide import thresholds

T = TypeVar("T")
AHEAD = 2  # chunks being tokenised, or waiting, while another is run
EMPTY, NOT_FINITE = "empty", "not finite"
# Where more documents than 1 + 1/100 of them fail alone, it is not the documents.
MOST_FAILED = 100


@dataclass
class _Chunk:
    """Documents on their way through both stages."""

    texts: Sequence[str | None]
    sources: Sequence[str]
    rows_M: list[np.ndarray]
    owner_M: np.ndarray
    truncated_N: list[bool]
    reasons: dict[int, str]  # why a document has no score
    dimensions: int
    failed: int = 0
    tokens_M: np.ndarray = field(init=False)  # first tokens not counted
    first_N: np.ndarray = field(init=False)  # window numbers of document i are first_N[i] .. first_N[i + 1]
    probe_MD: np.ndarray = field(init=False)
    judge_MD: np.ndarray = field(init=False)
    quality_N: np.ndarray = field(init=False)  # the probe's, float32 as it is written: what exits are decided by
    exit_N: np.ndarray = field(init=False)
    shadow_N: np.ndarray = field(init=False)
    judged_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        documents, windows = len(self.texts), len(self.rows_M)
        self.probe_MD, self.judge_MD = (np.full((windows, self.dimensions), np.nan) for _ in range(2))
        self.quality_N = np.full(documents, np.nan, np.float32)
        self.exit_N, self.shadow_N, self.judged_N = (np.zeros(documents, bool) for _ in range(3))
        self.tokens_M = np.array([len(row) - 1 for row in self.rows_M], np.int64)
        self.first_N = np.searchsorted(self.owner_M, np.arange(documents + 1))

    def windows_of(self, documents: np.ndarray) -> np.ndarray:
        return np.array([m for i in documents for m in range(self.first_N[i], self.first_N[i + 1])], np.int64)

    def average(self, values_MD: np.ndarray, documents: np.ndarray) -> np.ndarray:
        windows = self.windows_of(documents)
        place_M = np.repeat(np.arange(len(documents)), np.diff(self.first_N)[documents])
        return average_windows(values_MD[windows], self.tokens_M[windows], place_M, len(documents))


class Scorer:
    """A loaded bundle on its backbone. `counters` adds up over calls of score()."""

    def __init__(
        self, bundle: Bundle, backbone: StagedBackbone, tokens: Tokens, config: ScoringConfig | None = None
    ) -> None:
        self.bundle, self.backbone, self.tokens = bundle, backbone, tokens
        self.config = config or ScoringConfig()
        self.rubric = weighted(bundle.rubric, bundle.calibration)
        bundle.probe.to(backbone.device)
        if bundle.judge is not None:
            bundle.judge.to(backbone.device)
        self._budget = self.config.batch_tokens or bundle.config.batch_tokens
        self.counters = Counters(blocks=backbone.taps[1], flops_per_block_token=flops_per_block_token(backbone))

    @classmethod
    def load(cls, heads: Path, backbone: Path, config: ScoringConfig | None = None) -> Scorer:
        """Load a heads/ folder and the backbone that it names, and run its self-test.

        Raises:
            DataError: another backbone, an altered or unknown file, or a self-test that gives other scores.
        """
        return load_scorers([heads], backbone, config)[0]

    def score(
        self, texts: Sequence[str | None], sources: Sequence[str] | None = None, early_exit: bool = True
    ) -> pa.Table:
        """One row per text, in order.

        Columns: quality float32 in [0, 1] (the judge's where it ran, else the probe's), probe float32, judge float32
        (null where it did not run), exit bool (true where tau_drop of the source ended it; never for a source that
        was not there at calibration), shadow bool (an exit that was judged all the same; its quality stays the
        probe's), least and greatest float32 (quality of its windows, by
        the head that decided), one float32 per dimension (unclamped, from that head), tokens int32 (read, first tokens
        not counted), windows int32, truncated bool (part of the text is in no window), reason string: null, or why
        there is no score, which is then null in all columns.

        Raises:
            UsageError: sources and texts differ in length.
            RuntimeError, and whatever else the model raises: more documents fail than a few bad ones would.
        """
        if sources is not None and len(sources) != len(texts):
            raise UsageError(f"{len(texts)} texts but {len(sources)} sources")
        sources = [ALL] * len(texts) if sources is None else sources
        size = self.config.chunk
        pieces = [(texts[i : i + size], sources[i : i + size]) for i in range(0, len(texts), size)] or [([], [])]
        tables: list[pa.Table] = []
        done = 0
        with Progress("score", total=len(texts), unit="documents") as progress, torch.inference_mode():
            for chunk in _ahead(lambda piece: self._read(*piece), pieces):
                self._run(chunk, early_exit)
                tables.append(self._table(chunk))
                done += len(chunk.texts)
                progress.update(done)
        return pa.concat_tables(tables)

    def _read(self, texts: Sequence[str | None], sources: Sequence[str]) -> _Chunk:
        reasons: dict[int, str] = {}
        with self.counters.timed("tokenise"):
            try:
                windows, truncated = self.tokens.cut(texts)
            except TypeError:  # one of them is no text, such as half a surrogate pair
                windows, truncated = [], []
                for i, text in enumerate(texts):
                    try:
                        (own,), (cut,) = self.tokens.cut([text])
                    except TypeError:
                        own, cut = [], False
                        reasons[i] = "no Unicode text"
                    windows.append(own)
                    truncated.append(cut)
            reasons |= {i: EMPTY for i, own in enumerate(windows) if not own and i not in reasons}
        return _Chunk(texts, sources, *flatten(windows), truncated, reasons, len(self.bundle.rubric.dimensions))

    def _run(self, chunk: _Chunk, early_exit: bool) -> None:
        """Both stages over a chunk; survivors wait for the second in `held`, by window, until they are too many."""
        tau_N = self._tau_drop(chunk.sources) if early_exit else np.full(len(chunk.texts), -math.inf)
        before = self.backbone.counters.block_tokens
        counts_N = np.diff(chunk.first_N)
        longest_N = [
            max((len(row) for row in chunk.rows_M[a:b]), default=0)
            for a, b in zip(chunk.first_N[:-1], chunk.first_N[1:])
        ]
        held: dict[int, torch.Tensor] = {}
        finished = False
        for batch in batches(longest_N, self._budget, counts_N.tolist()):
            with self.counters.timed("stage one"):
                finished = self._halving(chunk, batch, lambda some: self._first(chunk, some, tau_N, held)) or finished
            if sum(state.nbytes for state in held.values()) > self.config.held_bytes:
                self._second(chunk, held, finished)
        self._second(chunk, held, finished)
        self.counters.block_tokens += self.backbone.counters.block_tokens - before

    def _first(self, chunk: _Chunk, documents: np.ndarray, tau_N: np.ndarray, held: dict[int, torch.Tensor]) -> bool:
        """Returns whether the states in `held` are the judge's already."""
        windows, rubric = chunk.windows_of(documents), self.rubric
        ids_BS, mask_BS = (x.to(self.backbone.device) for x in pad([chunk.rows_M[m] for m in windows]))
        hidden_BSD, last_BSD = self.backbone.first(ids_BS, mask_BS)
        chunk.probe_MD[windows] = to_scale(self.bundle.probe(*head_input(hidden_BSD, mask_BS)).cpu(), rubric)
        self.counters.padded_tokens += mask_BS.numel()
        quality_B = rubric.quality(chunk.average(chunk.probe_MD, documents)).astype(np.float32)
        chunk.quality_N[documents] = quality_B
        if self.bundle.judge is None:
            return False
        exit_B = quality_B < tau_N[documents]
        shadow_B = np.array([out and self._is_shadow(chunk.texts[i]) for i, out in zip(documents, exit_B)], bool)
        chunk.exit_N[documents], chunk.shadow_N[documents] = exit_B, shadow_B
        # Documents whose quality is no number are not looked at again.
        chunk.judged_N[documents] = np.isfinite(quality_B) & (~exit_B | shadow_B)
        states = hidden_BSD if last_BSD is None else last_BSD
        for position, window in enumerate(windows):
            if chunk.judged_N[chunk.owner_M[window]]:
                held[int(window)] = states[position, : len(chunk.rows_M[window])].clone()
        return last_BSD is not None

    def _second(self, chunk: _Chunk, held: dict[int, torch.Tensor], finished: bool) -> None:
        """The judge for all windows in `held`, which it empties; `finished`: those are its states already."""
        judge, windows = self.bundle.judge, list(held)
        if judge is None or not windows:
            return

        def run(some: np.ndarray) -> None:
            hidden_BSD, mask_BS = pad_states([held[windows[i]] for i in some])
            mask_BS = mask_BS.to(self.backbone.device)
            last_BSD = hidden_BSD if finished else self.backbone.second(hidden_BSD, mask_BS)
            rows = [windows[i] for i in some]
            chunk.judge_MD[rows] = to_scale(judge(*head_input(last_BSD, mask_BS)).cpu(), self.bundle.rubric)

        with self.counters.timed("stage two"):
            for batch in batches([len(held[window]) for window in windows], self._budget):
                self._halving(chunk, batch, run, owner=chunk.owner_M[windows])
        held.clear()

    def _halving(
        self, chunk: _Chunk, batch: np.ndarray, run: Callable[[np.ndarray], T], owner: np.ndarray | None = None
    ) -> T | None:
        """Run a batch; where that fails, its halves, down to what fails alone: that document gets a reason.

        owner: the document of each entry, where the entries are not documents themselves.
        """
        try:
            return run(batch)
        except GristmillError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            memory = _is_memory(error)
            if memory:
                # Later chunks are packed for what there is room for.
                self._budget = max(self._budget // 2, 1)
                if self.backbone.device.type == "cuda":
                    torch.cuda.empty_cache()
            if len(batch) == 1:
                document = int(batch[0] if owner is None else owner[batch[0]])
                chunk.reasons[document] = "out of memory" if memory else f"{type(error).__name__}: {error}"
                chunk.failed += 1
                if chunk.failed > 1 + len(chunk.texts) // MOST_FAILED:
                    raise
                return None
        middle = len(batch) // 2
        results = [self._halving(chunk, half, run, owner) for half in (batch[:middle], batch[middle:])]
        return next((result for result in results if result is not None), None)

    def _table(self, chunk: _Chunk) -> pa.Table:
        rubric, documents = self.rubric, np.arange(len(chunk.texts))
        decided_N = chunk.judged_N & ~chunk.exit_N
        judge_ND = chunk.average(chunk.judge_MD, documents)
        scores_ND = np.where(decided_N[:, None], judge_ND, chunk.average(chunk.probe_MD, documents))
        judge_N = rubric.quality(judge_ND).astype(np.float32)
        judge_N[~chunk.judged_N] = np.nan
        quality_N = np.where(decided_N, judge_N, chunk.quality_N)
        window_M = rubric.quality(np.where(decided_N[chunk.owner_M][:, None], chunk.judge_MD, chunk.probe_MD))
        least_N, greatest_N = np.full(len(documents), np.inf), np.full(len(documents), -np.inf)
        with np.errstate(invalid="ignore"):
            np.minimum.at(least_N, chunk.owner_M, window_M)
            np.maximum.at(greatest_N, chunk.owner_M, window_M)
        for i in np.flatnonzero(~np.isfinite(quality_N)):
            chunk.reasons.setdefault(int(i), NOT_FINITE)
        unscored_N = np.isin(documents, list(chunk.reasons))
        tokens_N = np.bincount(chunk.owner_M, weights=chunk.tokens_M, minlength=len(documents)).astype(np.int32)
        self._count(chunk, unscored_N)

        def floats(values_N: np.ndarray) -> pa.Array:
            return pa.array(values_N.astype(np.float32), pa.float32(), mask=unscored_N | ~np.isfinite(values_N))

        columns: dict[str, pa.Array] = {
            "quality": floats(quality_N),
            "probe": floats(chunk.quality_N),
            "judge": floats(judge_N),
            "exit": pa.array(chunk.exit_N, pa.bool_(), mask=unscored_N),
            "shadow": pa.array(chunk.shadow_N, pa.bool_(), mask=unscored_N),
            "least": floats(least_N),
            "greatest": floats(greatest_N),
        }
        columns |= {name: floats(scores_ND[:, i]) for i, name in enumerate(rubric.names)}
        columns |= {
            "tokens": pa.array(tokens_N),
            "windows": pa.array(np.diff(chunk.first_N).astype(np.int32)),
            "truncated": pa.array(chunk.truncated_N, pa.bool_()),
            "reason": pa.array([chunk.reasons.get(int(i)) for i in documents], pa.string()),
        }
        return pa.table(columns)

    def _is_shadow(self, text: str | None) -> bool:
        """By the text's own hash: the same exits are audited whoever scores them, and in whatever company."""
        digest = hashlib.blake2b((text or "").encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.config.shadow * 2**64

    def _tau_drop(self, sources: Sequence[str]) -> np.ndarray:
        calibration = self.bundle.calibration
        taus = {name: thresholds(calibration, name)["tau_drop"] if calibration else None for name in set(sources)}
        return np.array([-math.inf if taus[name] is None else taus[name] for name in sources], dtype=np.float64)

    def _count(self, chunk: _Chunk, unscored_N: np.ndarray) -> None:
        probe, judge = self.backbone.taps
        lengths_N = np.bincount(chunk.owner_M, weights=chunk.tokens_M + 1, minlength=len(chunk.texts)).astype(np.int64)
        counters = self.counters
        counters.documents += len(chunk.texts)
        counters.tokens += int(lengths_N.sum())
        counters.exits += int((chunk.exit_N & ~unscored_N).sum())
        counters.shadow += int((chunk.shadow_N & ~unscored_N).sum())
        counters.block_tokens_needed += int(lengths_N.sum()) * probe
        counters.block_tokens_needed += int(lengths_N[chunk.judged_N].sum()) * (judge - probe)
        for reason, count in Counter(chunk.reasons.values()).items():
            counters.unscored[reason] = counters.unscored.get(reason, 0) + count
        names = np.array(chunk.sources, dtype=object)
        for name in sorted(set(chunk.sources)):
            own = names == name
            counters.source(
                name, documents=int(own.sum()), tokens=int(lengths_N[own].sum()),
                exits=int(chunk.exit_N[own].sum()), shadow=int(chunk.shadow_N[own].sum()),
            )  # fmt: skip


def load_scorers(heads: Sequence[Path], backbone: Path, config: ScoringConfig | None = None) -> list[Scorer]:
    """Scorers of several bundles on one backbone, which is read once, and loaded once where they run it alike.

    Raises:
        DataError: as Scorer.load().
    """
    config = config or ScoringConfig()
    backbone = local_folder(backbone)
    identity = identify(backbone)
    loaded = [bundles.load(folder) for folder in heads]
    for bundle in loaded:
        bundles.check_backbone(bundle, identity, backbone)
    deepest: dict[tuple[str, str, str], int] = {}
    for bundle in loaded:
        key = _how(bundle, config)
        deepest[key] = max(deepest.get(key, 0), _taps(bundle)[1])
    models: dict[tuple[str, str, str], StagedBackbone] = {}
    scorers: list[Scorer] = []
    for folder, bundle in zip(heads, loaded):
        key, taps = _how(bundle, config), _taps(bundle)
        if key not in models:
            models[key] = _load_backbone(backbone, identity, (taps[0], deepest[key]), key, config)
        staged = models[key]
        if staged.taps != taps:
            staged = StagedBackbone.from_model(staged.model, identity, taps)
        tokens = Tokens(backbone, identity.first_token, bundle.config.window_tokens, bundle.config.windows)
        scorers.append(Scorer(bundle, staged, tokens, config))
        check_selftest(bundle.selftest, staged, bundle.probe, bundle.judge, bundle.config.dtype, folder)
    return scorers


def _taps(bundle: Bundle) -> tuple[int, int]:
    probe, judge = bundle.config.chosen_taps
    return (probe, judge) if bundle.judge is not None else (probe, probe)  # its blocks are not loaded either


def _how(bundle: Bundle, config: ScoringConfig) -> tuple[str, str, str]:
    """dtype, attention and device."""
    trained = bundle.config
    device = "cpu" if trained.device.startswith("cuda") and not torch.cuda.is_available() else trained.device
    return config.dtype or trained.dtype, config.attention or trained.attention, config.device or device


def _load_backbone(
    folder: Path, identity: BackboneIdentity, taps: tuple[int, int], how: tuple[str, str, str], config: ScoringConfig
) -> StagedBackbone:
    dtype, attention, device = how
    return StagedBackbone.load(folder, taps, dtype, config.threads, identity, device, attention)


def _ahead(make: Callable[[T], _Chunk], pieces: Iterable[T]) -> Iterator[_Chunk]:
    """make(piece) of each piece, in order, in a thread that is at most AHEAD pieces in front of the caller."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque = deque()
        for piece in pieces:
            waiting.append(thread.submit(make, piece))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_memory(error: Exception) -> bool:
    """What an accelerator raises, and what the processor's allocator says."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
