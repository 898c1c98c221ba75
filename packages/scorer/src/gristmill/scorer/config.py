"""Settings of training, calibration and pooling, apart from the code: a pipeline reads them without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError

ATTENTION_HEADS = 4  # of the encoder
SMALLEST = 1e-12  # of what must be above zero


@dataclass(frozen=True)
class TrainConfig:
    """How heads are trained, and what their backbone must be run with. A bundle's own has what was chosen: its taps are
    two numbers, and its judge_kind is that of its judge."""

    taps: tuple[int, int] | Literal["sweep"] = "sweep"
    """Blocks after which probe and judge read; "sweep" has them found from the labels."""
    sweep_false_drop: float = 0.05
    """Share of good documents that a probe may lose where the sweep compares taps by the compute they save."""
    window_tokens: int = 512
    windows: int = 3
    """A document is read in at most so many windows of at most `window_tokens` tokens."""
    dtype: str = "bfloat16"
    device: str = "cpu"
    attention: str = ""
    """One of transformers' attn_implementation; empty is the model's own default."""
    threads: int = 1
    batch_tokens: int = 4096
    """Padded tokens per batch, in every pass."""
    seed: int = 0
    pooling: Literal["attention", "mean"] = "attention"
    """How the probe sums up a window: by learned queries, or a linear map of the mean, in closed form."""
    queries: int = 4
    epochs: int = 12
    patience: int = 6
    learning_rate: float = 3e-4
    """Of attention pooling, as is the number of epochs; patience is everyone's."""
    weight_decay: float = 0.01
    huber: float = 1.5
    """Errors above it count linearly; in standard deviations of each dimension's scores."""
    judge: bool = True
    judge_kind: Literal["best", "encoder", "attention"] = "best"
    """A small encoder, a probe at the deeper tap, or whichever of the two orders the select split better."""
    judge_width: int = 128
    judge_epochs: int = 10
    judge_learning_rate: float = 1e-3
    """Both of the encoder."""
    judge_gain: float = 0.02
    """Spearman of quality on select that the judge must add to the probe's, or it is not shipped."""

    def __post_init__(self) -> None:
        if self.taps != "sweep" and not 1 <= self.taps[0] <= self.taps[1]:
            raise UsageError(f'taps: {list(self.taps)} must be two blocks, 1 <= probe <= judge, or "sweep"')
        check_range("sweep_false_drop", self.sweep_false_drop, 0, 1)
        for name in (
            "window_tokens", "windows", "threads", "batch_tokens", "queries", "epochs", "patience", "judge_width",
            "judge_epochs",
        ):  # fmt: skip
            check_range(name, getattr(self, name), 1)
        for name in ("learning_rate", "judge_learning_rate", "huber"):
            check_range(name, getattr(self, name), SMALLEST)
        check_range("weight_decay", self.weight_decay)
        check_range("judge_gain", self.judge_gain, -2, 2)
        if self.judge_width % ATTENTION_HEADS:
            raise UsageError(f"judge_width: {self.judge_width} is no multiple of its {ATTENTION_HEADS} attention heads")

    @property
    def chosen_taps(self) -> tuple[int, int]:
        """Raises UsageError where they are still to be found by a sweep; in a bundle they never are."""
        if self.taps == "sweep":
            raise UsageError("taps: not chosen yet; train heads with this configuration first, or name two blocks")
        return self.taps


@dataclass(frozen=True)
class ScoringConfig:
    """How trained heads are run. Where dtype, attention, device or batch_tokens are not set, as they were trained."""

    dtype: str = ""
    attention: str = ""
    device: str = ""
    """Heads that were trained on a device that this machine has not run on its processors."""
    threads: int = 1
    batch_tokens: int = 0
    """Padded tokens per batch."""
    chunk: int = 1024
    """So many documents are packed by length together; two such chunks are tokenised ahead."""
    shadow: float = 0.01
    """Share of early exits that the judge sees all the same: what exits cost on the text that is being scored."""
    held_bytes: int = 2**28
    """Of states that wait for the second stage."""

    def __post_init__(self) -> None:
        check_range("threads", self.threads, 1)
        check_range("batch_tokens", self.batch_tokens)
        check_range("chunk", self.chunk, 1)
        check_range("shadow", self.shadow, 0, 1)
        check_range("held_bytes", self.held_bytes)


@dataclass(frozen=True)
class CalibrationConfig:
    max_false_drop: float = 0.05
    """Share of good documents that tau_drop may lose."""
    confidence: float = 0.95
    """With which that bound is certified."""
    certify: Literal["sources", "pool"] = "sources"
    """Whether a source with enough good labels has a bound of its own, which costs exits, or all share one."""
    bounds: Literal["marginal", "bonferroni"] = "marginal"
    """Whether the bounds of several sources hold each for itself, or all at once."""
    keep: dict[str, float] = field(default_factory=lambda: {"code": 0.5, "math": 0.5, "science": 0.5})
    """Share of a source that tau_keep is to keep."""
    keep_default: float = 0.3
    keep_by: Literal["documents", "tokens"] = "documents"
    """What those shares count."""
    weights: Literal["rubric", "fit"] = "rubric"
    """Of the dimensions in the quality: the rubric's, or fitted to the labels' own column `overall`."""
    allow_uncertified: bool = False
    """With too few labels for the bound: a threshold without one, stamped as mode expected."""

    def __post_init__(self) -> None:
        for name in ("max_false_drop", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} must be between 0 and 1")
        for source, rate in [("keep_default", self.keep_default), *self.keep.items()]:
            check_range(f"keep of {source}", rate, 0, 1)

    def rate(self, source: str) -> float:
        return self.keep.get(source, self.keep_default)


@dataclass(frozen=True)
class PooledConfig:
    block: int = 8
    """The states are those after so many blocks."""
    max_tokens: int = 512
    """How much of each document is read: documents that begin alike for so long cannot be told apart."""
    batch_tokens: int = 4096
    """Padded tokens per batch."""
    dtype: str = "float32"
    """In bfloat16 the same text has slightly different states in different company."""
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        check_range("block", self.block, 1)
        check_range("max_tokens", self.max_tokens, 1)
        check_range("batch_tokens", self.batch_tokens, 1)
        check_range("threads", self.threads, 1, 4096)
