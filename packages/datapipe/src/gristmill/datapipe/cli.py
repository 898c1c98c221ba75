"""`datapipe`: look into a run folder, check it, and ask why a document was kept or dropped."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Literal

from gristmill.base import cli
from gristmill.datapipe import pipelines

ABOUT = """
Documents -> annotations -> selection -> shards. Pipelines (pipelines/*.py) make run folders; this looks into them.
"""


def main() -> None:
    cli.main(
        "datapipe",
        {
            "run": pipelines.run,
            "plan": pipelines.plan,
            "status": cli.typed(status, "datapipe status"),
            "explain": cli.typed(explain, "datapipe explain"),
            "what-if": cli.typed(what_if, "datapipe what-if"),
            "diff": cli.typed(diff, "datapipe diff"),
            "train-perplexity": cli.typed(train_perplexity, "datapipe train-perplexity"),
            "duplicates": cli.typed(duplicates, "datapipe duplicates"),
            "index": cli.typed(index, "datapipe index"),
            "contamination": cli.typed(contamination, "datapipe contamination"),
            "index-evals": cli.typed(index_evals, "datapipe index-evals"),
            "verify": cli.typed(verify, "datapipe verify"),
            "gc": cli.typed(gc, "datapipe gc"),
        },
        ABOUT,
    )


def status(run: Path, /, json: bool = False) -> None:
    """What a run has done: every node, its partitions, seconds and counts, and what was quarantined.

    Examples:
        datapipe status runs/demo
        datapipe status runs/demo --json

    Args:
        run: the run folder.
        json: print run.json instead of a table.
    """
    from gristmill.datapipe.workflow.record import read_record, table

    record = read_record(run)
    print(json_module.dumps(record, indent=2) if json else "\n".join(table(record)))


def explain(run: Path, document: str, /) -> None:
    """Why one document was kept or dropped, rule by rule, value against threshold.

    Examples:
        datapipe explain runs/demo wiki-en-42
        datapipe explain runs/demo "code.jsonl:17"

    Args:
        run: the run folder.
        document: the document's id.
    """
    from gristmill.datapipe.explain import explain as lines

    print("\n".join(lines(run, document)))


def what_if(
    run: Path,
    /,
    set: cli.Repeated = (),
    without: cli.Repeated = (),
    policy: Path | None = None,
    samples: int = 5,
    json: bool = False,
) -> None:
    """What another policy would keep, from the numbers that the run has stored: seconds, and nothing is written.

    Examples:
        datapipe what-if runs/demo --set words.min=100 --set words.sources.code.min=10
        datapipe what-if runs/demo --without near_duplicate
        datapipe what-if runs/demo --policy pipelines/policies/gopher.toml

    Args:
        run: the run folder.
        set: RULE.KEY=VALUE, as often as needed: min, max, allowed, keep, missing, or sources.NAME.min.
        without: a rule to leave out, as often as needed.
        policy: judge by this file instead of the run's own policy.
        samples: how many documents to name that would change sides, each way.
        json: print the answer as JSON.
    """
    from dataclasses import asdict

    from gristmill.datapipe import what_if as module

    answer = module.what_if(run, module.policy_of(run, policy, set, without), samples)
    print(json_module.dumps(asdict(answer), indent=2) if json else "\n".join(module.table(answer)))


def diff(
    run_a: Path,
    run_b: Path,
    /,
    samples: int = 3,
    by: Literal["id", "row", "text"] | None = None,
    json: bool = False,
) -> None:
    """Which documents another run keeps or drops otherwise, by which rule, and what was changed that could be why.

    Documents are the same by id and source; where ids repeat by file and row, and where no file has the name that it
    had, by text and source. The answer says which. Nothing is measured again, and nothing is written but, where the
    runs' partitions differ, about 50 bytes per document under TMPDIR for as long as it takes.

    Examples:
        datapipe diff runs/olmo3 runs/olmo3-strict
        datapipe diff runs/2025 runs/2026 --samples 10
        datapipe diff runs/2025 runs/2026 --by text --json

    Args:
        run_a: the run folder to compare with.
        run_b: the run folder that is compared.
        samples: how many documents to name for each change, with value and threshold in both runs.
        by: how to tell that two documents are the same one, whatever would be chosen.
        json: print the answer as JSON.
    """
    from dataclasses import asdict

    from gristmill.datapipe import run_diff as module

    answer = module.run_diff(run_a, run_b, samples, by)
    print(json_module.dumps(asdict(answer), indent=2) if json else "\n".join(module.table(answer)))


def duplicates(
    run: Path,
    /,
    of: Literal["exact", "same_url", "near", "semantic"] | None = None,
    limit: int = 20,
    json: bool = False,
) -> None:
    """How much of a run repeats itself: cluster sizes, which source repeats which, and the largest clusters.

    Examples:
        datapipe duplicates runs/demo
        datapipe duplicates runs/demo --of near --limit 5
        datapipe duplicates runs/demo --json

    Args:
        run: the run folder.
        of: one kind of duplicates; all that the run has measured where it is left out.
        limit: how many of the largest clusters to show.
        json: print the answer as JSON, with the excerpts and differences that the report's page shows.
    """
    from gristmill.datapipe.duplicate_report import duplicate_reports, table

    reports = duplicate_reports(run, of, limit)
    if json:
        print(json_module.dumps({"annotations": reports}, indent=2))
    else:
        print("\n\n".join("\n".join(table(report)) for report in reports))


def train_perplexity(
    inputs: tuple[str, ...],
    /,
    output: Path,
    order: int = 5,
    prune: tuple[int, ...] = (0, 0, 1),
    source: cli.Repeated = (),
    text_field: str = "text",
    source_field: str = "source",
    max_words: cli.Tokens = 50_000_000,
) -> None:
    """Make an n-gram language model of clean text, for rules on perplexity.* and outliers.*.

    Modified Kneser-Ney, as KenLM's lmplz, written as ARPA with a JSON file beside it that says how text was split.

    Examples:
        datapipe train-perplexity runs/demo --source wiki --output wiki.arpa.gz
        datapipe train-perplexity 'clean/*.jsonl.zst' --output clean.arpa.gz --order 4

    Args:
        inputs: JSONL (.gz, .zst) and Parquet files, folders of those, or run folders.
        output: the model, .arpa or .arpa.gz.
        order: the longest n-gram, 2 to 6.
        prune: n-grams of order i + 1 that occur at most prune[i] times are left out; the last holds for longer ones.
        source: only documents of this source, as often as needed.
        text_field: the column or field that holds the text.
        source_field: the column or field that holds the source.
        max_words: read documents until so many words; each takes about 100 bytes of memory.
    """
    from gristmill.datapipe.perplexity.train import TrainConfig, train

    config = TrainConfig(order, prune, source, text_field, source_field, max_words)
    about = train(inputs, output, config)
    ngrams = ", ".join(f"{count:,}" for count in about["ngrams"])
    for reason, count in about["skipped"].items():
        print(f"skipped {count:,} rows: {reason}", file=sys.stderr)
    print(f"{output}: {about['words']:,} words in {about['sentences']:,} sentences; n-grams by order {ngrams}")


def index(
    runs: tuple[Path, ...],
    /,
    output: Path,
    extend: Path | None = None,
    all: bool = False,
    threshold: float = 0.7,
    replace: bool = False,
) -> None:
    """Save the signatures of finished runs, so that later runs find what these have already: stage `known`.

    The text is not read again, neither now nor then.

    Examples:
        datapipe index runs/web2025 --output web2025.index
        datapipe index runs/web2026 --extend web2025.index --output web2026.index

    Args:
        runs: run folders, in the order in which their documents count as earlier.
        output: the folder to write.
        extend: an index whose documents come first; it is left as it is.
        all: every document, not only those that each run's selection keeps.
        threshold: least similarity, 0 to 1, that the index is meant to find.
        replace: put it in the place of the index that is there.
    """
    from gristmill.datapipe.dedup.index_writer import build

    about = build(runs, output, all, threshold, extend, replace)
    size = sum(file["bytes"] for file in about["files"].values())
    bands = f"{about['bands']['bands']} bands of {about['bands']['rows']}"
    print(f"{output}: {about['entries']:,} documents, {bands}, {size / 1e6:,.1f} MB")


def contamination(
    run: Path,
    /,
    sets: cli.Repeated = (),
    limit: int = 20,
    json: bool = False,
    question: cli.Repeated = (),
    answer: cli.Repeated = (),
    passage: cli.Repeated = (),
) -> None:
    """What of a run's documents stands in evaluation sets: how many by set and by source, and the strongest matches.

    Examples:
        datapipe contamination runs/demo
        datapipe contamination runs/demo --sets evals --limit 5

    Args:
        run: the run folder.
        sets: a folder of evaluation sets, to show the items beside the documents.
        limit: how many matches to show.
        json: print the answer as JSON.
        question: the field of a set that holds the question, where its name says nothing.
        answer: the field that holds the answer.
        passage: the field that holds the passage.
    """
    from gristmill.datapipe.contamination import report as module
    from gristmill.datapipe.contamination.eval_sets import locate
    from gristmill.datapipe.contamination.fields import FieldNames

    answered = module.contamination_report(run, locate(sets), limit, FieldNames(question, answer, passage))
    print(json_module.dumps(answered, indent=2) if json else "\n".join(module.lines(answered)))


def index_evals(
    sets: tuple[str, ...],
    /,
    output: Path,
    question: cli.Repeated = (),
    answer: cli.Repeated = (),
    passage: cli.Repeated = (),
) -> None:
    """Hash evaluation sets into one file without text, which `--contamination.sets` takes in place of their folder.

    Examples:
        datapipe index-evals evals --output evals.parquet
        datapipe index-evals evals more/gpqa.jsonl bundled --output all.parquet --answer rationale

    Args:
        sets: folders of JSONL (.gz, .zst), one file a set; single files; other indexes; or `bundled`.
        output: the file to write, *.parquet.
        question: a field to look for the question in, before the names that are known; as often as needed.
        answer: the same for the answer.
        passage: the same for the passage.
    """
    from gristmill.base.errors import UsageError
    from gristmill.datapipe.contamination.eval_sets import is_index, locate
    from gristmill.datapipe.contamination.fields import FieldNames
    from gristmill.datapipe.contamination.hashed import MIN_WORDS, read_sets, write_index

    if not is_index(output):
        raise UsageError(f"--output {output}: name it *.parquet")
    read = read_sets(locate(sets), FieldNames(question, answer, passage))
    write_index(read, output)
    for name, told in read.counts.items():
        left = f", {told.short:,} too short (under {MIN_WORDS} words)" if told.short else ""
        print(f"{name}: {told.items:,} items{left}{f', {told.repeated:,} repeated' if told.repeated else ''}")
    print(f"{output}: {len(read.table):,} items, {output.stat().st_size / 1e6:.2f} MB")


def verify(run: Path, /) -> None:
    """Hash every output again and compare with the ledger; exit 3 names what differs.

    Examples:
        datapipe verify runs/demo
        datapipe verify /data/runs/olmo3-en

    Args:
        run: the run folder.
    """
    from gristmill.datapipe.workflow.verify import verify as check

    print(f"{check(run):,} outputs match the ledger")


def gc(run: Path, /, dry_run: bool = False, shuffles: bool = False, older_than: str = "") -> None:
    """Remove from a run folder what no run needs, and tell what was freed, by folder.

    That is: half-written files and folders of processes that died; work of steps and shuffles that are done, or no
    longer in the pipeline; outputs of nodes that the last run had not, where they are as those nodes left them. Never
    documents, what is in quarantine now, outputs of the last run, what a stopped step goes on from, or what is not of
    the pipeline.
    Refused while a run is at work in the folder.

    Examples:
        datapipe gc runs/demo --dry-run
        datapipe gc runs/demo
        datapipe gc runs/demo --shuffles --older-than 7d

    Args:
        run: the run folder.
        dry_run: tell what would go, and remove nothing.
        shuffles: remove RUN/shuffles too: entries on their way to annotations, made again when something needs them.
        older_than: only what was last changed so long ago, as 30m, 12h, 7d or 4w.
    """
    from gristmill.base.durations import seconds_of
    from gristmill.datapipe.workflow import gc as module

    age = seconds_of(older_than, "--older-than") if older_than else 0.0
    print("\n".join(module.table(module.gc(run, dry_run, shuffles, age), dry_run)))
