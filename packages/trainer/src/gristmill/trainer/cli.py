"""The `trainer` command: plan, run, resume, finetune, eval, compare, generate, params, import, export.

Nothing heavy is imported before a command runs, so that --help is quick.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro.conf

from gristmill.base import cli
from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.trainer.comparison.proxies_config import ProxiesConfig
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model.config import ModelOverrides, ModelSection, resolve
from gristmill.trainer.planning.plan_config import PlanConfig, defaults

Device = Literal["auto", "cpu", "cuda"]


def run(arguments: list[str]) -> int:
    """Train a model from published shards; the same command resumes an unfinished run, and leaves a finished one alone.

    Every field of the configuration is a flag, and a key of the TOML file that --config names; flags win.

    Examples:
        trainer run --mixture web40_code20 --data shards/filtered --output training/filtered
        trainer run --config small.toml --tokens 50000000 --model.preset small --precision bf16 --output training/small
        trainer run --config small.toml --launcher local --nproc 4 --output training/small
    """
    config = cli.parse_config(TrainConfig, arguments, "trainer run", inspect.cleandoc(run.__doc__ or ""))
    from gristmill.trainer.parallel import launch

    _tell(launch.train(config), config.output)
    return 0


def resume(run: Annotated[Path, tyro.conf.Positional]) -> int:
    """Go on with a run that was stopped, with the configuration stored in its folder.

    Examples:
        trainer resume training/filtered
        trainer resume training/small

    Args:
        run: the run's folder.
    """
    from gristmill.trainer.parallel import launch

    _tell(launch.resume(run), str(run))
    return 0


def finetune(arguments: list[str]) -> int:
    """Go on from a model's weights, on conversations or records of your own, or on what its mixture has left.

    The model is a run's folder, one of its checkpoints, or a Hugging Face folder or address. The new run has its
    settings; every flag of trainer run changes one. The same command, or trainer resume, goes on with a run that was
    stopped.

    With --chat, learnt from is what the assistant says, at a tenth of the model's learning rate. Without, the run reads
    --tokens of the mixture that the model has not read, under a schedule of its own.

    Examples:
        trainer finetune training/filtered --chat chats.jsonl --epochs 2 --output training/chat
        trainer finetune hf://org/name --chat records.jsonl.zst --optimizer.learning-rate 2e-5 --output training/records
        trainer finetune training/filtered --tokens 1M --optimizer.schedule linear --output training/further
    """
    from gristmill.trainer.finetuning import finetune_config

    description = inspect.cleandoc(finetune.__doc__ or "")
    place, settings, flags = finetune_config.parse(arguments, description)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "trainer finetune prepares the run in one process: give --launcher local, or begin it without torchrun, "
            "stop it, and start torchrun ... -m gristmill.trainer resume RUN"
        )
    from gristmill.trainer.finetuning import finetune as tuning
    from gristmill.trainer.parallel import launch

    origin = tuning.find(place)
    base = tuning.defaults(origin, settings)
    config = cli.parse_config(TrainConfig, flags, f"trainer finetune {place}", description, base)
    _tell(launch.train(tuning.prepare(origin, settings, config)), config.output)
    return 0


def eval_(
    run: Annotated[Path, tyro.conf.Positional],
    data: str = "",
    tasks: str = "",
    task_path: Path | None = None,
    checkpoint: str = "latest",
    split: Literal["valid", "train"] = "valid",
    tokens: int | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    exported: bool = False,
    tokenizer: str = "",
    device: Device = "auto",
    threads: int = 1,
) -> int:
    """Score a run's checkpoint on held-out documents (bits per byte, by source) or on tasks of lm-evaluation-harness.

    Documents: writes evaluation.json and evaluation.parquet (one row per document) into the run's folder. Of a source
    with a loss mask, only what is learnt from is scored. Tasks: writes evaluation-tasks.json.

    Examples:
        trainer eval training/filtered --data shards/raw
        trainer eval training/filtered --data shards/raw --tokens 100000 --checkpoint best
        trainer eval training/filtered --tasks my_task --task-path tasks
        trainer eval training/filtered --tasks my_task --task-path tasks --exported

    Args:
        run: the run's folder.
        data: the shards: a folder or a URI.
        tasks: names of tasks or groups, with commas between.
        task_path: a folder of task files (YAML), beside the tasks that lm-evaluation-harness has. They may run code.
        checkpoint: latest, best (by validation, of a run with --patience.validations), or a step's number.
        split: which documents.
        tokens: read this many tokens of each source; all of them, if not given.
        limit: read this many examples of each task; all of them, if not given.
        shots: examples with answers before each question; the task's own number, if not given.
        chat: ask tasks in the run's chat template.
        exported: ask tasks of the exported checkpoint in transformers, as others would have it, instead of our model.
        tokenizer: tokenizer.json, to count bytes and for tasks; the data's or the run's own, if not given.
        device: auto is cuda where available, else cpu.
        threads: CPU threads.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not (data or names):
        raise UsageError("eval: give --data SHARDS, --tasks NAMES, or both")
    if data:
        from gristmill.trainer.evaluation.evaluate import evaluate

        print(json.dumps(evaluate(run, data, split, tokens, tokenizer, device, threads, checkpoint), indent=2))
    if names:
        from gristmill.trainer.evaluation import harness

        print(
            harness.table(
                harness.evaluate(
                    run, names, task_path, checkpoint, limit, shots, chat, tokenizer, device, threads, exported
                )
            )
        )
    return 0


