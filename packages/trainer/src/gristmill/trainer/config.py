"""What a training run is: frozen dataclasses, defaults < TOML < command line. No torch here, so that --help is quick.

One idea: everything that decides the weights is in here or in the plan's hash; where files lie decides nothing.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gristmill.base.cli import Tokens
from gristmill.base.config import check_range, to_mapping
from gristmill.base.errors import UsageError
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.ramp import Stage, stages
from gristmill.trainer.watch.alarms import AlarmConfig
from gristmill.trainer.watch.config import HealthConfig, SamplesConfig, TrackersConfig
from gristmill.trainer.watch.patience import PatienceConfig


@dataclass(frozen=True)
class BatchConfig:
    """How many windows one step learns from. A mixture's phase may have longer ones; then a step has fewer."""

    sequence: int = 256
    """Tokens in a window."""
    sequences: int = 8
    """Windows per step."""
    micro: int = 8
    """Windows per forward and backward pass; changes memory and speed, and the result only by rounding, unless the
    model has a capacity or a balance_loss: these look at one pass."""
    ramp_from: int = 0
    """Windows of the first steps, doubled stage by stage up to `sequences` (which it divides by 2, 4, 8, ...). 0: all
    steps are alike."""
    ramp_share: float = 0.1
    """Share of the budget in which they double. Every stage reads as many tokens."""

    @property
    def tokens(self) -> int:
        return self.sequence * self.sequences


