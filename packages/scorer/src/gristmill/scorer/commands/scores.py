"""`scorer score` and `scorer decide`: documents into scores, scores into decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gristmill.base import cli
from gristmill.base.errors import DataError, PartialError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from gristmill.scorer.heads.bundle import Bundle
    from gristmill.scorer.scoring.others import Other
    from gristmill.scorer.scoring.router import Router

PART_ROWS = 4096
LIBRARIES = ("torch", "transformers", "tokenizers")


def score(
    heads: cli.Repeated,
    backbone: Path,
    input: Path,
    output: Path,
    early_exit: bool = True,
    scorer: cli.Repeated = (),
    ensemble: Literal["none", "mean", "max"] = "none",
    fail_drift: bool = False,
    config: Path | None = None,
    threads: int | None = None,
    device: str = "",
) -> int | None:
    """Score documents with trained heads.

    Writes Parquet in input order: id, source, quality, probe, judge, exit, shadow, least, greatest, one score per
    dimension, tokens, windows, truncated, reason, rubric, heads. The same command goes on after it was stopped.

    Examples:
        scorer score --heads heads --backbone models/smollm2 --input docs.jsonl --output scores.parquet
        scorer score --heads hf://org/heads --backbone models/smollm2 --input docs.parquet --output all.parquet --no-early-exit
        scorer score --heads general --heads code=code-heads --backbone models/smollm2 --input mixed.parquet --output scores.parquet
        scorer score --heads heads --backbone models/smollm2 --input docs.jsonl --output scores.parquet --scorer edu=encoder:models/fineweb-edu --scorer dclm=fasttext:dclm.bin:hq --ensemble mean

    Args:
        heads: a folder or hf://ORG/NAME[@REVISION] for all documents, or TYPE=FOLDER for those of a content_type (where
            the input has none, of a source).
        early_exit: spare documents below their source's tau_drop the second stage.
        scorer: another scorer, as a column: NAME=encoder:FOLDER[:LABEL] or NAME=fasttext:FILE:LABEL.
        ensemble: a column of that name, of quality and all other scorers, each as its rank among the documents.
        fail_drift: end with exit code 4 where the scores are not distributed as they were when thresholds were set.
        config: TOML with the fields of ScoringConfig: dtype, batch_tokens, shadow, held_bytes ...
    """  # noqa: E501 (commands stand on one line)
    from gristmill.base.config import load
    from gristmill.scorer.config import ScoringConfig
    from gristmill.scorer.scoring import others
    from gristmill.scorer.scoring.parts import alone, finished, in_parts
    from gristmill.scorer.scoring.router import Router
    from gristmill.scorer.tables import TYPE, check_output, read_documents, write_parquet

    check_output(output)
    settings = load(ScoringConfig, config)
    settings = replace(settings, threads=threads or settings.threads, device=device or settings.device)
    folders = routes(heads)
    documents = read_documents(input)
    documents = documents.select([name for name in ("id", "source", TYPE, "text") if name in documents.column_names])
    given = others.parse(scorer)
    if ensemble != "none" and not given:
        raise UsageError(f"--ensemble {ensemble}: with what? Name another scorer by --scorer {others.FORMS}")
    with alone(output):
        router = Router.load(folders, backbone, settings)
        dimensions = [name for one in router.scorers.values() for name in one.bundle.rubric.names]
        more = others.open_scorers(given, dimensions)

        def one(part: pa.Table) -> pa.Table:
            return _score(part, router, more, early_exit)

        key = {"routes": _manifests(folders), "config": settings, "early_exit": early_exit, "scorers": _files(given)}
        table, known = in_parts(documents, output, PART_ROWS, key, one)
        if ensemble != "none":
            table = table.append_column("ensemble", _ensemble(table, ["quality", *more], ensemble))
        write_parquet(table, output)
        finished(output)
    print("\n".join(_told(output, table, router, known)))
    return _drift(table, router, fail_drift)


def decide(scores: Path, heads: cli.Repeated, output: Path) -> int | None:
    """Decide from stored scores, without a model: drop, band or keep, by the thresholds of calibrated heads.

    Writes Parquet: id, source, decision (null where there is no score). Another keep rate is another `scorer calibrate`
    and this command again; where exits would then go on to the judge it is refused, and the documents must be scored
    again.

    Examples:
        scorer decide --scores scores.parquet --heads heads --output decisions.parquet

    Args:
        heads: the folders that the scores were made with.
    """
    from gristmill.scorer.scoring.decide import decide
    from gristmill.scorer.tables import check_output, read_parquet, write_parquet

    check_output(output)
    table = read_parquet(scores)
    found = _calibrations(routes(heads))
    decisions = decide(table, found)
    write_parquet(table.select(["id", "source"]).append_column("decision", decisions), output)
    counts = {entry["values"]: entry["counts"] for entry in decisions.value_counts().to_pylist()}
    told = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("keep", "band", "drop"))
    print(f"{output}: {told}, {counts.get(None, 0)} without a score")


def routes(heads: Sequence[str]) -> dict[str, Path]:
    """The folder of each content type; "" is for all others. Heads on the Hub are downloaded.

    Raises:
        UsageError: two folders for one type.
    """
    from gristmill.scorer.heads.hub import locate

    found: dict[str, Path] = {}
    for one in heads:
        name, _, place = one.partition("=") if "=" in one else ("", "", one)
        if name in found:
            raise UsageError(f"--heads {one}: there are heads for {name or 'all others'} already ({found[name]})")
        found[name] = locate(place)
    if not found:
        raise UsageError("--heads is missing: a folder that `scorer train-heads` wrote, or hf://ORG/NAME")
    return found


def _score(part: pa.Table, router: Router, more: dict[str, Any], early_exit: bool) -> pa.Table:
    import pyarrow as pa

    from gristmill.scorer.tables import TYPE

    texts, sources = part["text"].to_pylist(), part["source"].to_pylist()
    types = part[TYPE].to_pylist() if TYPE in part.column_names else None
    table = router.score(texts, sources, types, early_exit)
    for name, other in more.items():
        scores = pa.array(other.score([text or "" for text in texts]), pa.float32(), from_pandas=True)
        table = table.append_column(name, scores)
    return table.add_column(0, "id", part["id"]).add_column(1, "source", part["source"])


def _ensemble(table: pa.Table, names: Sequence[str], how: Literal["mean", "max"]) -> pa.Array:
    import pyarrow as pa

    from gristmill.scorer.heads.labels import floats
    from gristmill.scorer.scoring.others import ensemble

    return pa.array(ensemble({name: floats(table, name) for name in names}, how), pa.float32(), from_pandas=True)


def _told(output: Path, table: pa.Table, router: Router, known: int) -> list[str]:
    lines: list[str] = []
    for scorer in {id(one): one for one in router.scorers.values()}.values():
        done = scorer.counters
        seconds = ", ".join(f"{name} {spent:.1f} s" for name, spent in sorted(done.seconds.items()))
        lines.append(
            f"{scorer.bundle.rubric.name}: {done.documents} documents, {done.tokens} tokens, {done.exits} early exits "
            f"({done.shadow} judged all the same), {done.saved:.1%} of block-forwards saved, "
            f"{done.padding_waste:.1%} padding, {done.flops:.2e} FLOPs; {seconds}"
        )
        lines += [f"  {name}: {_counted(counts)}" for name, counts in sorted(done.sources.items())]
        lines += [f"  without a score: {count} ({reason})" for reason, count in sorted(done.unscored.items())]
    lines += _audit(table, router)
    there = f", {known} of their parts by an earlier start" if known else ""
    return [*lines, f"{output}: {len(table)} documents{there}"]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _audit(table: pa.Table, router: Router) -> list[str]:
    from gristmill.scorer.scoring.decide import live_false_drops

    calibrations = _calibrated(router)
    found = live_false_drops(table, calibrations) if len(calibrations) == len(_bundles(router)) else None
    if found is None:
        return []
    return [
        f"exits audited: {found['audited']} of {found['exits']}, {found['wrong']} would be kept by the judge: "
        f"{found['false_drop']:.2%} of what it would keep exits early (at most {found['upper']:.2%}, 95%)"
    ]


def _drift(table: pa.Table, router: Router, fail: bool) -> int | None:
    import pyarrow as pa

    from gristmill.scorer.heads.drift import check_drift

    found = []
    for heads, calibration in _calibrated(router).items():
        own = table.filter(pa.array([name == heads for name in table["heads"].to_pylist()], pa.bool_()))
        found += [drift for drift in check_drift(own, calibration) if drift.drifted]
    for drift in found:
        print(f"drift: {drift}")
    if found and fail:
        raise PartialError(f"{len(found)} sources are not distributed as when thresholds were set; calibrate again")
    return None


def _bundles(router: Router) -> dict[str, Bundle]:
    return {scorer.bundle.identity: scorer.bundle for scorer in router.scorers.values()}


def _calibrated(router: Router) -> dict[str, dict[str, Any]]:
    """The calibrations of those heads that have one."""
    found = _bundles(router).items()
    return {name: bundle.calibration for name, bundle in found if bundle.calibration is not None}


def _calibrations(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    from gristmill.scorer.heads.files import check_files, identity, read_calibration

    found: dict[str, dict[str, Any]] = {}
    for folder in folders.values():
        check_files(folder)
        name, calibration = identity(folder), read_calibration(folder)
        if calibration is None:
            raise DataError(f"{folder}: not calibrated, so there are no thresholds to decide by; `scorer calibrate` it")
        if found.get(name, calibration) != calibration:
            raise UsageError(f"{folder}: the same heads are given with other thresholds too; give one of them")
        found[name] = calibration
    return found


def _manifests(folders: dict[str, Path]) -> dict[str, str]:
    from gristmill.base.files import sha256_file
    from gristmill.scorer.heads.files import MANIFEST

    return {route: sha256_file(folder / MANIFEST) for route, folder in folders.items()}


def _files(given: Sequence[Other]) -> dict[str, Any]:
    """Other scorers with the hashes of their files, and the libraries that all scores come from."""
    import importlib.metadata

    from gristmill.base.files import sha256_file, sha256_folder

    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name, kind, path, label in given:
        found[f"scorer {name}"] = [kind, label, sha256_folder(path) if path.is_dir() else sha256_file(path)]
    return found