def plan(arguments: list[str]) -> int:
    """Tell what a run would take, before anything starts: epochs, steps, memory, time, cost. Nothing is written.

    Takes what trainer run takes. Time comes from a few steps of the real model on this machine, or, with --gpu, from
    that GPU's peak and a share of it that is assumed. Without --mixture and --data it is of the model alone; with --gpu
    then 1T tokens, in bf16, in steps of 1024 windows of 4096 tokens, as many at a time as fit.

    Examples:
        trainer plan --mixture web40_code20 --data shards/filtered --tokens 50M
        trainer plan --config small.toml --tokens 10B --precision bf16 --gpu H100 --price-per-hour 2.5
        trainer plan --preset moonlet-7b-a2b --gpu H100 --mesh ep=8,dp=2 --recompute
        trainer plan --preset deepseek-v3 --gpu H100 --gpus 256 --recompute --price-per-hour 2
    """
    about = inspect.cleandoc(plan.__doc__ or "")
    config = cli.parse_config(PlanConfig, arguments, "trainer plan", about, defaults(arguments))
    from gristmill.trainer.planning.plan import plan as reckon
    from gristmill.trainer.planning.table import table

    result = reckon(config)
    print(json.dumps(result, indent=2) if config.json else table(result))
    return 0


def compare(arguments: list[str]) -> int:
    """Compare two evaluated runs, or train small runs of two mixtures and compare these: does filtering help?

    trainer compare RUN RUN compares what is there; trainer compare --mixtures MIXTURE,MIXTURE trains first.
    """
    if any(argument.split("=")[0] in ("--mixtures", "--config") for argument in arguments):
        return _compare_mixtures(["--help"] if "--help" in arguments else arguments)
    return cli.typed(_compare_runs, "trainer compare")(arguments) or 0


def _compare_mixtures(arguments: list[str]) -> int:
    """Train small runs of two mixtures in pairs, at equal budgets, and tell which one teaches more, and how surely.

    Every pair has one seed, one model and the same batches' shape. A third run of each seed reads the second mixture,
    cut at random to as much text as the first has. All are scored on the same held-out documents. The output folder
    gets the runs, comparison.json and comparison.svg; the same command again does only what is missing.

    Examples:
        trainer compare --mixtures fine=web@shards/fine,raw=web@shards/raw --tokens 10M --output proxies
        trainer compare --mixtures web40_code20,web60 --data shards --seeds 5 --held-out shards/raw --output proxies
    """
    about = inspect.cleandoc(_compare_mixtures.__doc__ or "")
    config = cli.parse_config(ProxiesConfig, arguments, "trainer compare", about)
    from gristmill.trainer.comparison import proxies

    result = proxies.run(config)
    print(json.dumps(result, indent=2) if config.json else proxies.table(result))
    return 0


def _compare_runs(
    a: Annotated[Path, tyro.conf.Positional],
    b: Annotated[Path, tyro.conf.Positional],
    output: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Compare two evaluated runs on the same documents: bits per byte, 95 % interval, verdict.

    With --mixtures, two mixtures are compared, by small runs that are trained first: trainer compare --mixtures --help

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
    from gristmill.trainer.comparison.compare import compare as decide
    from gristmill.trainer.comparison.compare import table

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
    expert_cache_gb: float | None = None,
    checkpoint: str = "latest",
    chat: bool = False,
) -> int:
    """Write text with a run's checkpoint.

    Examples:
        trainer generate training/filtered --prompt "The river"
        trainer generate training/chat --prompt "What is a river?" --chat
        trainer generate runs/moonlight --prompt "The river" --expert-cache-gb 4

    Args:
        run: the run's folder.
        prompt: the text to go on from; a new document, if empty.
        tokens: at most this many.
        temperature: 0 takes the likeliest token each time.
        top_k: draw from this many likeliest tokens.
        seed: of the draws.
        tokenizer: tokenizer.json; the run's own, if not given.
        device: auto is cuda where available, else cpu.
        expert_cache_gb: leave experts on disk, hold so many gigabytes of those used last, and tell the hit rate; all
            are in memory, if not given.
        checkpoint: latest, best (by validation, of a run with --patience.validations), or a step's number.
        chat: the prompt is a question in the run's chat template; only the answer is printed.
    """
    from gristmill.trainer.generate import generate as write

    print(write(run, prompt, tokens, temperature, top_k, seed, tokenizer, device, expert_cache_gb, checkpoint, chat))
    return 0


