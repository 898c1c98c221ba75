"""--init-from: weights of a run, a checkpoint or a Hugging Face folder, and what does not fit by name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.crashing import crashing_at
from tests.support.training_runs import config, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, write_json
from gristmill.trainer import exchange, loop, start
from gristmill.trainer.checkpoints import checkpoint, initial
from gristmill.trainer.data import open_training
from gristmill.trainer.model.config import ModelSection
from gristmill.trainer.parallel.world import ALONE


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    loop.train(config(shards, folder))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(folder) / "model.safetensors")


def test_a_run_a_checkpoint_and_an_export_give_the_same_weights(shards: Path, trained: Path, tmp_path: Path) -> None:
    exchange.export_run(trained, tmp_path / "hf")
    places = {"run": trained, "checkpoint": checkpoint.newest(trained), "hf": tmp_path / "hf"}
    for name, place in places.items():
        about = config(shards, tmp_path / name, model=ModelSection(), init_from=str(place))
        run = start.begin(about, open_training(about), None, ALONE)
        for key, value in weights(trained).items():
            torch.testing.assert_close(run.model.state_dict()[key], value, rtol=0, atol=0)
        told = read_json(about.folder / "run.json")["initialised_from"]
        assert told["place"] == str(place) and len(told["sha256"]) == 64
    assert read_json(tmp_path / "run" / "run.json")["initialised_from"]["step"] == 8


def test_weights_in_bf16_begin_in_fp32(shards: Path, trained: Path, tmp_path: Path) -> None:
    exchange.export_run(trained, tmp_path / "hf", dtype=torch.bfloat16)
    about = config(shards, tmp_path / "run", model=ModelSection(), init_from=str(tmp_path / "hf"))
    loop.train(about)
    assert {value.dtype for value in weights(about.folder).values()} == {torch.float32}
    assert events_of(about.folder, "step")[0]["loss"] < events_of(trained, "step")[0]["loss"]


def test_a_run_goes_on_without_the_place_that_it_began_from(
    shards: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    about = config(shards, tmp_path / "whole", model=ModelSection(), init_from=str(place))
    loop.train(about)
    monkeypatch.setattr(loop, "train_step", crashing_at(5))
    with pytest.raises(OSError):
        loop.train(dataclasses.replace(about, output=str(tmp_path / "again")))
    shutil.rmtree(place)
    assert loop.resume(tmp_path / "again")["initialised_from"]["place"] == str(place)
    assert same_weights(tmp_path / "whole", tmp_path / "again")


def test_a_run_without_a_checkpoint_begins_from_the_same_weights_or_not_at_all(
    shards: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(trained, tmp_path / "place"))
    about = config(shards, tmp_path / "run", model=ModelSection(), init_from=str(place))
    monkeypatch.setattr(loop, "train_step", crashing_at(2))
    with pytest.raises(OSError):
        loop.train(about)
    newest = checkpoint.newest(place)
    save_file({name: value + 1 for name, value in weights(place).items()}, newest / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors: its sha256"):
        loop.resume(about.folder)
    state = read_json(newest / "state.json")
    from gristmill.base.files import sha256_file

    hashes = {"model.safetensors": sha256_file(newest / "model.safetensors")}
    write_json(newest / "state.json", state | {"sha256": hashes})
    with pytest.raises(DataError, match=r"not the weights that .* began with"):
        loop.resume(about.folder)


@pytest.mark.parametrize(("changes", "told"), [
    ({"width": 24}, r"attention.key.weight is \[8, 16\], and this run's model has \[8, 24\]"),
    ({"layers": 3}, "has no blocks.2"),
    ({"layers": 1}, "has blocks.1"),
    ({"tie_embeddings": False}, "has no head_VD"),
])  # fmt: skip
def test_what_does_not_fit_is_named(shards: Path, trained: Path, tmp_path: Path, changes: dict, told: str) -> None:
    about = config(shards, tmp_path / "run", model=ModelSection(**changes), init_from=str(trained))
    with pytest.raises(DataError, match=told):
        loop.train(about)


def test_places_that_are_none_are_refused(shards: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        initial.find(str(tmp_path / "nowhere"))
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    run = read_json(other / "run.json")
    write_json(other / "run.json", run | {"tokenizer": run["tokenizer"] | {"sha256": "0" * 64}})
    with pytest.raises(DataError, match="tokenise it with the model's"):
        loop.train(config(shards, tmp_path / "run", init_from=str(other)))
