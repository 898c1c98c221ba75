"""`scorer train-heads` and what works on a heads/ folder: thresholds, its card, its self-test, the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gristmill.base.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from gristmill.scorer.rubric import Rubric


def train_heads(
    labels: Path,
    backbone: Path,
    output: Path,
    rubric: str = "",
    config: Path | None = None,
    cache: Path | None = None,
    audit: Path | None = None,
) -> int | None:
    """Train probe and judge heads on a frozen backbone from graded documents.

    Writes a folder: scorer.json, heads.safetensors, metrics.json, README.md. Calibrate it before use.

    Examples:
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output heads
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output heads --config heads.toml
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output heads --cache features --audit audit/audit.json
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output code-heads --rubric code

    Args:
        rubric: a file or, where the labels are of several rubrics, the name of the one to train on.
        config: TOML with the fields of TrainConfig: taps, window_tokens, dtype, threads, epochs ...
        cache: a folder that keeps what the backbone made of each window, for the next training on this text.
        audit: of the oracle, by `scorer audit-oracle`: its reliability is the ceiling that heads are compared with.
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.config import load
    from gristmill.base.files import read_object
    from gristmill.scorer.config import TrainConfig
    from gristmill.scorer.heads.card import summary
    from gristmill.scorer.heads.distil import train_bundle
    from gristmill.scorer.tables import graded_with, read_parquet

    table = read_parquet(labels)
    chosen = _rubric(table, rubric, labels)
    audited = read_object(audit, "give the audit.json of `scorer audit-oracle`", rubrics=dict) if audit else None
    settings = load(TrainConfig, config)
    bundle = train_bundle(graded_with(table, chosen), chosen, backbone, output, settings, cache, audited)
    print(f"{summary(bundle.metrics)}\n\n{output}: {bundle.metrics['training']['reason']}; see {output / 'README.md'}")


def calibrate(
    heads: Path,
    backbone: Path,
    labels: Path,
    unlabelled: Path,
    documents: Path | None = None,
    config: Path | None = None,
    device: str = "",
    threads: int = 1,
) -> int | None:
    """Set tau_drop with a bound on false drops, and tau_keep to a keep rate per source.

    Exit code 3 where the labels cannot certify the bound; the message says how many more are needed.

    Examples:
        scorer calibrate --heads heads --backbone models/smollm2 --labels labels.parquet --unlabelled docs.jsonl
        scorer calibrate --heads heads --backbone models/smollm2 --labels labels.parquet --unlabelled docs.jsonl --config calibration.toml
        scorer calibrate --heads heads --backbone models/smollm2 --labels labels.parquet --documents docs.jsonl --unlabelled docs.jsonl --device cuda

    Args:
        unlabelled: a random sample of what will be scored.
        documents: those that the labels were drawn from, by id: bounds are certified on whole documents, and labels
            hold only what the oracle was shown.
        config: TOML with the fields of CalibrationConfig: max_false_drop, confidence, bounds, keep, keep_by ...
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.config import load
    from gristmill.scorer.config import CalibrationConfig, ScoringConfig
    from gristmill.scorer.heads import bundle
    from gristmill.scorer.heads.card import promise, threshold_table
    from gristmill.scorer.heads.thresholds import calibrate_bundle
    from gristmill.scorer.tables import graded_with, read_documents, read_parquet

    settings = load(CalibrationConfig, config)
    own = graded_with(read_parquet(labels), bundle.load(heads).rubric)
    scoring = ScoringConfig(device=device, threads=threads)
    whole = None if documents is None else read_documents(documents)
    result = calibrate_bundle(heads, backbone, own, read_documents(unlabelled), settings, scoring, whole)
    print("\n".join([promise(result), "", *threshold_table(result)]))


def inspect(heads: Annotated[Path, tyro.conf.Positional]) -> int | None:
    """Print the card of a heads/ folder after checking that its files belong together.

    Examples:
        scorer inspect heads
        scorer inspect hf://org/heads@v1
    """
    from gristmill.scorer.heads import bundle
    from gristmill.scorer.heads.hub import locate

    folder = locate(heads)
    bundle.load(folder)
    print((folder / "README.md").read_text(encoding="utf-8"), end="")


def selftest(
    heads: Annotated[Path, tyro.conf.Positional], backbone: Path, config: Path | None = None, device: str = ""
) -> int | None:
    """Check that heads give here the scores that they gave where they were trained.

    Examples:
        scorer selftest heads --backbone models/smollm2
        scorer selftest hf://org/heads --backbone hf://org/model --device cuda

    Args:
        config: TOML with the fields of ScoringConfig.
    """
    from gristmill.base.config import load
    from gristmill.scorer.config import ScoringConfig
    from gristmill.scorer.heads.hub import locate
    from gristmill.scorer.scoring.scorer import Scorer

    settings = load(ScoringConfig, config)
    scorer = Scorer.load(locate(heads), backbone, replace(settings, device=device or settings.device))
    stage = "cut at its taps" if scorer.backbone.staged else f"run as one: {scorer.backbone.reason}"
    print(f"{heads}: gives the scores that it gave when it was trained; {scorer.backbone.identity.name} is {stage}")


def push(
    heads: Annotated[Path, tyro.conf.Positional], target: Annotated[str, tyro.conf.Positional], private: bool = False
) -> int | None:
    """Publish a heads/ folder as a model repository, in one commit.

    Examples:
        scorer push heads hf://org/heads
        scorer push heads hf://org/heads --private
    """
    from gristmill.scorer.heads import hub

    commit = hub.push(heads, target, private)
    print(f"{target}@{commit}")


def pull(source: Annotated[str, tyro.conf.Positional], folder: Annotated[Path, tyro.conf.Positional]) -> int | None:
    """Fetch heads from a model repository, and check them.

    Examples:
        scorer pull hf://org/heads heads
        scorer pull hf://org/heads@v1 heads
    """
    from gristmill.scorer.heads import hub

    hub.pull(source, folder)
    print(f"{folder}: heads of {source}")


def _rubric(table: pa.Table, chosen: str, labels: Path) -> Rubric:
    from gristmill.scorer.rubric import load_rubric
    from gristmill.scorer.tables import rubrics_of

    carried = {rubric.name: rubric for rubric in rubrics_of(table, str(labels))}
    if chosen:
        return carried[chosen] if chosen in carried else load_rubric(Path(chosen))
    if len(carried) > 1:
        raise UsageError(f"{labels}: graded with {', '.join(carried)}; name the one to train on by --rubric NAME")
    if not carried:
        raise UsageError(f"{labels}: carries no rubric; name the one it was graded with by --rubric FILE")
    return next(iter(carried.values()))
