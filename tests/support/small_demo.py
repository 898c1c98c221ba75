"""The demo's DAG over a few hundred documents and with tiny models, in well under a minute: for tests of faults.

    python tests/support/small_demo.py --inputs FOLDER --oracle URL --output RUN [--workers N] [--force NODE ...]

Text comes from what is installed; an oracle of tests/support/oracle_server.py takes the place of vLLM, a random
backbone that of SmolLM2. All else is the demo's: its policy, its nodes, in small.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "pipelines"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from tests.support.real_texts import real_texts  # noqa: E402

from dag import PipelineConfig, build, run  # noqa: E402  # pyright: ignore[reportMissingImports]
from gristmill.base import cli  # noqa: E402
from gristmill.datapipe.contamination.eval_sets import EvalSetsConfig  # noqa: E402
from gristmill.datapipe.filters.perplexity import PerplexityConfig  # noqa: E402
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig  # noqa: E402
from gristmill.datapipe.pack import Pack, PackConfig  # noqa: E402
from gristmill.datapipe.stages.tokens import Tokenise, TokenizerConfig  # noqa: E402
from gristmill.datapipe.workflow.options import RunOptions  # noqa: E402
from gristmill.datapipe.workflow.stage import Node  # noqa: E402
from gristmill.scorer.config import CalibrationConfig  # noqa: E402
from gristmill.scorer.config import TrainConfig as HeadsConfig  # noqa: E402
from gristmill.trainer.config import BatchConfig, TrainConfig  # noqa: E402
from gristmill.trainer.model.config import ModelSection  # noqa: E402
from nodes import Compare, SampleConfig, Train  # noqa: E402  # pyright: ignore[reportMissingImports]

DOCUMENTS = 240
"""Of prose; then a third of that in code, copies, near copies and bad rows."""
CHARACTERS = 1_500
BAD_ROWS = [b"not JSON", b'{"text": 3}', b'{"id": "no text"}', b'{"text": ""}', b'{"text": "\xff\xfe"}', b"[1, 2]"]
MIXTURE = """
[mixture]
name = "small"
seed = 0
on_exhausted = "error"
[mixture.weights]
docs = 3
code = 1
[mixture.max_epochs]
default = 100
"""


@dataclass(frozen=True)
class SmallConfig(RunOptions):
    inputs: Path = Path("inputs")
    """What write_inputs() made."""
    output: Path = Path("run")
    oracle: str = ""
    workers: int = 2


def write_inputs(folder: Path) -> None:
    """docs.jsonl and code.jsonl.gz with duplicates and bad rows, and the models: everything that a run reads."""
    from gristmill.datapipe.perplexity import train as perplexity
    from gristmill.scorer.backbone.tiny import write_tiny

    folder.mkdir(parents=True)
    docs = [json.dumps({"id": f"docs-{number}", "text": text}).encode() for number, text in enumerate(_prose())]
    code = [json.dumps({"id": f"code-{name}", "text": text}).encode() for name, text in _modules()]
    (folder / "docs.jsonl").write_bytes(b"\n".join(_with_bad_rows(docs)) + b"\n")
    with gzip.open(folder / "code.jsonl.gz", "wb") as file:
        file.write(b"\n".join(_with_bad_rows(code)))
    (folder / "mixture.toml").write_text(MIXTURE)
    general = (ROOT / "pipelines" / "rubrics" / "general.toml").read_text()
    # Another name, and the same levels: those are what the oracle of the tests answers.
    (folder / "code.toml").write_text(general.replace('name = "general"', 'name = "code"', 1))
    perplexity.train([str(folder / "docs.jsonl")], folder / "prose.arpa.gz", perplexity.TrainConfig(order=3))
    write_tiny(folder / "backbone", layers=4)


def _prose() -> list[str]:
    """Paragraphs of help texts and package descriptions; then every fifth again, and every seventh a little changed."""
    pieces: list[str] = []
    for text in real_texts(30):
        piece = ""
        for paragraph in text.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) > CHARACTERS:
                pieces.append(piece[: 3 * CHARACTERS])
                piece = ""
    step = max(1, len(pieces) // DOCUMENTS)
    chosen = pieces[::step][:DOCUMENTS]
    near = [text.replace(" the ", " this ", 1) + "\nThe end." for text in chosen[::7]]
    return [*chosen, *chosen[::5], *near, "too short", "again and again the same line of words\n" * 40]


def _modules() -> list[tuple[str, str]]:
    """Small modules of the standard library; those of `encodings` are near copies of each other."""
    library = Path(json.__file__).parents[1]
    found = [
        path for name in ("encodings", "email", "json", "logging", "wsgiref") for path in (library / name).glob("*.py")
    ]
    small = [(path.relative_to(library).as_posix(), path.read_text(encoding="utf-8")) for path in sorted(found)]
    return [(name, text) for name, text in small if 200 < len(text) < 8_000][: DOCUMENTS // 3]


def _with_bad_rows(rows: list[bytes]) -> list[bytes]:
    """A bad row after every twentieth."""
    mixed: list[bytes] = []
    for number, row in enumerate(rows):
        mixed.append(row)
        if number % 20 == 19:
            mixed.append(BAD_ROWS[number // 20 % len(BAD_ROWS)])
    return mixed


def dag(config: SmallConfig) -> tuple[Ingest, list[Node]]:
    """The nodes of pipelines/demo.py, in their order."""
    inputs, backbone, mixture = config.inputs, config.inputs / "backbone", config.inputs / "mixture.toml"
    pipeline = PipelineConfig(
        input=(str(inputs / "*.jsonl*"),), output=config.output, policy=ROOT / "pipelines" / "policies" / "demo.toml",
        oracle=f"{config.oracle}#stub", backbone=backbone, workers=config.workers, mixture=(mixture,),
        max_bad_fraction=0.2, perplexity=PerplexityConfig(model=str(inputs / "prose.arpa.gz")),
        contamination=EvalSetsConfig(sets=("bundled",)), ingest=IngestConfig(rows_per_partition=48),
        bpe=TokenizerConfig(vocabulary=512, characters=200_000),
        sample=SampleConfig(documents=160, unlabelled=120, per_partition=54),
        heads=HeadsConfig(taps=(1, 3), window_tokens=32, epochs=4, judge_epochs=4),
        calibration=CalibrationConfig(max_false_drop=0.2, keep_default=0.6, allow_uncertified=True),
        rubrics={"code": inputs / "code.toml"}, pack=PackConfig(valid_fraction=0.2),
        oracle_tokens=32,
    )  # fmt: skip
    ingest, nodes = build(pipeline)
    model = ModelSection(
        preset="tiny", width=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, top_k=2, expert_width=32
    )
    training = TrainConfig(
        tokens=64 * 4 * 40, checkpoint_every=5, validate_every=10, validate_tokens=2_000, model=model,
        batch=BatchConfig(sequence=64, sequences=4, micro=4),
    )  # fmt: skip
    nodes += [
        Tokenise(name="tokens_raw"),
        Pack("shards_raw", "shards/raw", pipeline.pack, None, ("language", "scores"), (mixture,), "tokens_raw"),
        Train("filtered", "shards_filtered", "shards_raw", training, mixture),
        Train("raw", "shards_raw", "shards_raw", training, mixture),
        Compare("train_filtered", "train_raw", "shards_filtered"),
    ]
    return ingest, nodes


def main(arguments: list[str]) -> int:
    config = cli.parse_config(SmallConfig, arguments, "small_demo.py", __doc__ or "")
    ingest, nodes = dag(config)
    run(config, config.output, ingest, nodes, "small_demo", config.workers)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded("small_demo.py", lambda: main(sys.argv[1:])))
