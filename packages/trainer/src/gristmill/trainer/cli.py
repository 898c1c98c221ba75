"""The `trainer` command: run, resume, evaluate, compare, generate, export.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro.conf

from gristmill.base import cli
from gristmill.trainer.config import TrainConfig

Device = Literal["auto", "cpu", "cuda"]


def run(arguments: list[str]) -> int:
    """Train a model from published shards; the same command resumes an unfinished run, and leaves a finished one alone.

    Every field of the configuration is a flag, and a key of the TOML file that --config names; flags win.

    Examples:
        trainer run --mixture web40_code20 --data shards/filtered --output training/filtered
        trainer run --config small.toml --tokens 50000000 --model.preset small --precision bf16 --output training/small
    """
    config = cli.parse_config(TrainConfig, arguments, "trainer run", inspect.cleandoc(run.__doc__ or ""))
    from gristmill.trainer import loop

    print(_outcome(loop.train(config), config.output))
    return 0


def resume(run: Annotated[Path, tyro.conf.Positional]) -> int:
    """Go on with a run that was stopped, with the configuration stored in its folder.

    Examples:
        trainer resume training/filtered
        trainer resume training/small

    Args:
        run: the run's folder.
    """
    from gristmill.trainer import loop

    print(_outcome(loop.resume(run), str(run)))
    return 0


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    data: str,
    split: Literal["valid", "train"] = "valid",
    tokens: int | None = None,
    tokenizer: str = "",
    device: Device = "auto",
    threads: int = 1,
) -> int:
    """Score a run's newest checkpoint on held-out documents: loss and bits per byte, by source.

    Writes evaluation.json and evaluation.parquet (one row per document) into the run's folder.

    Examples:
        trainer evaluate training/filtered --data shards/raw
        trainer evaluate training/filtered --data shards/raw --tokens 100000 --tokenizer tokenizer.json

    Args:
        run: the run's folder.
        data: the shards: a folder or a URI.
        split: which documents.
        tokens: read this many tokens of each source; all of them, if not given.
        tokenizer: tokenizer.json, to count bytes; the data's or the run's own, if not given.
        device: auto is cuda where available, else cpu.
        threads: CPU threads.
    """
    from gristmill.trainer.evaluate import evaluate as score

    print(json.dumps(score(run, data, split, tokens, tokenizer, device, threads), indent=2))
    return 0


def compare(
    a: Annotated[Path, tyro.conf.Positional],
    b: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Compare two evaluated runs on the same documents: bits per byte, 95 % interval, verdict.

    Examples:
        trainer compare training/filtered training/raw
        trainer compare training/filtered training/raw --output comparison.json

    Args:
        a: the run that the verdict is about.
        b: the run it is held against.
        output: also write the comparison to this file, as JSON.
        as_json: print JSON instead of a table.
    """
    from gristmill.base.files import write_json
    from gristmill.trainer.compare import compare as decide
    from gristmill.trainer.compare import table

    result = decide(a, b)
    if output is not None:
        write_json(output, result)
    print(json.dumps(result, indent=2) if as_json else table(result))
    return 0


def generate(
    run: Annotated[Path, tyro.conf.Positional],
    prompt: str = "",
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    tokenizer: str = "",
    device: Device = "auto",
) -> int:
    """Write text with a run's newest checkpoint.

    Examples:
        trainer generate training/filtered --prompt "The river"
        trainer generate training/filtered --tokens 200 --temperature 0

    Args:
        run: the run's folder.
        prompt: the text to go on from; a new document, if empty.
        tokens: at most this many.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from this many likeliest tokens.
        seed: of the draws.
        tokenizer: tokenizer.json; the run's own, if not given.
        device: auto is cuda where available, else cpu.
    """
    from gristmill.trainer.generate import generate as write

    print(write(run, prompt, tokens, temperature, top_k, seed, tokenizer, device))
    return 0


def export(
    run: Annotated[Path, tyro.conf.Positional], out: Annotated[Path, tyro.conf.Positional], tokenizer: str = ""
) -> int:
    """Write a run's newest checkpoint as a Hugging Face Qwen3MoE folder, which transformers and vLLM load.

    Examples:
        trainer export training/filtered exports/filtered
        trainer export training/filtered exports/filtered --tokenizer tokenizer.json

    Args:
        run: the run's folder.
        out: the folder to write.
        tokenizer: tokenizer.json to put beside the weights; the run's own, if not given.
    """
    from gristmill.trainer.model import huggingface
    from gristmill.trainer.run_folder import load_model

    trained = load_model(run, "cpu")
    file = Path(tokenizer) if tokenizer else trained.tokenizer
    weights = trained.model.state_dict()
    huggingface.export(trained.model.config, weights, out, sequence=trained.sequence, eos=trained.eos, tokenizer=file)
    print(out)
    return 0


def _outcome(record: dict, output: str) -> str:
    return f"{output}: {record['status']}, {record['tokens']:,} tokens in {record['seconds']:,.0f} s"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="trainer: %(message)s", stream=sys.stderr)
    commands: dict[str, cli.Command] = {"run": run}
    for function in (resume, evaluate, compare, generate, export):
        commands[function.__name__] = cli.typed(function, f"trainer {function.__name__}")
    cli.main("trainer", commands, "Small mixture-of-experts models, trained from published shards, exactly resumable.")


if __name__ == "__main__":
    main()
