#!/usr/bin/env python3
"""The whole mission once, on real text: filter, dedup, grade, distil, score, select, pack, publish, train, compare.

    ./dev demo              about ten minutes on two cores; again: seconds, all cached
    ./dev demo --quick      a tenth of the text, for tests

Text and models come from packages (pipelines/demo_inputs.py). The oracle, SmolLM2-135M in the real vLLM engine, is far
too small to judge well: the demo shows that the machinery works, not what a large oracle would find.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import demo_inputs
from dag import HERE, PipelineConfig, build, report, run
from demo_models import smollm2
from gristmill.base import cli
from gristmill.base.files import read_json, sha256_file
from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig
from gristmill.datapipe.filters.perplexity import PerplexityConfig
from gristmill.datapipe.ingest.ingest import IngestConfig
from gristmill.datapipe.pack import Pack, PackConfig
from gristmill.datapipe.perplexity import train as perplexity
from gristmill.datapipe.stages.tokens import Tokenise, TokenizerConfig
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.scorer.config import CalibrationConfig
from gristmill.scorer.config import TrainConfig as HeadsConfig
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.config import ModelSection
from nodes import Compare, SampleConfig, Train


@dataclass(frozen=True)
class DemoConfig(RunOptions):
    output: Path = Path("runs/demo")
    """The run folder; the gathered text goes beside it."""
    quick: bool = False
    """A tenth of everything."""
    workers: int = 2
    """Ray workers; 0 runs everything in this process."""


def main(arguments: list[str]) -> int:
    config = cli.parse_config(DemoConfig, arguments, "demo", __doc__ or "")
    started = time.monotonic()
    inputs = demo_inputs.gather(
        config.output.with_name(f"{config.output.name}-inputs"), demo_inputs.QUICK if config.quick else demo_inputs.FULL
    )
    pipeline = _pipeline(config, inputs, smollm2(), _clean_text_model(inputs))
    ingest, nodes = build(pipeline)
    mixture = HERE / "mixtures" / "demo.toml"
    quick, every = config.quick, 20 if config.quick else 100
    training = TrainConfig(
        tokens=40_960 if quick else 614_400,
        checkpoint_every=every,
        validate_every=every,
        validate_tokens=20_000,
        model=ModelSection(preset="tiny"),
        batch=BatchConfig(sequence=256, sequences=4, micro=4),
    )
    nodes += [
        Tokenise(name="tokens_raw"),  # unedited
        Pack("shards_raw", "shards/raw", pipeline.pack, None, ("language", "scores"), pipeline.mixture, "tokens_raw"),
        Train("filtered", "shards_filtered", "shards_raw", training, mixture),
        Train("raw", "shards_raw", "shards_raw", training, mixture),
        Compare("train_filtered", "train_raw", "shards_filtered"),
    ]
    if not run(config, config.output, ingest, nodes, "demo", config.workers):
        return 0
    page = report(config.output)
    print("\n".join(findings(config.output, page, time.monotonic() - started)))
    return 0


def _pipeline(config: DemoConfig, inputs: list[Path], model: Path, lm: Path) -> PipelineConfig:
    quick = config.quick
    return PipelineConfig(
        input=tuple(str(path) for path in inputs), output=config.output, policy=HERE / "policies" / "demo.toml",
        oracle=str(model), backbone=model, workers=config.workers, mixture=(HERE / "mixtures" / "demo.toml",),
        perplexity=PerplexityConfig(model=str(lm)), contamination=EvalSetsConfig(sets=("bundled",)),
        ingest=IngestConfig(rows_per_partition=512), bpe=TokenizerConfig(vocabulary=4096, characters=4_000_000),
        sample=SampleConfig(documents=160 if quick else 400, unlabelled=240 if quick else 800),
        heads=HeadsConfig(taps=(8, 16), window_tokens=128),
        # A few hundred labels may certify 10% at 95% confidence, or may not: then exits are stamped as not certified.
        # A real run labels thousands, asks for 1%, and is refused what its labels cannot show.
        calibration=CalibrationConfig(max_false_drop=0.10, keep_default=0.4, allow_uncertified=True),
        pack=PackConfig(valid_fraction=0.05, licences=demo_inputs.LICENCES),
        oracle_tokens=128 if quick else 256,
    )  # fmt: skip


def _clean_text_model(inputs: list[Path]) -> Path:
    """An n-gram model of the gathered encyclopaedia, as `datapipe train-perplexity` makes one; made once."""
    wiki = next(path for path in inputs if path.name.startswith("wiki."))
    model = wiki.with_name(f"wiki-{sha256_file(wiki)[:8]}.arpa.gz")
    if not model.exists():
        perplexity.train([str(wiki)], model, perplexity.TrainConfig(order=4))
    return model


def findings(run: Path, page: Path, seconds: float) -> list[str]:
    """What the run found, in ten lines, honest about whether filtering helped."""
    record, funnel = read_json(run / "run.json"), read_json(run / "selection" / "funnel.json")
    calibration, comparison = (
        read_json(run / "heads" / "general" / "calibration.json"),
        read_json(run / "comparison" / "comparison.json"),
    )

    def left(rule: str) -> tuple[int, int]:
        rows = [row for row in funnel["rows"] if row["rule"] == rule]
        return sum(row["documents"] for row in rows), sum(row["tokens"] for row in rows)

    steps = ["(all)", *funnel["rules"]]
    drops = {rule: left(before)[0] - left(rule)[0] for before, rule in pairwise(steps)}
    largest = sorted(drops, key=lambda rule: -drops[rule])[:4]
    (documents, tokens), (kept, kept_tokens) = left(steps[0]), left(steps[-1])
    counts = {node["name"]: node["counts"] for node in record["nodes"]}
    heads = counts["heads_general"]
    lines = [
        f"documents   {documents:,} in, {kept:,} kept ({kept / documents:.0%}), "
        f"{record['quarantine']['total']:,} quarantined",
        f"tokens      {tokens:,} in, {kept_tokens:,} kept ({kept_tokens / tokens:.0%})",
        f"dropped by  {', '.join(f'{rule} {drops[rule]:,}' for rule in largest)}",
        f"duplicates  {counts['exact']['duplicates']:,} exact, {counts['near']['duplicates']:,} near or exact",
        f"oracle      {heads['labels']} documents graded, {heads['failed_grades']} failed; "
        f"{'judge and probe' if heads['judge'] else 'probe alone'} distilled",
        f"early exit  {_exit(calibration)}",
    ]
    for row in comparison["sets"]:
        if row["name"] in ("all", "kept by the policy"):
            low, high = row["ci95"]
            lines.append(
                f"held out    {row['name']}: filtered {row['a_bits_per_byte']:.3f}, raw {row['b_bits_per_byte']:.3f} "
                f"bits per byte ({row['difference']:+.3f}, 95% {low:+.3f} to {high:+.3f}): {_verdict(row['verdict'])}"
            )
    return [
        *lines,
        f"published   {run / 'published'}   (shards verify {run / 'published'})",
        f"look at     report open {shlex.quote(str(run))}   (or {page}; {seconds:.0f} s in all)",
    ]


def _exit(calibration: dict) -> str:
    limit, good = f"{calibration['max_false_drop']:.0%}", calibration["n_good"]
    if calibration["exit_rate"] == 0:
        return f"none: {good} good labels certify no exit that loses at most {limit} of the good documents"
    earned = f"certified at {calibration['confidence']:.0%}" if calibration["mode"] == "certified" else "not certified"
    return f"{calibration['exit_rate']:.0%} of documents end at the probe, at most {limit} of the good ones ({earned})"


def _verdict(verdict: str) -> str:
    return {"better": "filtering helped", "worse": "filtering hurt"}.get(verdict, "filtering made no clear difference")


if __name__ == "__main__":
    sys.exit(cli.guarded("demo", lambda: main(sys.argv[1:])))
