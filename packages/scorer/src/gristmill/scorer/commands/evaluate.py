"""`scorer eval`: how good heads are on given labels, and whether another score is better."""

from __future__ import annotations

from pathlib import Path

from gristmill.base import cli


def evaluate(
    heads: Path,
    backbone: Path,
    labels: Path,
    output: Path,
    scores: cli.Repeated = (),
    curve: Path | None = None,
    audit: Path | None = None,
    config: Path | None = None,
) -> int | None:
    """Measure trained heads on graded documents, beside baselines and the scores of other systems.

    Writes the metrics as JSON and prints them in short. Labels with a column split are measured on select and audit;
    others, such as grades by people, whole.

    Examples:
        scorer eval --heads heads --backbone models/smollm2 --labels labels.parquet --output metrics.json
        scorer eval --heads heads --backbone models/smollm2 --labels people.parquet --scores edu=fineweb.parquet:score --output metrics.json
        scorer eval --heads heads --backbone models/smollm2 --labels labels.parquet --curve curve.json --output metrics.json

    Args:
        scores: another system's scores of the same documents, by column id: NAME=FILE.parquet:COLUMN. In whatever unit:
            how they order documents is compared.
        curve: a file for compute saved over false drops, as JSON; printed too.
        audit: of the oracle, by `scorer audit-oracle`, for the noise ceiling.
        config: TOML with the fields of ScoringConfig: dtype, device, threads ...
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.config import load
    from gristmill.base.files import read_object, write_json
    from gristmill.scorer.config import ScoringConfig
    from gristmill.scorer.heads.card import curve_table, summary
    from gristmill.scorer.heads.comparison import evaluate_folder
    from gristmill.scorer.heads.hub import locate
    from gristmill.scorer.tables import check_output, read_parquet

    for path in filter(None, (output, curve)):
        check_output(path)
    audited = read_object(audit, "give the audit.json of `scorer audit-oracle`", rubrics=dict) if audit else None
    settings = load(ScoringConfig, config)
    metrics = evaluate_folder(locate(heads), backbone, read_parquet(labels), scores, audited, settings)
    write_json(output, metrics)
    print(summary(metrics))
    if curve:
        write_json(curve, metrics["exits"])
        print("\n" + "\n".join(curve_table(metrics["exits"])))
    print(f"\n{output}: metrics of {sum(split['documents'] for split in metrics['splits'].values())} documents")
