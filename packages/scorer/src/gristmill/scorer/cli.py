"""The `scorer` command: label, train-heads, calibrate, score, inspect. Heavy libraries load where they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gristmill.base import cli
from gristmill.base.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from gristmill.scorer.oracle.endpoint import EndpointEngine
    from gristmill.scorer.oracle.vllm import VLLMEngine
    from gristmill.scorer.rubric import Rubric


def label(
    input: Path,
    rubric: Path,
    model: str,
    output: Path,
    engine: Literal["vllm", "endpoint"] = "vllm",
    url: str = "http://localhost:8000/v1",
    style: Literal["completion", "chat"] = "completion",
    sample: int = 0,
    seed: int = 0,
    max_document_tokens: int = 256,
    windows: Literal["begin", "spread"] = "begin",
    threads: int = 1,
    tokenizer: Path | None = None,
) -> int | None:
    """Have an oracle grade documents on a rubric.

    Writes Parquet: id, source, the exact text shown, weight, split, one score per dimension, quality, status, reply.

    Examples:
        scorer label --input docs.jsonl --rubric pipelines/rubrics/general.toml --model models/oracle --output labels.parquet
        scorer label --input docs.jsonl --rubric general.toml --engine endpoint --url http://localhost:8000/v1 --style chat --model oracle --output labels.parquet

    Args:
        input: .jsonl, .jsonl.gz or .parquet with text, and id and source where known.
        model: a folder (vllm) or the name that the endpoint serves.
        sample: grade so many documents, stratified by source and length; 0 grades all.
        max_document_tokens: longer documents are trimmed to so many tokens of the oracle.
        tokenizer: folder with the endpoint model's tokenizer.json; without it tokens are estimated.
    """  # noqa: E501 (commands stand on one line)
    import pyarrow as pa

    from gristmill.base.config import to_mapping
    from gristmill.scorer.oracle.grade import grade_documents
    from gristmill.scorer.rubric import load_rubric
    from gristmill.scorer.sampling import split_of, stratified_sample
    from gristmill.scorer.tables import read_documents, with_rubric, write_parquet

    loaded = load_rubric(rubric)
    documents = read_documents(input)
    lengths = [len(text or "") for text in documents["text"].to_pylist()]
    drawn = stratified_sample(documents["source"].to_pylist(), lengths, sample or max(len(documents), 1), seed)
    chosen = documents.take(pa.array(drawn.indices))
    oracle = _oracle(engine, model, url, style, threads, tokenizer)
    try:
        grades = grade_documents(oracle, loaded, chosen["text"].to_pylist(), max_document_tokens, windows)
    finally:
        oracle.close()
    ids = chosen["id"].to_pylist()
    head = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "source": chosen["source"].cast(pa.string()),
            "weight": pa.array(drawn.weights, pa.float32()),
            "split": pa.array([split_of(identifier) for identifier in ids], pa.string()),
        }
    )
    for name in grades.column_names:
        head = head.append_column(name, grades[name])
    write_parquet(with_rubric(head, to_mapping(loaded)), output)
    failed = sum(status != "ok" for status in grades["status"].to_pylist())
    print(f"{output}: {len(head)} documents graded, {failed} of them with a failure (null, see column status)")


def train_heads(
    labels: Path, backbone: Path, output: Path, rubric: Path | None = None, config: Path | None = None
) -> int | None:
    """Train probe and judge heads on a frozen backbone from graded documents.

    Writes a folder: scorer.json, heads.safetensors, metrics.json, README.md. Calibrate it before use.

    Examples:
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output heads
        scorer train-heads --labels labels.parquet --backbone models/smollm2 --output heads --config heads.toml

    Args:
        rubric: needed only where the label file does not carry it.
        config: TOML with the fields of TrainConfig: taps, max_tokens, dtype, threads, epochs ...
    """
    from gristmill.base.config import load
    from gristmill.scorer.distil import train_bundle
    from gristmill.scorer.tables import read_parquet
    from gristmill.scorer.training import TrainConfig

    table = read_parquet(labels)
    bundle = train_bundle(table, _rubric(table, rubric, labels), backbone, output, load(TrainConfig, config))
    print(f"{output}: {bundle.metrics['training']['reason']}; see {output / 'README.md'}")


def calibrate(
    heads: Path, backbone: Path, labels: Path, unlabelled: Path, config: Path | None = None, threads: int = 1
) -> int | None:
    """Set tau_drop with a bound on false drops, and tau_keep to a keep rate per source.

    Exit code 3 where the labels cannot certify the bound; the message says how many more are needed.

    Examples:
        scorer calibrate --heads heads --backbone models/smollm2 --labels labels.parquet --unlabelled docs.jsonl
        scorer calibrate --heads heads --backbone models/smollm2 --labels labels.parquet --unlabelled docs.jsonl --config calibration.toml

    Args:
        unlabelled: a random sample of what will be scored.
        config: TOML with the fields of CalibrationConfig: max_false_drop, confidence, keep, keep_default, allow_uncertified.
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.config import load
    from gristmill.scorer.calibration import CalibrationConfig
    from gristmill.scorer.distil import calibrate_bundle
    from gristmill.scorer.tables import read_documents, read_parquet

    settings = load(CalibrationConfig, config)
    result = calibrate_bundle(heads, backbone, read_parquet(labels), read_documents(unlabelled), settings, threads)
    for name, group in result["groups"].items():
        drop = "none" if group["tau_drop"] is None else f"{group['tau_drop']:.3f}"
        keep = f"tau_keep {group['tau_keep']:.3f} keeps {group['keep_rate']:.1%}"
        print(f"{name}: tau_drop {drop} ({result['mode']}), {keep}")


