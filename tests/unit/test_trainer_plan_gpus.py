"""A plan for GPUs that are not here: what each keeps and sends, which mesh is best, and what is assumed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gristmill.base.errors import UsageError
from gristmill.trainer import cli
from gristmill.trainer.config import BatchConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelSection, resolve
from gristmill.trainer.model.moe import MixtureOfExperts
from gristmill.trainer.optim.config import OptimizerConfig
from gristmill.trainer.parallel.config import ParallelConfig
from gristmill.trainer.planning import measure, memory, mesh, traffic
from gristmill.trainer.planning.mesh import Mesh
from gristmill.trainer.planning.plan import plan
from gristmill.trainer.planning.plan_config import PlanConfig
from gristmill.trainer.planning.table import table
from gristmill.trainer.planning.traffic import Group, Weights
from gristmill.trainer.watch import hardware

MODEL = ModelSection(preset="tiny", vocab=512, experts=8, layers=3)
ASKED = PlanConfig(
    gpu="H100", precision="bf16", tokens=10**6, model=MODEL, batch=BatchConfig(sequence=256, sequences=32, micro=1)
)


def asked(**changes) -> PlanConfig:
    return dataclasses.replace(ASKED, **changes)


def told(capsys, arguments: str) -> dict[str, Any]:
    assert cli.plan([*arguments.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_large_model_on_many_gpus_is_planned_without_data(capsys):
    result = told(capsys, "--preset deepseek-v3 --gpu h100 --mesh ep=64,dp=4 --recompute --price-per-hour 2")
    assert result["model"]["parameters"] == 671_026_419_200 and result["machine"]["gpus"] == 256
    assert result["memory"]["weights"] == pytest.approx(4 * 671_026_419_200 / 256, rel=0.001)
    assert result["sources"] == [] and result["mixture"] is None
    time = result["time"]
    assert time["seconds"] == pytest.approx(result["tokens"] / time["tokens_per_second"])
    assert result["cost"]["total"] == pytest.approx(2 * time["gpu_hours"])
    assert time["gpu_hours"] == pytest.approx(256 * time["seconds"] / 3600)
    shown = table(result)
    for word in ("256 H100: ep=64,dp=4, 8 to a node", "between nodes", "tokens/s and GPU", "at 2 an hour and GPU"):
        assert word in shown
    assumed = " ".join(result["assumptions"])
    for word in ("30% is assumed", "450 GB/s", "50 GB/s", "recomputation", "travel while", "80% is assumed"):
        assert word in assumed


def test_a_small_model_on_one_gpu_is_planned_without_data(capsys):
    result = told(capsys, "--preset moonlet-7b-a2b --gpu B200 --recompute --tokens 100B")
    assert result["traffic"]["total"] == {"inside": 0, "between": 0} and not result["warnings"]
    assert result["batch_tokens"] == 1024 * 4096 and result["micro"] <= result["largest_micro"]
    assert 1024 % result["micro"] == 0 and result["memory"]["dispatch"] == result["memory"]["gathered"] == 0
    short = told(capsys, "--preset moonlet-7b-a2b --gpu H100 --recompute --tokens 100B")
    assert short["largest_micro"] == 0 and "more GPUs" in short["warnings"][-1]  # 16 bytes to a weight: 118 GB


def test_meshes_are_compared_best_first_and_those_that_do_not_fit_last(capsys):
    result = plan(asked(gpus=16))
    meshes = result["meshes"]
    assert {(one["mesh"]["ep"], one["mesh"]["dp"]) for one in meshes} == {(1, 16), (2, 8), (4, 4), (8, 2)}
    speeds = [one["time"]["tokens_per_second"] for one in meshes if not one["short"]]
    assert speeds == sorted(speeds, reverse=True) and result["mesh"] == meshes[0]["mesh"]
    copies = told(capsys, "--preset moonlet-7b-a2b --gpu A100 --mesh dp=16,data=replicate ep=8,dp=2 --recompute")
    assert [one["mesh"]["data"] for one in copies["meshes"]] == ["shard", "replicate"]
    assert copies["meshes"][1]["short"] > 0 and "GB short" in table(copies)


def test_what_gpus_keep_adds_up_to_the_model():
    config, model = asked(), resolve(MODEL)
    alone = memory.estimate(model, config)
    for one in (Mesh(1, 8), Mesh(4, 2), Mesh(8, 1)):
        found = memory.estimate(model, config, one)
        assert found.weights == pytest.approx(alone.weights / 8, rel=0.02)
        assert found.optimizer == pytest.approx(alone.optimizer / 8, rel=0.02) and found.gathered > 0
        assert (found.dispatch > 0) <= (one.ep > 1)
    copies = memory.estimate(model, config, Mesh(1, 8, "replicate"))
    assert copies[:3] == pytest.approx(alone[:3], rel=0.001)
    spread = memory.estimate(model, config, Mesh(8, 1, "replicate"))
    assert alone.weights / 8 < spread.weights < alone.weights


def test_sizes_between_the_measured_ones_are_as_measured_and_the_largest_is_the_last_that_fits():
    model = resolve(MODEL)
    few, many = (asked(batch=BatchConfig(sequence=256, sequences=96, micro=micro)) for micro in (1, 11))
    for one in (Mesh(), Mesh(4, 2)):
        by_micro = memory.ByMicro(model, few, one)
        assert by_micro(11).total == pytest.approx(memory.estimate(model, many, one).total, rel=0.01)
        limit = by_micro(5).total
        assert by_micro.largest(limit) == 5 and by_micro.largest(limit - 1) == 4
        assert by_micro.largest(1) == 0 and by_micro.largest(1e15) == by_micro.rows


def test_muon_takes_whole_matrices_and_adafactor_is_refused():
    model = resolve(dataclasses.replace(MODEL, layers=12, dense_layers=12))
    batch = BatchConfig(sequence=16, sequences=32, micro=1)
    adamw, muon = (asked(batch=batch, optimizer=OptimizerConfig(kind=kind)) for kind in ("adamw", "muon"))
    found, whole = (memory.estimate(model, one, Mesh(1, 32)) for one in (adamw, muon))
    assert whole.gathered >= 32 * whole.weights * 0.95 > found.gathered and whole.optimizer < found.optimizer
    sent = [plan(dataclasses.replace(one, mesh=("dp=16",)))["traffic"]["weights"]["between"] for one in (adamw, muon)]
    assert sent[0] < sent[1]
    with pytest.raises(UsageError, match="adafactor looks at whole weights; give ep=1,dp=4,data=replicate"):
        plan(asked(optimizer=OptimizerConfig(kind="adafactor"), mesh=("dp=4",)))


def test_muons_products_take_time_of_which_experts_are_shared():
    shape = resolve(MODEL)
    products = measure.orthogonal(shape, asked(optimizer=OptimizerConfig(kind="muon")))
    width, hidden, experts = shape.width, shape.expert_width, sum(shape.experts_of(layer) for layer in shape.moe_layers)
    small, large = sorted((width, hidden))
    each = 5 * 3 * (4 * small**2 * large + 2 * small**3)  # gate, up and down
    assert sum(flops for _, flops in products.experts) == experts * each
    assert products.dense > 0 and measure.orthogonal(shape, asked()) == (0, ())
    own = [products.of_a_gpu(share) - products.dense for share in (1, 4, 8, 64)]
    assert own == pytest.approx([own[0], own[0] / 4, own[0] / 8, own[0] / 8])  # of 8 experts, one at the least
    one, many, copies = (
        plan(asked(optimizer=OptimizerConfig(kind="muon"), mesh=(mesh,)))["time"]["step"]
        for mesh in ("dp=1", "ep=4,dp=2", "ep=4,dp=2,data=replicate")
    )
    work = 989e12 * ASKED.mfu
    assert one["optimizer"] == pytest.approx(products.of_a_gpu(1) / work, rel=0.01)
    assert many["optimizer"] == pytest.approx(products.of_a_gpu(8) / work, rel=0.01)
    assert copies["optimizer"] == pytest.approx(products.of_a_gpu(4) / work, rel=0.01)
    assert many["seconds"] == pytest.approx(
        max(many["compute"], many["weights_and_gradients"]) + many["tokens"] + many["optimizer"]
    )


def test_bytes_of_tokens_are_those_that_spread_experts_send():
    """Forward and backward of one layer, by the layer's own count."""
    ranks, rows = 4, 64
    model = resolve(MODEL)
    link = measure.EvenLink(ranks)
    with FakeTensorMode():
        layer = MixtureOfExperts(model, 8, precision.build("bf16"))
        measure.spread(layer, link)
        layer(torch.zeros(1, rows, model.width, dtype=torch.bfloat16, requires_grad=True))[0].sum().backward()
    routed = rows * model.top_k * model.width * 2
    sent = traffic.of_step(Mesh(ranks, 2), 8, Weights(0, 0, 0), routed, 1, recompute=False).tokens
    assert sent.inside == link.bytes_sent and sent.between == 0
    again = traffic.of_step(Mesh(ranks, 2), 8, Weights(0, 0, 0), routed, 1, recompute=True).tokens
    assert again.inside == 1.5 * sent.inside