@dataclass(frozen=True)
class TrainConfig:
    """One run: data and budget, then the model, the batch and the optimiser."""

    mixture: str = ""
    """A mixture's name in the data folder, or a TOML file."""
    data: str = ""
    """The published shards: a folder, or a URI that shards can open."""
    output: str = ""
    """The run's folder. A run that is there already is resumed, if its configuration is the same."""
    tokenizer: str = ""
    """tokenizer.json, for bits per byte and for text; "" takes the data folder's own, if it has one."""
    tokens: Tokens = 2_000_000
    """Budget, in tokens trained on (250M, 1B); rounded down to whole steps."""
    packing: Literal["concat", "bestfit"] = "concat"
    """concat: windows as the text comes, documents cut at their ends. bestfit: documents whole wherever they fit."""
    match_repetition: bool = False
    """Read of each source only as much as repeats as often as in the mixture's target_tokens: for small proxy runs."""
    unique_tokens: dict[str, int] = field(default_factory=dict)
    """Of a source, read only so many tokens, over and over: a random sample of its documents (web 1000000)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the matrix products; weights and optimiser state stay in fp32."""
    expert_precision: Literal["", "fp32", "bf16", "fp8", "mxfp8", "nvfp4"] = ""
    """Of the experts' products alone, forward and backward; "": as all others."""
    stochastic_rounding: bool = False
    """Gradients that enter the experts' products in fp8, mxfp8 or nvfp4 are rounded up or down by chance, right on the
    average (but for the largest values of a block in nvfp4, whose scale is rounded too), instead of to the nearest."""
    compile: bool = False
    """Fuse what stands between the products (torch.compile): minutes before the first step, then faster ones."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available, else cpu."""
    threads: int = 1
    """CPU threads. Part of the configuration: another number may round sums differently."""
    seed: int = 0
    """Of the initial weights."""
    data_seed: int | None = None
    """Of the data order; None: the mixture's own."""
    init_from: str = ""
    """Begin with the weights of a run, of one of its checkpoints, or of a Hugging Face folder or hf://org/name@revision,
    and with that model's shape but for the fields of --model that are given. "": with random ones."""
    first_sequence: int = 0
    """Where in the mixture's order the run begins, in windows: what is before it is not read."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always writes one. 0: only the last."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed, but for the best one by validation where --patience.validations is set, and what
    --alarms.router-collapse roll_back may go back to."""
    validate_every: int = 200
    """Steps between validations; the last step always has one. 0: only the last."""
    validate_tokens: int = 50_000
    """Validation reads whole documents of each source's valid split until it has this many tokens. 0: no validation."""
    disk_gb: float = 0.0
    """Of data that is elsewhere, keep so many gigabytes of shards here, fetched ahead while training. 0: fetch all that
    the run reads before it starts, and keep it."""
    check_shards: bool = True
    """First compare the sha256 of all shards that the run will read: about a second per gigabyte and core."""
    require_check: bool = False
    """Refuse to start unless trainer check passed here on this configuration, this data and this code."""
    launcher: Literal["none", "local", "ray"] = "none"
    """What starts the processes. none: this is the only one, or torchrun or Slurm has started all. local: this command,
    on this machine. ray: Ray Train, on the cluster that RAY_ADDRESS names, and again when a worker is lost."""
    nproc: int = 1
    """With a launcher: processes, one for each GPU where there are some. They share out the passes of a step."""
    price_per_hour: float = 0.0
    """Of the machine, in any currency, for what the run has cost so far. 0: not told."""
    model: ModelSection = field(default_factory=ModelSection)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    patience: PatienceConfig = field(default_factory=PatienceConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    trackers: TrackersConfig = field(default_factory=TrackersConfig)

    def __post_init__(self) -> None:
        least = {
            "tokens": 1,
            "threads": 1,
            "checkpoint_every": 0,
            "keep_checkpoints": 1,
            "validate_every": 0,
            "validate_tokens": 0,
            "first_sequence": 0,
            "nproc": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low} (got {getattr(self, name)})")
        check_range("seed", self.seed, -(2**63), 2**64 - 1)  # torch's own
        check_range("price_per_hour", self.price_per_hour)
        for name in ("sequence", "sequences", "micro"):
            if getattr(self.batch, name) < 1:
                raise UsageError(f"batch.{name} must be at least 1 (got {getattr(self.batch, name)})")
        if self.tokens < self.batch.tokens:
            raise UsageError(f"tokens ({self.tokens}) is less than one step's batch ({self.batch.tokens} tokens)")
        if self.stochastic_rounding and self.expert_precision not in ("fp8", "mxfp8", "nvfp4"):
            raise UsageError(
                "stochastic_rounding is of --expert-precision fp8, mxfp8 or nvfp4; set one, or leave it out"
            )
        if self.nproc > 1 and self.launcher == "none":
            raise UsageError(f"nproc {self.nproc}: nothing starts them; give --launcher local or ray, or leave it out")
        if self.patience.validations and not (self.validate_every and self.validate_tokens):
            raise UsageError("patience.validations waits for validations: give --validate-every and --validate-tokens")
        _ = self.stages  # a ramp that cannot be

    @property
    def stages(self) -> list[Stage]:
        """The steps of the run, in stages of as many windows each."""
        batch = self.batch
        return stages(batch.sequences, batch.ramp_from, batch.ramp_share, self.tokens // batch.tokens)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def trained_tokens(self) -> int:
        """The budget, in whole steps."""
        return self.tokens // self.batch.tokens * self.batch.tokens

    def rows_of_pass(self, length: int) -> int:
        """Windows that go through the model at a time, in a phase whose windows have `length` tokens."""
        return max(self.batch.micro * self.batch.sequence // length, 1)

    def stages_after(self, step: int) -> list[Stage]:
        """What is left of the stages when `step` steps are done."""
        left = []
        for stage in self.stages:
            done = min(step, stage.steps)
            step -= done
            if done < stage.steps:
                left.append(stage._replace(steps=stage.steps - done))
        return left

    def tokens_after(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        return (
            self.trained_tokens
            - sum(left.steps * left.windows for left in self.stages_after(step)) * self.batch.sequence
        )

    def require_paths(self) -> None:
        for name in ("mixture", "data", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing; see trainer run --help")

    @property
    def folder(self) -> Path:
        return Path(self.output)


# Pinned by content (the plan's hash and the tokenizer's), of no effect on the result, or, as alarms, for whoever has to
# go on with a run that one of them stopped.
_PLACES = ("mixture", "data", "output", "tokenizer")
_WATCHED = ("health", "samples", "trackers", "price_per_hour")
_PROCESSES = ("launcher", "nproc", "parallel", "require_check")
_DECIDES_NOTHING = (*_PLACES, *_WATCHED, *_PROCESSES, "check_shards", "disk_gb", "keep_checkpoints")
_MAY_CHANGE = (*_DECIDES_NOTHING, "alarms")


def differences(old: dict[str, Any], new: TrainConfig) -> list[str]:
    """The dotted names whose values differ between a run's stored configuration and `new`, places left out. What the
    stored one does not name had its default."""
    usual, given, after = (_flat(one, _MAY_CHANGE) for one in (to_mapping(TrainConfig()), old, to_mapping(new)))
    before = usual | given
    return [
        f"{key} = {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]


def unlike(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings and sections that decide the weights, and differ between two stored configurations that both name them;
    the budget and the model, which runs record by themselves, left out."""
    first, second = (_flat(one, _DECIDES_NOTHING) for one in (a, b))
    differ = {key.partition(".")[0] for key in first | second if first.get(key) != second.get(key)}
    return sorted((differ & a.keys() & b.keys()) - {"tokens", "model"})


def _flat(values: dict[str, Any], without: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key in without:
            continue
        name = f"{prefix}{key}"
        result |= _flat(value, prefix=f"{name}.") if isinstance(value, dict) else {name: value}
    return result
