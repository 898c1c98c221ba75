"""Settings of training, calibration and pooling, apart from the code: a pipeline reads them without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gristmill.base.config import check_range


@dataclass(frozen=True)
class TrainConfig:
    """taps: blocks after which probe and judge read. A document is read in at most `windows` windows of at most
    `window_tokens` tokens. batch_tokens: padded tokens per batch, in every pass."""

    taps: tuple[int, int] = (8, 16)
    window_tokens: int = 512
    windows: int = 3
    dtype: str = "bfloat16"
    threads: int = 1
    batch_tokens: int = 4096
    seed: int = 0
    epochs: int = 30
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    huber: float = 1.5  # in standard deviations of each dimension's scores
    queries: int = 4
    judge: bool = True
    judge_width: int = 128
    judge_epochs: int = 12
    judge_learning_rate: float = 1e-3
    judge_gain: float = 0.02  # Spearman of quality on select that the judge must add


@dataclass(frozen=True)
class CalibrationConfig:
    """max_false_drop: share of good documents that tau_drop may lose, at `confidence`. keep: target rate by source."""

    max_false_drop: float = 0.05
    confidence: float = 0.95
    keep: dict[str, float] = field(default_factory=lambda: {"code": 0.5, "math": 0.5})
    keep_default: float = 0.3
    allow_uncertified: bool = False

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
    threads: int = 1

    def __post_init__(self) -> None:
        check_range("block", self.block, 1)
        check_range("max_tokens", self.max_tokens, 1)
        check_range("batch_tokens", self.batch_tokens, 1)
        check_range("threads", self.threads, 1, 4096)