def score(
    heads: Path, backbone: Path, input: Path, output: Path, threads: int = 1, early_exit: bool = True
) -> int | None:
    """Score documents with trained heads.

    Writes Parquet in input order: id, source, quality, probe, judge, exit, one score per dimension, tokens.

    Examples:
        scorer score --heads heads --backbone models/smollm2 --input docs.jsonl --output scores.parquet
        scorer score --heads heads --backbone models/smollm2 --input docs.parquet --output all.parquet --no-early-exit

    Args:
        early_exit: spare documents below their source's tau_drop the second stage.
    """
    from gristmill.scorer.scoring import Scorer
    from gristmill.scorer.tables import read_documents, write_parquet

    documents = read_documents(input)
    scorer = Scorer.load(heads, backbone, threads=threads)
    table = scorer.score(documents["text"].to_pylist(), documents["source"].to_pylist(), early_exit)
    table = table.add_column(0, "id", documents["id"]).add_column(1, "source", documents["source"])
    write_parquet(table, output)
    done = scorer.counters
    print(
        f"{output}: {done.documents} documents, {done.tokens} tokens, {done.exits} early exits, "
        f"{done.saved:.1%} of block-forwards saved, {done.padding_waste:.1%} padding"
    )


def inspect(heads: Path) -> int | None:
    """Print the card of a heads/ folder after checking that its files belong together.

    Examples:
        scorer inspect heads
        scorer inspect --heads runs/demo/heads
    """
    from gristmill.scorer import bundle

    bundle.load(heads)
    print((heads / "README.md").read_text(encoding="utf-8"), end="")


def _oracle(
    engine: str, model: str, url: str, style: Literal["completion", "chat"], threads: int, tokenizer: Path | None
) -> EndpointEngine | VLLMEngine:
    if engine == "endpoint":
        from gristmill.scorer.oracle.endpoint import EndpointConfig, EndpointEngine

        return EndpointEngine(EndpointConfig(url, model, style, tokenizer))
    from gristmill.scorer.oracle.vllm import VLLMConfig, VLLMEngine

    return VLLMEngine(VLLMConfig(Path(model), style, threads))


def _rubric(table: pa.Table, path: Path | None, labels: Path) -> Rubric:
    from gristmill.scorer.rubric import load_rubric, rubric_from_mapping
    from gristmill.scorer.tables import rubric_of

    if path is not None:
        return load_rubric(path)
    stored = rubric_of(table)
    if stored is None:
        raise UsageError(f"{labels}: carries no rubric; name the one it was graded with by --rubric FILE")
    return rubric_from_mapping(stored, str(labels))


def _inspect(arguments: list[str]) -> int | None:
    # `scorer inspect HEADS` reads better than a flag for the only argument there is.
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--heads", *arguments]
    return cli.typed(inspect, "scorer inspect")(arguments)


_inspect.__doc__ = inspect.__doc__


def main() -> None:
    commands = {
        "label": cli.typed(label, "scorer label"),
        "train-heads": cli.typed(train_heads, "scorer train-heads"),
        "calibrate": cli.typed(calibrate, "scorer calibrate"),
        "score": cli.typed(score, "scorer score"),
        "inspect": _inspect,
    }
    cli.main("scorer", commands, "Oracle grades distilled into a probe and a judge on a frozen backbone.")