def test_what_is_sent_between_nodes_is_what_the_node_has_not():
    assert Group(8, 8).exchange(80) == (70, 0)
    assert Group(16, 8).exchange(160) == (70, 80)
    assert Group(8, 8).gather(80) == (70, 0)
    inside, between = Group(16, 8).gather(160)
    assert inside + between == 150 and 8 * between == 80  # 8 GPUs together take in the other node's half
    assert Group(4, 1).gather(40) == (0, 30)
    for one, per_node, expected in (
        (Mesh(8, 2), 8, [(16, 8), (8, 8), (2, 1)]),
        (Mesh(2, 8), 8, [(16, 8), (2, 2), (8, 4)]),
        (Mesh(16, 2), 8, [(32, 8), (16, 8), (2, 1)]),
        (Mesh(2, 2), 8, [(4, 4), (2, 2), (2, 2)]),
    ):
        assert list(traffic.groups(one, per_node)) == expected


def test_weights_are_gathered_twice_and_gradients_summed_once_for_each_micro_batch():
    sharded = traffic.of_step(Mesh(1, 4), 8, Weights(10, 100, 1000), 0, passes=3, recompute=True)
    assert sharded.weights.inside == 3 * (10 + 2 * 1100) * 4 * 3 / 4
    assert sharded.gradients.inside == 3 * 1110 * 4 * 3 / 4
    copies = traffic.of_step(Mesh(1, 4, "replicate"), 8, Weights(10, 100, 1000), 0, passes=3, recompute=True)
    assert copies.weights.inside == 0 and copies.gradients.inside == 2 * sharded.gradients.inside
    spread = traffic.of_step(Mesh(4, 1), 8, Weights(10, 100, 1000), 0, passes=3, recompute=True)
    assert spread.gradients.inside == 3 * 110 * 4 * 3 / 4  # nobody else has these experts


