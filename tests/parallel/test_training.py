"""A run over several processes is the run of one: the same bytes, but where experts are spread; and it goes on at any
number of them.

Processes take seconds to start: one job per number of them trains all runs that this number is asked for, one after
the other. A run's folder is named by its case; what one process made of it is in one/, and so on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import in_ranks
from tests.support.training_runs import SMALL, config, disturbed, events_of, same_weights
from tests.support.training_shards import write_shards

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import UsageError
from gristmill.trainer import loop, start
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.config import BatchConfig, TrainConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim.config import GroupConfig, OptimizerConfig
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.parallel.world import joined
from gristmill.trainer.watch.alarms import AlarmConfig
from gristmill.trainer.watch.config import HealthConfig, SamplesConfig

STEPS, WINDOWS = 4, 8
NEAR = 1e-5
"""Where experts are spread, their products are of other shapes, and fp32 sums round in another way."""

MUON = OptimizerConfig(kind="muon", learning_rate=1e-3)  # it rounds to bf16: at a greater rate, beyond NEAR
BOTH = OptimizerConfig(kind="muon", qk_clip=0.5, clip_by="group", router=GroupConfig("adamw", learning_rate=0.01))


def model(**changes: Any) -> Any:
    return dataclasses.replace(SMALL, **changes)


def batch(**changes: Any) -> BatchConfig:
    return dataclasses.replace(BatchConfig(sequence=32, sequences=WINDOWS, micro=1), **changes)


PLAIN = {"batch": batch(), "samples": SamplesConfig(tokens=0)}  # text takes as many gatherings as it has tokens
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"health": HealthConfig(every=2), "samples": SamplesConfig(tokens=4, every=4)},
    "muon": {"optimizer": MUON},
    "uneven": {  # 5 experts, 24 and 40 rows, of which processes have unlike numbers, or none
        "optimizer": BOTH,
        "model": model(
            width=24, experts=5, expert_width=40, shared_experts=1, dense_layers=1, tie_embeddings=False,
            router="sigmoid", bungee=2.0, capacity_eval=1.0, options={"gqa.qk_norm": False},
        ),
    },
    "choice": {  # and a ramp of the batch, activations computed again, numbers rounded by chance
        "model": model(router="expert_choice"),
        "batch": batch(ramp_from=4, ramp_share=0.5),
        "recompute": True,
        "expert_precision": "fp8",
        "stochastic_rounding": True,
    },
    "drops": {  # and windows that are filled up: what fills them is not learnt from
        "model": model(capacity=0.5, balance_loss=0.01),
        "packing": "bestfit",
        "batch": batch(micro=2),
    },
    "roll back": {"alarms": AlarmConfig(not_finite="roll_back"), "optimizer": OptimizerConfig(schedule="wsd")},
}  # fmt: skip
SPREAD = ("adamw", "muon", "drops")
"""Cases that experts are spread in, too."""
AT_FOUR = ("choice", "drops")


# ---- What processes do


def train_all(rank: int, n: int, runs: list[tuple[str, dict[str, Any], int]]) -> dict[str, dict[str, Any]]:
    """Each run to its end, or to the step after which the last process, it alone, is asked to stop (0: none).

    Answers by name how it ended, and what went through the model in each pass of training.
    """
    return {name: train_one(rank == n - 1, from_mapping(TrainConfig, values, name), at) for name, values, at in runs}


def train_one(is_last: bool, about: TrainConfig, stop_at: int) -> dict[str, Any]:
    passes: list[str] = []
    step, loss = disturbed({3: math.nan} if about.alarms.not_finite == "roll_back" else {}), Transformer.loss

    def seen(self: Transformer, inputs_BS: torch.Tensor, *others: Any) -> Any:
        passes.append(hashlib.sha256(inputs_BS.numpy().tobytes()).hexdigest()[:12])
        return loss(self, inputs_BS, *others)

    def asked(run: Any, number: int, some: Any) -> Any:
        if number == stop_at and is_last:
            signal.raise_signal(signal.SIGTERM)
        return step(run, number, some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", asked)
        patch.setattr(Transformer, "loss", seen)
        try:
            ended = loop.train(about)["status"]
        except SystemExit as error:
            ended = str(error.code)
        except UsageError as error:
            ended = str(error)
    return {"ended": ended, "passes": passes}


def read_all(rank: int, n: int, runs: list[tuple[str, dict[str, Any], int]]) -> list[str]:
    """What of the newest checkpoints of runs did not come back as it is in the files."""
    wrong = []
    for name, values, _ in runs:
        about = from_mapping(TrainConfig, values, name)
        with joined(about.parallel, torch.device("cpu")) as world:
            data = start.open_data(about, world)
            run = start.begin(about, data, start.agree(about, data), world)
            for file, pieces in run.pieces.items():
                stored = load_file(checkpoint.newest(about.folder) / file)
                assert stored.keys() == pieces.keys()
                for key, piece in pieces.items():
                    rows = stored[key][piece.first : piece.first + len(piece.tensor)] if piece.shape else stored[key]
                    if not torch.equal(rows, piece.tensor):
                        wrong.append(f"{name}: {key}")
            world.wait()
    return wrong


def train_and_read(rank: int, n: int, runs: list[Any], finished: list[Any]) -> dict[str, Any]:
    return train_all(rank, n, runs) | {"wrong": read_all(rank, n, finished)}


# ---- Runs


class Place:
    """Where all runs of the tests are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shards").mkdir()
        self.shards = write_shards(folder / "shards")

    def run(self, name: str, case: str, stop_at: int = 0, **parallel: Any) -> tuple[str, dict[str, Any], int]:
        about = config(
            self.shards, self.folder / name, tokens=STEPS * WINDOWS * 32, checkpoint_every=2,
            parallel=ParallelConfig(**parallel), **PLAIN | CASES[case],
        )  # fmt: skip
        return name, to_mapping(about), stop_at

    def refused(self, name: str, **changes: Any) -> tuple[str, dict[str, Any], int]:
        about = config(self.shards, self.folder / "refused" / name, **PLAIN | changes)
        return name, to_mapping(about), 0

    def copy(self, old: str, new: str) -> None:
        shutil.copytree(self.folder / old, self.folder / new)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def one(place: Place) -> dict[str, Any]:
    """All cases in this process, and a run that goes on elsewhere."""
    torch.set_num_threads(1)
    runs = [place.run(f"one/{case}", case) for case in CASES]
    return train_all(0, 1, [*runs, place.run("on/1 to ep 2", "adamw", 3)])


