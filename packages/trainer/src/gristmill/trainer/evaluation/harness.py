"""Tasks of lm-evaluation-harness on a run's checkpoint: its own questions, prompts and metrics, and our model, or what
others would have: the exported checkpoint in transformers.

Nothing is fetched where the task files and what they name are local.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import check_range, nearest
from gristmill.base.errors import UsageError
from gristmill.base.files import write_json
from gristmill.trainer import chat_form
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.evaluation.evaluate import ROWS
from gristmill.trainer.exchange import export_run
from gristmill.trainer.run_folder import load_model, pick_device, read_run, tokenizer_of

FORMAT = "gristmill.evaluation-tasks/1"


def evaluate(
    run: Path,
    tasks: Sequence[str],
    task_path: Path | None = None,
    which: str = "latest",
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    tokenizer: str = "",
    device: str = "auto",
    threads: int = 1,
    exported: bool = False,
) -> dict[str, Any]:
    """Write RUN/evaluation-tasks.json, and answer what is in it.

    Args:
        task_path: a folder with files of tasks, beside those that the library has.
        which: the checkpoint: latest, best, or a step's number.
        limit: examples of each task; all of them, if None.
        shots: examples with answers before each question; the task's own number, if None.
        chat: ask in the run's chat template.
        exported: ask the exported checkpoint in transformers, which must have such a model.

    Raises:
        UsageError: lm-eval is not installed, no such task, or no tokenizer; no model to export to.
    """
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(f"--tasks needs lm-eval ({error}); pip install 'gristmill-trainer[tasks]'") from None
    if task_path is not None and not task_path.is_dir():
        raise UsageError(f"--task-path {task_path}: no such folder")
    for name, value in (("--limit", limit), ("--shots", shots)):
        if value is not None:
            check_range(name, value, 1 if name == "--limit" else 0)
    manager = TaskManager(include_path=task_path, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=task_path)
    for name in tasks:
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_tasks)[:200]
            raise UsageError(f"--tasks: no task {name!r}{close}; the folder of your own is --task-path")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every default
    torch.set_num_threads(threads)
    _load(manager, tasks)
    asked = _exported(run, which, tokenizer, device) if exported else _ours(run, which, tokenizer, device, chat)
    with asked as model:
        results: Any = simple_evaluate(
            model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, log_samples=False,
            apply_chat_template=chat,
        )  # fmt: skip
    position = checkpoint.position(checkpoint.find(run, which))
    summary = {
        "format": FORMAT,
        "lm_eval": version("lm_eval"),
        "model": "exported" if exported else "ours",
        "step": position.step,
        "tokens_trained": position.tokens,
        "limit": limit,
        "chat": chat,
        "window": read_run(run)["config"]["batch"]["sequence"],
        "cut": getattr(model, "cut", None),  # transformers' is silent about that
        "tasks": {name: _task(results, name) for name in results["results"]},
    }
    write_json(run / "evaluation-tasks.json", summary)
    return summary


@contextlib.contextmanager
def _ours(run: Path, which: str, tokenizer: str, device: str, chat: bool) -> Iterator[Any]:
    from gristmill.trainer.evaluation.harness_model import HarnessModel

    trained = load_model(run, device, which=which)
    text = tokenizer_of(run, trained, tokenizer)
    yield HarnessModel(trained, text, chat_form.load(run, trained) if chat else None)


@contextlib.contextmanager
def _exported(run: Path, which: str, tokenizer: str, device: str) -> Iterator[Any]:
    """The folder that `trainer export` writes lasts as long as the model is asked."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UsageError(f"--exported needs lm-eval[hf] ({error}); pip install 'gristmill-trainer[tasks]'") from None
    with tempfile.TemporaryDirectory(prefix="gristmill-") as name:
        folder = Path(name) / "exported"
        export_run(run, folder, tokenizer, which=which)
        window = read_run(run)["config"]["batch"]["sequence"]
        load: Any = HFLM  # its checker loses what its base class takes
        yield load(
            pretrained=str(folder), device=str(pick_device(device)), dtype="float32", batch_size=ROWS, max_length=window
        )


def _load(manager: Any, tasks: Sequence[str]) -> None:
    """Raises UsageError where a task, or its data, cannot be read."""
    try:
        manager.load(list(tasks))
    except Exception as error:  # noqa: BLE001 - task files, their code and data sets: of any class
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"--tasks {','.join(tasks)}: cannot be read ({told:.300})") from None


def table(summary: dict[str, Any]) -> str:
    """The metrics as text for a terminal."""
    lines = [f"{'task':<32} {'shots':>5} {'examples':>8}  {'metric':<24} {'value':>10} {'standard error':>14}"]
    for name, task in summary["tasks"].items():
        for metric, row in task["metrics"].items():
            error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
            value = "" if row["value"] is None else f"{row['value']:.4f}"
            shots, examples = ("" if task[key] is None else f"{task[key]:,}" for key in ("shots", "examples"))
            lines.append(f"{name:<32.32} {shots:>5} {examples:>8}  {metric:<24.24} {value:>10} {error:>14}")
    lines += ["", f"step {summary['step']:,}, {summary['tokens_trained']:,} tokens trained"]
    if summary["cut"]:
        lines.append(
            f"{summary['cut']:,} requests are longer than the model's window of {summary['window']:,} tokens: of these "
            "it has read the end alone"
        )
    return "\n".join(lines)


def _task(results: dict[str, Any], name: str) -> dict[str, Any]:
    """One task's, or group's, metrics; a filter of answers that is not the plain one is named with them."""
    found = results["results"][name]
    metrics = {}
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr"):
            label = metric if chosen == "none" else f"{metric} ({chosen})"
            metrics[label] = {"value": _number(value), "stderr": _number(found.get(f"{metric}_stderr,{chosen}"))}
    return {
        "version": results["versions"].get(name),
        "shots": results["n-shot"].get(name),
        "examples": results.get("n-samples", {}).get(name, {}).get("effective"),
        "metrics": metrics,
    }


def _number(value: Any) -> float | None:
    """None where there is none: with one example, there is no standard error."""
    known = isinstance(value, (int, float)) or hasattr(value, "__float__")
    return float(value) if known and math.isfinite(float(value)) else None
