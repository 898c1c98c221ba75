"""The one DAG behind every pipeline: ingest, measure, dedup, grade, distil, score, select, pack, publish.

A pipeline is a `PipelineConfig`; the demo appends training and comparison to the same nodes.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from duplicates import CLUSTERED, DuplicateConfigs, duplicate_stages
from gristmill.base import cli
from gristmill.base.config import load_toml
from gristmill.base.errors import UsageError
from gristmill.datapipe.contamination.report import ContaminationReport
from gristmill.datapipe.duplicate_report import DuplicateReport
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.pack import Pack, PackConfig, Publish
from gristmill.datapipe.policy_file import load_policy
from gristmill.datapipe.select import Select
from gristmill.datapipe.stages.tokens import CopyTokenizer, Tokenise, TokenizerConfig, TrainTokenizer
from gristmill.datapipe.workflow.ledger import last_change
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.plan import table
from gristmill.datapipe.workflow.runner import Runner
from gristmill.datapipe.workflow.stage import Node
from gristmill.scorer.backbone.hub import local_folder
from gristmill.scorer.config import CalibrationConfig, ScoringConfig
from gristmill.scorer.config import TrainConfig as HeadsConfig
from gristmill.scorer.rubric import load_rubric
from gristmill.scorer.scoring.others import FORMS, Ensemble, Other, parse
from gristmill.shards.remote import places
from heads import Drift, Heads, Reference, Score, Thresholds, heads_of
from measures import ModelConfigs, measuring_stages
from nodes import Grade, GradeConfig, Labels, Sample, SampleConfig

HERE = Path(__file__).resolve().parent
REPLIES, FEATURES = Path("labels", ".replies"), Path("labels", ".features")
"""Hidden, as no output: hashes and comparisons of run folders pass them over."""


@dataclass(frozen=True)
class PipelineConfig(DuplicateConfigs, ModelConfigs, RunOptions):
    input: tuple[str, ...] = ()
    """Files, folders or globs of JSONL(.gz, .zst), Parquet and WARC(.gz), on disk or in a store (s3://...), or
    hf://datasets/ORG/NAME[@REVISION]/PATTERN; see docs/ingest.md."""
    output: Path = Path("runs/filter_olmo3")
    """The run folder. The same command on the same folder goes on from where it was."""
    sources: tuple[str, ...] = ()
    """Keep only these sources; a row's source is its field `source`, else its file's name up to the first dot."""
    policy: Path | None = None
    """Rules and thresholds, as TOML. Without one: policies/olmo3.toml, or olmo3_scored.toml with an oracle."""
    oracle: str = ""
    """Grades a sample: a model folder for vLLM in process, or http(s)://HOST/v1#MODEL of a running server."""
    backbone: Path | None = None
    """Model folder, or hf://ORG/NAME[@REVISION], whose frozen layers carry the heads (needed with --oracle), and find
    semantic duplicates."""
    rubric: Path = HERE / "rubrics" / "general.toml"
    """What the oracle is asked of each document; the heads learn its grades."""
    rubrics: dict[str, Path] = field(default_factory=dict)
    """By source: another rubric for its documents, as code.toml for code. Each rubric has its own heads, which need
    labels enough of its sources."""
    publish: str = ""
    """Where the shards go: a folder, file://..., or hf://datasets/ORG/NAME. Empty: RUN/published."""
    tokenizer: Path | None = None
    """tokenizer.json; without one, a byte-level BPE of `bpe.vocabulary` tokens is learned from the documents."""
    workers: int = 2
    """Ray workers; 0 runs everything in this process, for debugging. On a cluster (RAY_ADDRESS, or a submitted job)
    each node of the DAG keeps at most so many of its processors busy. Its machines must see all files under the same
    paths, and have in their own environment what inputs need (AWS_..., HF_TOKEN): no variables are sent there."""
    max_bad_fraction: float = 0.01
    """More quarantined rows than this end the run with exit code 4."""
    mixture: tuple[Path, ...] = ()
    """Mixtures to publish with the shards."""
    ingest: IngestConfig = field(default_factory=IngestConfig)
    bpe: TokenizerConfig = field(default_factory=TokenizerConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    scorers: tuple[str, ...] = ()
    """Other scorers, each a column of `scores`: NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL."""
    ensemble: Ensemble = "none"
    """scores.ensemble: the quality and all other scorers together, each as its rank in a sample of the run."""
    fail_drift: bool = False
    """End the run where a source's scores are not distributed as when its thresholds were set; drift/ says which."""
    pack: PackConfig = field(default_factory=PackConfig)
    oracle_threads: int = 2
    oracle_tokens: int = 256
    """How much of each document the oracle is shown."""
    oracle_windows: Literal["begin", "middle", "end", "spread"] = "begin"
    """Which part of a longer document: spread is a third from each end and one from the middle."""
    oracle_form: Literal["level", "json"] = "level"
    """level: a request for each dimension, answered by one token. json: one request for all."""
    oracle_reason: int = 0
    """In json form, so many characters of reasons before the scores."""
    oracle_gpus: int = 0
    """GPUs of each engine in process, which share the model (tensor parallel)."""
    oracle_budget_tokens: cli.Tokens = 0
    """Tokens that all prompts and answers may come to, in all runs of this folder, as 50M. Then the run ends, and goes
    on with a greater budget. Engines that ask at the same time may go beyond it by their batches. 0 has no limit."""
    oracle_config: Path | None = None
    """TOML with more settings of the engine: max_model_len, max_num_seqs ... of a model folder; concurrency,
    requests_per_minute, tokens_per_minute ... of an address."""


def build(config: PipelineConfig) -> tuple[Ingest, list[Node]]:
    """The nodes, in an order in which each comes after what it depends on.

    Raises:
        UsageError: the policy asks for scores and there is no oracle, or there is an oracle without a backbone.
    """
    if not config.input:
        raise UsageError(
            "--input is missing: files, folders, globs, s3://BUCKET/PATTERN or hf://datasets/ORG/NAME/PATTERN"
        )
    default = "olmo3_scored.toml" if config.oracle else "olmo3.toml"
    policy = load_policy(config.policy or HERE / "policies" / default)
    scored = "scores" in policy.annotations()
    if not scored and any(str(b.min).startswith("@") or str(b.max).startswith("@") for b in policy.all_bounds()):
        raise UsageError(f"{config.policy} has a calibrated threshold (@...), but no rule on scores.*")
    if scored and not config.oracle:
        raise UsageError(f"{config.policy} has rules on scores.*: give --oracle and --backbone, or another --policy")
    if config.oracle and not scored:
        raise UsageError(
            f"{config.policy} has no rule on scores.*, so --oracle would be for nothing: add one, or drop it"
        )
    if config.oracle and config.backbone is None:
        raise UsageError("--oracle needs --backbone: the model folder whose layers carry the heads")
    ingest = Ingest(tuple(config.input), _with_sources(config), config.max_bad_fraction)
    mixtures = [_existing("--mixture", path) for path in config.mixture]
    tokenizer = (
        CopyTokenizer(_existing("--tokenizer", config.tokenizer))
        if config.tokenizer
        else TrainTokenizer(config.bpe, policy.edit)
    )
    backbone = local_folder(config.backbone).resolve() if config.backbone else None
    nodes: list[Node] = [
        *measuring_stages(policy, config),
        *duplicate_stages(policy, config, backbone),
        tokenizer,
        Tokenise(policy.edit),
    ]
    extra = ["language"]
    if scored:
        assert backbone is not None
        by_source = {"": load_rubric(config.rubric)}
        by_source |= {source: load_rubric(path) for source, path in config.rubrics.items()}
        distinct = list({rubric.sha: rubric for rubric in by_source.values()}.values())
        if len({rubric.name for rubric in distinct}) < len(distinct):
            raise UsageError("--rubric and --rubrics name different rubrics that have the same name; rename one")
        routes = {source: heads_of(rubric) for source, rubric in by_source.items()}
        features, replies = (config.output.absolute() / name for name in (FEATURES, REPLIES))
        scoring = replace(config.scoring, device=config.scoring.device or config.heads.device)
        score = Score(backbone, routes, scoring, _others(config), config.ensemble)
        nodes += [
            Select(policy.before("scores"), "survivors", "survivors"),
            Sample(config.sample),
            Grade(_absolute(config.oracle), by_source, _grading(config), replies, config.oracle_budget_tokens),
            Labels(distinct),
            *(Heads(backbone, one, by_source, config.heads, config.calibration, scoring, features) for one in distinct),
            Thresholds(routes),
            *([Reference(score)] if config.ensemble != "none" else []),
            score,
            Drift(distinct, config.fail_drift),
        ]
        extra.append("scores")
    nodes += [
        Select(policy, calibrated=scored),
        DuplicateReport([name for name in CLUSTERED if any(node.name == name for node in nodes)]),
        *_contamination_report(nodes, config),
        Pack("shards_filtered", "shards/filtered", config.pack, "selection", extra, mixtures),
        Publish("shards_filtered", _place(config.publish)),
    ]
    return ingest, nodes


def _contamination_report(nodes: list[Node], config: PipelineConfig) -> list[Node]:
    """None where nothing was looked for, or of the items no text is at hand."""
    if all(node.name != "contamination" for node in nodes):
        return []
    report = ContaminationReport(config.contamination)
    return [report] if report.has_texts else []


def run(options: RunOptions, folder: Path, ingest: Ingest, nodes: list[Node], name: str, workers: int) -> bool:
    """Do what is missing or stale; with --plan only say what that is. Returns whether it was done."""
    runner = Runner(folder, ingest, nodes, name=name, workers=workers, options=options)
    if options.plan:
        print("\n".join(table(runner.plan(), workers)))
        return False
    runner.run()
    return True


def _with_sources(config: PipelineConfig) -> IngestConfig:
    return replace(config.ingest, sources=tuple(config.sources)) if config.sources else config.ingest


def _absolute(oracle: str) -> str:
    """Workers on Ray may have another working folder."""
    return oracle if oracle.startswith(("http://", "https://")) else str(Path(oracle).resolve())


def _existing(flag: str, path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file")
    return path.resolve()


def _others(config: PipelineConfig) -> list[Other]:
    """By their whole paths: workers on Ray may have another working folder."""
    others = [other._replace(path=other.path.absolute()) for other in parse(config.scorers)]
    if missing := [other for other in others if not other.path.exists()]:
        raise UsageError(f"--scorers {missing[0].name}: {missing[0].path}: no such file or folder")
    if config.ensemble != "none" and not others:
        raise UsageError(f"--ensemble {config.ensemble}: with what? Name another scorer by --scorers {FORMS}")
    return others


def _grading(config: PipelineConfig) -> GradeConfig:
    # Ray would refuse an oracle that wants more processors than there are workers.
    threads = min(config.oracle_threads, config.workers or config.oracle_threads)
    settings = load_toml(config.oracle_config) if config.oracle_config else {}
    return GradeConfig(
        config.oracle_tokens, config.oracle_windows, config.oracle_form, config.oracle_reason, threads,
        config.oracle_gpus, settings,
    )  # fmt: skip


def _place(target: str) -> str:
    """The address, or a folder by its whole path."""
    place = places.parse(target) if target else ""
    return str(place.absolute() if isinstance(place, Path) else place)


def report(run: Path) -> Path:
    """Build RUN/report/index.html, unless nothing was done since it was, and say where it is."""
    page = run / "report" / "index.html"
    if not page.exists() or page.stat().st_mtime <= last_change(run):
        from gristmill.report.page import build as build_page

        page = build_page(run)
    print(f"report: report open {shlex.quote(str(run))}, or {page}", file=sys.stderr)
    return page