@pytest.fixture(scope="module")
def two(place: Place, one: dict[str, Any]) -> list[dict[str, Any]]:
    runs = [place.run(f"two/{case}", case) for case in CASES]
    runs += [place.run("replicate/2/adamw", "adamw", data="replicate")]
    runs += [place.run(f"ep 2/{case}", case, ep=2) for case in SPREAD]
    runs += [place.run("on/1 to ep 2", "adamw", ep=2), place.run("on/ep 2 to 4", "muon", 2, ep=2)]
    runs += [place.run("on/2 to 1 to 4", "uneven", 1)]
    none, ep = model(experts=5), ParallelConfig(ep=2)
    runs += [
        place.refused("ep and processes", parallel=ParallelConfig(ep=3)),
        place.refused("ep and experts", parallel=ep, model=none),
        place.refused("micro", batch=batch(micro=8)),
        place.refused("ramp", batch=batch(micro=2, ramp_from=2, ramp_share=0.5)),
        place.refused("adafactor", optimizer=OptimizerConfig(kind="adafactor")),
        place.refused("a group's adafactor", optimizer=OptimizerConfig(dense=GroupConfig(kind="adafactor"))),
        place.refused("disk", disk_gb=1.0),
    ]
    return in_ranks(train_all, 2, runs)