def check(arguments: list[str]) -> int:
    """Check a run before the expensive part: data, mixture, shapes, and 20 smoke steps of a narrow model on the CPU.

    Takes what trainer run takes, and writes RUN/checked.json. trainer run --require-check refuses a run that was not
    checked with this configuration, this data and this code.

    Examples:
        trainer check --mixture web40_code20 --data shards/filtered --output training/filtered
        trainer check --config run.toml --data shards --output training/run --price-per-hour 0.2
    """
    from gristmill.trainer import check as checks
    from gristmill.trainer import checked

    config = cli.parse_config(checks.CheckConfig, arguments, "trainer check", inspect.cleandoc(check.__doc__ or ""))
    marker = checks.check(config)
    smoke = marker["smoke"]
    print(
        f"{config.folder / checked.MARKER}: {smoke['steps']} smoke steps, loss {smoke['first_loss']:.3f} to "
        f"{smoke['last_loss']:.3f}, in {marker['seconds']:,.0f} s"
    )
    return 0


def config(arguments: list[str]) -> int:
    """Make a run file of a DeepSpeed file or of Megatron's flags: trainer config import --help."""
    from gristmill.trainer.config_import import command

    return command.run(arguments)


def params(
    preset: Annotated[str, tyro.conf.Positional],
    model: ModelOverrides = ModelOverrides(),  # noqa: B008 - frozen, and tyro reads the default
    sequence: int = 4096,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Count a preset's weights, by part, and the arithmetic of training on a token.

    Examples:
        trainer params mixtral-8x7b
        trainer params small --model.vocab 16384 --model.experts 32 --sequence 2048 --json

    Args:
        preset: a preset's name.
        model: fields that differ from the preset's.
        sequence: tokens in a window, for what attention costs.
        as_json: print JSON instead of a table.
    """
    from gristmill.trainer.model.counts import count, table

    check_range("--sequence", sequence, 1)
    chosen = resolve(ModelSection(preset, **dataclasses.asdict(model)))
    counts = count(chosen)
    if as_json:
        print(json.dumps(counts.to_json(sequence), indent=2))
    else:
        print(table(counts, sequence))
    return 0


def import_(
    model: Annotated[str, tyro.conf.Positional], out: Annotated[Path, tyro.conf.Positional], sequence: int = 0
) -> int:
    """Make a run's folder of a Hugging Face model (Qwen3-MoE, Mixtral, DeepSeek-V3, dots1), to generate from or export.

    Weights travel one tensor at a time: a model of any size needs little memory.

    Examples:
        trainer import downloads/Moonlight-16B-A3B runs/moonlight
        trainer import hf://org/name@revision runs/name --sequence 2048

    Args:
        model: a folder, or hf://org/name or hf://org/name@revision.
        out: the run's folder, which is not there yet.
        sequence: tokens in a window for eval and generate; 0 is the model's own longest, at most 4096.
    """
    from gristmill.trainer.exchange import import_model

    record = import_model(model, out, sequence)
    print(f"{out}: {record['imported']['model_type']}, {record['parameters']:,} parameters")
    return 0


def export(
    run: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    tokenizer: str = "",
    shard_gb: float = 5.0,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    checkpoint: str = "latest",
) -> int:
    """Write a run's checkpoint as a Hugging Face folder, which transformers and vLLM load.

    It becomes what it is like, Qwen3-MoE, Mixtral, DeepSeek-V3 or dots1, with the tokenizer's files and a card.

    Examples:
        trainer export training/filtered exports/filtered
        trainer export training/filtered exports/filtered --tokenizer tokenizer.json --dtype bfloat16

    Args:
        run: the run's folder.
        out: the folder to write, which is not there yet.
        tokenizer: tokenizer.json to put beside the weights; the run's own, if not given.
        shard_gb: gigabytes of one file of weights, at most.
        dtype: number format of the weights; stored is the checkpoint's own.
        checkpoint: latest, best (by validation, of a run with --patience.validations), or a step's number.
    """
    import torch

    from gristmill.trainer.exchange import export_run

    export_run(run, out, tokenizer, shard_gb, None if dtype == "stored" else getattr(torch, dtype), checkpoint)
    print(out)
    return 0


def _tell(record: dict, output: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, one tells
        print(f"{output}: {record['status']}, {record['tokens']:,} tokens in {record['seconds']:,.0f} s")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="trainer: %(message)s", stream=sys.stderr)
    commands: dict[str, cli.Command] = {"plan": plan, "run": run, "finetune": finetune, "compare": compare}
    commands |= {"config": config, "check": check}
    for function in (resume, eval_, generate, params, import_, export):
        name = function.__name__.rstrip("_")  # import and eval are words of Python's
        commands[name] = cli.typed(function, f"trainer {name}")
    cli.main("trainer", commands, "Small mixture-of-experts models, trained from published shards, exactly resumable.")


if __name__ == "__main__":
    main()