def test_time_is_made_of_its_parts_and_faster_links_shorten_it():
    slow, fast = (plan(asked(mesh=("ep=4,dp=4",), between_gb=gb, inside_gb=10 * gb)) for gb in (1.0, 100.0))
    for one in (slow, fast):
        step = one["time"]["step"]
        assert step["seconds"] == pytest.approx(max(step["compute"], step["weights_and_gradients"]) + step["tokens"])
        assert one["time"]["tokens_per_second"] == pytest.approx(32 * 256 / step["seconds"])
        assert "or as given" in one["assumptions"][1]
    assert slow["time"]["step"]["tokens"] == pytest.approx(100 * fast["time"]["step"]["tokens"])
    assert fast["time"]["mfu"] > slow["time"]["mfu"] and fast["time"]["mfu"] < 0.3


def test_a_run_s_own_settings_say_which_mesh():
    named = plan(asked(gpus=8, parallel=ParallelConfig(ep=4, data="replicate")))
    assert named["mesh"] == {"ep": 4, "dp": 2, "data": "replicate"} and "meshes" not in named
    assert [one.ep for one in mesh.every(12, {8, 24})] == [1, 2, 4]
    assert mesh.every(8, set()) == [Mesh(1, 8)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": ("ep=8;dp=2",)}, "--mesh ep=8;dp=2: 'ep=8;dp=2' is neither ep=N"),
        ({"mesh": ("ep=0",)}, "neither ep=N, dp=N nor data="),
        ({"mesh": ("ep=3,dp=2",)}, "mesh ep=3,dp=2: 3 GPUs do not divide the 8 experts"),
        ({"mesh": ("dp=3",)}, "32 windows in passes of 1 .* cannot be shared by 3 GPUs"),
        ({"mesh": ("dp=2",), "gpus": 2}, "leave --gpus out"),
        ({"mesh": ("dp=2",), "gpu": ""}, "--mesh is for GPUs: name theirs"),
        ({"mesh": ("dp=2",), "gpu": "L4"}, "how fast such GPUs send is not known here; give --inside-gb"),
        ({"gpus": 6, "parallel": ParallelConfig(ep=4)}, r"parallel.ep \(4\) does not divide --gpus \(6\)"),
        ({"link_share": 0.0}, "link_share"),
        ({"data": "shards"}, "--mixture is missing beside --data"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        plan(asked(**changes))


def test_every_gpu_with_links_has_a_peak():
    known = [name for name in hardware.gpu_names() if hardware.links_of(name)]
    assert {"H100", "H200", "A100", "B200"} <= set(known)
    for name in known:
        links = hardware.links_of(name)
        assert links is not None and links.inside > links.between > 1e9 and links.source