@pytest.fixture(scope="module")
def four(place: Place, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place.copy("on/ep 2 to 4", "on/ep 2 to ep 2")
    place.copy("on/ep 2 to 4", "on/ep 2 to ep 4")
    assert train_all(0, 1, [place.run("on/2 to 1 to 4", "uneven", 3)])["on/2 to 1 to 4"]["ended"] == "143"
    runs = [place.run(f"four/{case}", case) for case in AT_FOUR]
    runs += [place.run("replicate/4/muon", "muon", data="replicate")]
    runs += [place.run("ep 2 x 2/muon", "muon", ep=2), place.run("ep 4/drops", "drops", ep=4)]
    runs += [place.run("ep 2 x replicate/muon", "muon", ep=2, data="replicate")]
    runs += [place.run("on/2 to 1 to 4", "uneven"), place.run("on/ep 2 to 4", "muon")]
    read = [place.run("on/ep 2 to ep 2", "muon", ep=2), place.run("on/ep 2 to ep 4", "muon", ep=4)]
    return in_ranks(train_and_read, 4, runs, read)


@pytest.fixture(scope="module")
def eight(place: Place, one: dict[str, Any]) -> list[dict[str, Any]]:
    return in_ranks(train_all, 8, [place.run("eight/muon", "muon")])


# ---- What came of it


def all_done(ranks: list[dict[str, Any]], name: str) -> None:
    assert [rank[name]["ended"] for rank in ranks] == ["done"] * len(ranks)


def same(place: Place, name: str, case: str) -> None:
    whole, other = place.folder / "one" / case, place.folder / name
    assert same_weights(whole, other)
    assert events_of(whole) == events_of(other)


def near(place: Place, name: str, case: str) -> None:
    whole, other = place.folder / "one" / case, place.folder / name
    a, b = (load_file(checkpoint.newest(folder) / "model.safetensors") for folder in (whole, other))
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert (value - b[key]).abs().max() < NEAR, key
    for kind in ("step", "validation"):
        pairs = list(zip(events_of(whole, kind), events_of(other, kind), strict=True))
        assert pairs
        for x, y in pairs:
            assert x["step"] == y["step"] and x["loss"] == pytest.approx(y["loss"], abs=NEAR)


def in_order(ranks: list[dict[str, Any]], name: str) -> list[str]:
    """Of a run's passes, as the batch has them: pass m of process r is number m * W + r."""
    return [one for together in zip(*(rank[name]["passes"] for rank in ranks), strict=True) for one in together]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_the_same_bits_as_one(place: Place, two: list[dict[str, Any]], case: str) -> None:
    all_done(two, f"two/{case}")
    same(place, f"two/{case}", case)


@pytest.mark.parametrize("case", AT_FOUR)
def test_four_processes_learn_the_same_bits_as_one(place: Place, four: list[dict[str, Any]], case: str) -> None:
    all_done(four, f"four/{case}")
    same(place, f"four/{case}", case)


def test_eight_processes_learn_the_same_bits_as_one(place: Place, eight: list[dict[str, Any]]) -> None:
    """Of which some have no expert and no row of a router."""
    all_done(eight, "eight/muon")
    same(place, "eight/muon", "muon")


def test_the_cases_are_what_they_are_called(place: Place, one: dict[str, Any]) -> None:
    assert {name: run["ended"] for name, run in one.items()} == {
        **{f"one/{case}": "done" for case in CASES}, "on/1 to ep 2": "143",
    }  # fmt: skip
    dropped = [max(event["router"]["dropped"]) for event in events_of(place.folder / "one" / "drops", "step")]
    assert min(dropped) > 0.05
    assert len(events_of(place.folder / "one" / "choice", "step")) > STEPS  # the ramp's are smaller
    (back,) = events_of(place.folder / "one" / "roll back", "roll_back")
    assert (back["step"], back["to"]) == (3, 2)
    assert events_of(place.folder / "one" / "adamw", "samples")
    assert {event["updates"] is None for event in events_of(place.folder / "one" / "adamw", "step")} == {True, False}


def test_processes_that_keep_all_weights_learn_the_same_but_for_rounding(
    place: Place, two: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    for ranks, case in ((two, "adamw"), (four, "muon")):
        name = f"replicate/{len(ranks)}/{case}"
        all_done(ranks, name)
        near(place, name, case)


@pytest.mark.parametrize("case", SPREAD)
def test_experts_of_two_processes_learn_the_same_but_for_rounding(
    place: Place, two: list[dict[str, Any]], case: str
) -> None:
    all_done(two, f"ep 2/{case}")
    near(place, f"ep 2/{case}", case)


@pytest.mark.parametrize("name", ["ep 2 x 2/muon", "ep 2 x replicate/muon", "ep 4/drops"])
def test_experts_of_four_processes_learn_the_same_but_for_rounding(
    place: Place, four: list[dict[str, Any]], name: str
) -> None:
    all_done(four, name)
    near(place, name, name.rpartition("/")[2])


def test_a_run_goes_on_at_another_number_of_processes_to_the_bit(
    place: Place, two: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    """One of two processes was asked to stop after step 1, the one alone after step 3."""
    name = "on/2 to 1 to 4"
    assert [rank[name]["ended"] for rank in two] == ["143", "143"]
    assert [len(rank[name]["passes"]) for rank in two] == [WINDOWS // 2] * 2
    all_done(four, name)
    same(place, name, "uneven")


def test_a_run_goes_on_with_its_experts_spread_and_gathered_again(
    place: Place, two: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    all_done(two, "on/1 to ep 2")
    near(place, "on/1 to ep 2", "adamw")
    assert [rank["on/ep 2 to 4"]["ended"] for rank in two] == ["143", "143"]
    all_done(four, "on/ep 2 to 4")
    near(place, "on/ep 2 to 4", "muon")


def test_a_checkpoint_of_spread_experts_comes_back_to_the_bit(four: list[dict[str, Any]]) -> None:
    assert [rank["wrong"] for rank in four] == [[]] * 4


def test_what_is_read_and_in_which_order_does_not_depend_on_the_processes(
    one: dict[str, Any], two: list[dict[str, Any]], four: list[dict[str, Any]], eight: list[dict[str, Any]]
) -> None:
    for case in CASES:
        assert in_order(two, f"two/{case}") == one[f"one/{case}"]["passes"]
    for name in ("four/choice", "four/drops", "ep 2 x 2/muon", "ep 4/drops", "replicate/4/muon"):
        assert in_order(four, name) == one[f"one/{name.rpartition('/')[2]}"]["passes"], name
    assert in_order(eight, "eight/muon") == one["one/muon"]["passes"]
    assert len(set(one["one/muon"]["passes"])) == STEPS * WINDOWS


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ep and processes", "parallel.ep (3) does not divide the number of processes (2)"),
        ("ep and experts", "2 ranks do not divide the 5 experts of a layer"),
        ("micro", "steps of 8 windows of 32 tokens, in passes of 8 (batch.micro 8), cannot be shared by 2 processes"),
        ("ramp", "steps of 2 windows of 32 tokens, in passes of 2 (batch.micro 2), cannot be shared by 2 processes"),
        ("adafactor", "optimizer.kind adafactor looks at whole weights"),
        ("a group's adafactor", "adafactor looks at whole weights"),
        ("disk", "--disk-gb is for one process, and there are 2"),
    ],
)
def test_what_processes_cannot_share_is_refused_by_name_by_each(
    two: list[dict[str, Any]], name: str, told: str
) -> None:
    for rank in two:
        assert told in rank[name]["ended"]
