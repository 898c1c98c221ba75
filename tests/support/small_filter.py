"""The filtering pipeline over three dozen documents, in this process or in one of its own, in a second or two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.real_texts import real_texts
from tests.support.scripts import ROOT, environment

sys.path.append(str(ROOT / "pipelines"))

DOCUMENTS = 36
ROWS_PER_PARTITION = 10


def write_corpus(folder: Path) -> Path:
    """web.jsonl with copies and bad rows, and a tokenizer."""
    folder.mkdir(parents=True)
    texts = [text[:2_000] for text in real_texts(0) if len(text) > 1_000][:DOCUMENTS]
    rows = [json.dumps({"id": f"web-{number}", "text": text}) for number, text in enumerate([*texts, *texts[::7]])]
    rows[5:5], rows[20:20] = ["not JSON"], ['{"id": "no text"}']
    (folder / "web.jsonl").write_text("\n".join(rows) + "\n")
    byte_tokenizer(folder / "tokenizer.json")
    return folder


def arguments(corpus: Path, output: Path, workers: int = 0) -> list[str]:
    """Of pipelines/filter_olmo3.py."""
    given = ["--input", corpus / "web.jsonl", "--output", output, "--tokenizer", corpus / "tokenizer.json"]
    given += ["--workers", workers, "--max-bad-fraction", 0.2, "--ingest.rows-per-partition", ROWS_PER_PARTITION]
    return [str(argument) for argument in given]


def command(corpus: Path, output: Path, workers: int = 0) -> list[str]:
    return [sys.executable, str(ROOT / "pipelines" / "filter_olmo3.py"), *arguments(corpus, output, workers)]


def run(corpus: Path, output: Path, workers: int = 0, **options: object) -> tuple[int, str]:
    """(exit code, stderr) of the pipeline in a process of its own; `options` are of subprocess.run()."""
    given: dict = {
        "env": environment(),
        "capture_output": True,
        "text": True,
        "check": False,
        "timeout": 300,
        **options,
    }
    done = subprocess.run(command(corpus, output, workers), **given)
    return done.returncode, done.stderr


def run_here(corpus: Path, output: Path) -> None:
    """In this process. Raises what the runner raises."""
    from dag import PipelineConfig, build  # pyright: ignore[reportMissingImports]
    from gristmill.datapipe.ingest.ingest import IngestConfig
    from gristmill.datapipe.workflow.runner import Runner

    config = PipelineConfig(
        input=(str(corpus / "web.jsonl"),), output=output, tokenizer=corpus / "tokenizer.json", workers=0,
        max_bad_fraction=0.2, ingest=IngestConfig(rows_per_partition=ROWS_PER_PARTITION),
    )  # fmt: skip
    ingest, nodes = build(config)
    Runner(output, ingest, nodes, name="filter_olmo3", workers=0).run()
