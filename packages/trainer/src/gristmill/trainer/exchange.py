"""Models into a run's folder and out of one: `trainer import` and `trainer export`.

One idea: weights go from file to file one part at a time, so a model's size is no matter of memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gristmill.base.config import check_range, to_mapping
from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object, replace_folder, sha256_file, write_json, write_text, writing
from gristmill.shards.importers import template_file
from gristmill.trainer import hub
from gristmill.trainer.card import card
from gristmill.trainer.checkpoints import checkpoint, tensor_file
from gristmill.trainer.checkpoints.checkpoint import Position, State
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model import huggingface
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import count
from gristmill.trainer.run_folder import FORMAT, document_ids, model_config, read_run

WINDOW = 4096  # tokens that an imported model is evaluated and continued on at most, where nothing else is asked


def import_model(place: str, out: Path, sequence: int = 0) -> dict[str, Any]:
    """A Hugging Face folder, or hf://org/name@revision, as a run in `out` that stands at step 0; answers its run.json.

    Weights keep their number format. What tokenizes lies beside them, under its own names.

    Args:
        sequence: tokens in a window for evaluation and generation; 0: the model's own longest, at most 4096.

    Raises:
        UsageError: `out` is not empty, or there is no such model.
        DataError: a model that cannot be read, by the name of what this trainer has not.
    """
    check_range("--sequence", sequence)
    _require_empty(out)
    folder = hub.local_folder(place)
    foreign = huggingface.read(folder)
    files = hub.tokenizer_files(folder)
    record = describe(place, folder, foreign, out, sequence)
    with _whole(out) as temporary:
        for file in files:
            shutil.copyfile(file, temporary / file.name)
        checkpoint.write_weights(temporary, State(Position()), foreign.weights)
        write_json(temporary / "run.json", record)
    return record


def describe(place: str, folder: Path, foreign: huggingface.Foreign, out: Path, sequence: int = 0) -> dict[str, Any]:
    """The run.json of a model that was imported into `out`."""
    window = sequence or min(foreign.values.get("max_position_embeddings", WINDOW), WINDOW)
    full = all(tensor.dtype == torch.float32 for tensor in foreign.weights.values())
    counts = count(foreign.config)
    config = TrainConfig(
        output=str(out), tokens=window, precision="fp32" if full else "bf16", batch=BatchConfig(window, 1, 1)
    )
    return {
        "format": FORMAT,
        "status": "imported",
        "imported": {"place": place, "commit": hub.commit(folder), "model_type": foreign.values["model_type"]},
        "config": to_mapping(config),
        "model": to_mapping(foreign.config),
        "tokenizer": _tokenizer(folder, foreign.config, foreign.values),
        "parameters": counts.total,
        "active_parameters": counts.active,
        "flops_per_token": counts.flops_per_token(window),
        "versions": {name: version(name) for name in ("torch", "gristmill-trainer")},
        "step": 0,
        "steps": 0,
        "tokens": 0,
        "seconds": 0.0,
    }


def export_run(
    run: Path,
    out: Path,
    tokenizer: str = "",
    shard_gb: float = 5.0,
    dtype: torch.dtype | None = None,
    which: str = "latest",
) -> None:
    """A run's checkpoint as a Hugging Face folder, whole or absent: weights, config, tokenizer, card.

    Args:
        tokenizer: tokenizer.json to put beside the weights; the run's own, if "".
        shard_gb: of one file, in gigabytes at most.
        dtype: of the weights; as they were stored, if None.
        which: the checkpoint: latest, best, or a step's number.

    Raises:
        UsageError: `out` is not empty, or no model of Hugging Face's is like this one.
        DataError: the checkpoint is damaged, or there is none.
    """
    record = read_run(run)
    _require_empty(out)
    check_range("--shard-gb", shard_gb, 1e-9)
    if tokenizer and not Path(tokenizer).is_file():
        raise UsageError(f"--tokenizer {tokenizer}: no such file")
    config = model_config(run, record)
    family = huggingface.family_of(config)
    chosen = checkpoint.find(run, which)
    position = checkpoint.position(chosen)
    weights = tensor_file.read_file(checkpoint.weights_file(chosen))
    weights.pop("coefficients.factors", None)  # of the training losses
    bos, eos = document_ids(run, record, config.vocab)
    ids = {"bos_token_id": bos, "eos_token_id": eos}
    sequence = record["config"]["batch"]["sequence"]
    with _whole(out) as temporary:
        _write_tokenizer(run, temporary, tokenizer, ids, sequence)
        huggingface.write(
            config, weights, temporary, sequence=sequence, shard_bytes=int(shard_gb * 1e9), ids=ids, dtype=dtype
        )
        trained = record | {"step": position.step, "tokens": position.tokens}
        text = card(config, count(config), trained, family.ARCHITECTURE, sequence)
        write_text(temporary / "README.md", text)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: there is something already; give another folder")
    if out.resolve() == Path.cwd():
        raise UsageError(f"{out}: the folder that the command runs in cannot be replaced; give the name of a new one")


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it when the block ends, and is removed if it fails."""
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(temporary):
            temporary.mkdir(parents=True)
            yield temporary
            replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(folder: Path, config: ModelConfig, values: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the tokenizer. Ids of the generation's config win, as in transformers."""
    ids = _ids(values, config.vocab, folder / "config.json")
    if (folder / "generation_config.json").exists():
        said = read_object(folder / "generation_config.json", "fetch it again, or delete it")
        ids |= _ids(said, config.vocab, folder / "generation_config.json")
    if "eos_token_id" not in ids:
        raise DataError(f"{folder / 'config.json'}: eos_token_id is None; write the id that ends a document there")
    eos = ids["eos_token_id"]
    file = folder / "tokenizer.json"
    return {
        "name": folder.name,
        "sha256": sha256_file(file) if file.exists() else "",
        "vocab_size": config.vocab,
        "eos_id": eos,
        "bos_id": ids.get("bos_token_id", eos),
    }


def _ids(values: dict[str, Any], vocab: int, where: Path) -> dict[str, int]:
    """Of those that begin and end a document, what a file says; the first, where it names several."""
    found = {}
    for name in ("bos_token_id", "eos_token_id"):
        told = values.get(name)
        first = told[0] if isinstance(told, list) and told else told
        if first is None:
            continue
        if type(first) is not int or not 0 <= first < vocab:
            raise DataError(f"{where}: {name} is {told!r:.60}; write a token's id there, from 0 to {vocab - 1}")
        found[name] = first
    return found


def _write_tokenizer(run: Path, out: Path, given: str, ids: dict[str, int], sequence: int) -> None:
    """The file that was given and the run's chat template, or the run's own files; a tokenizer_config.json, if there
    is none."""
    files = [] if given else hub.tokenizer_files(run)
    for file in files:
        shutil.copyfile(file, out / file.name)
    if given:
        shutil.copyfile(given, out / "tokenizer.json")
        if template := template_file.find_template(run):
            write_text(out / template_file.FILE, template_file.read(template))
    if (out / "tokenizer_config.json").exists() or not (out / "tokenizer.json").exists():
        return
    text = hub.load_tokenizer(Path(given) if given else run / "tokenizer.json")
    begins, ends = (text.id_to_token(ids[name]) for name in ("bos_token_id", "eos_token_id"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begins, "eos_token": ends}
    write_json(out / "tokenizer_config.json", about | {"model_max_length": sequence})
