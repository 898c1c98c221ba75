"""Groups of weights, kinds of optimiser, schedules and clipping; state that goes on to the bit."""

import dataclasses
import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.base import cli
from gristmill.base.errors import DataError, UsageError
from gristmill.trainer.checkpoints import checkpoint
from gristmill.trainer.checkpoints.checkpoint import Position, State
from gristmill.trainer.checkpoints.tensor_file import Piece
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model import precision
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.optim import adamw, optimizer
from gristmill.trainer.optim.config import GROUPS, GroupConfig, OptimizerConfig
from gristmill.trainer.optim.schedule import factor, learning_rate

SHAPE = ModelConfig(
    vocab=40, width=16, layers=3, heads=2, kv_heads=1, head_dim=8, experts=4, top_k=2, expert_width=16, dense_layers=1,
    shared_experts=1, tie_embeddings=False, bungee=2.0,
)  # fmt: skip
KINDS = {
    "adamw": OptimizerConfig(),
    "muon": OptimizerConfig(kind="muon", learning_rate=0.01),
    "adafactor": OptimizerConfig(kind="adafactor", learning_rate=0.1),
    "mixed": OptimizerConfig(router=GroupConfig("adafactor"), experts=GroupConfig("muon", learning_rate=0.01)),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


AFTER = State(Position(step=4), random_state=checkpoint.random_state())
OPTIMIZER = "optimizer.safetensors"


def read(stored, pieces):
    """The optimiser's state alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FILES", (OPTIMIZER,))
        checkpoint.restore(stored, {OPTIMIZER: pieces})


def build(**changes) -> Transformer:
    model = Transformer(dataclasses.replace(SHAPE, **changes), precision.build("fp32"))
    model.initialise(0)
    return model


def gradients(model: Transformer, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def learn(model: Transformer, own: optimizer.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(step % 2))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.nll + loss.auxiliary).backward()
        own.begin(factor(OptimizerConfig(), step, 20))
        own.clip()
        own.step()
        own.zero_grad()
        losses.append(loss.nll.item())
    return losses


def moved(model: Transformer, config: OptimizerConfig) -> dict[str, float]:
    """What a step without gradients multiplies each weight by: its decay."""
    own = optimizer.build(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    own.begin(1.0)
    own.step()
    return {name: parameter.mean().item() for name, parameter in model.named_parameters()}


# ---- Groups


def test_every_weight_is_in_one_group():
    model = build(attention=("kda", "gqa"), residual=True)
    groups = optimizer.build(model, OptimizerConfig()).groups
    assert list(groups) == list(GROUPS)
    where = {name: group for group, named in groups.items() for name, _ in named}
    assert where.keys() == dict(model.named_parameters()).keys()
    assert sum(map(len, groups.values())) == len(where)
    expected = {
        "embedding_VD": "embeddings", "head_VD": "embeddings", "norm.weight": "norms",
        "blocks.0.attention.query.weight": "dense", "blocks.0.attention.convolution_FK": "dense",
        "blocks.0.attention.log_rate_H": "norms", "blocks.0.ffn.network.down.weight": "dense",
        "blocks.1.ffn.router.weight": "router", "blocks.1.ffn.experts.gate_up_EFD": "experts",
        "blocks.1.ffn.shared.down.weight": "dense", "blocks.1.ffn.residual.share.weight": "dense",
        "blocks.2.ffn.bungee": "norms",
    }  # fmt: skip
    assert {name: where[name] for name in expected} == expected


def test_groups_without_weights_are_left_out():
    groups = optimizer.build(build(dense_layers=3), OptimizerConfig()).groups
    assert list(groups) == ["dense", "embeddings", "norms"]


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
def test_decay_spares_norms_and_embeddings(kind):
    config = OptimizerConfig(kind=kind, learning_rate=0.5, weight_decay=0.1)
    for name, factor_ in moved(build(attention=("kda",)), config).items():
        spared = "norm" in name or name in ("embedding_VD", "head_VD") or name.endswith(("_H", "bias", "bungee"))
        assert factor_ == pytest.approx(1.0 if spared else 0.95), name


def test_a_group_has_its_own_rate_and_decay():
    config = OptimizerConfig(
        learning_rate=0.5, router=GroupConfig(learning_rate=0.1), experts=GroupConfig(weight_decay=0.2),
        embeddings=GroupConfig(learning_rate=0.25, weight_decay=0.4), dense=GroupConfig(learning_rate=0.0),
    )  # fmt: skip
    factors = moved(build(), config)
    expected = {
        "blocks.1.ffn.router.weight": 0.99, "blocks.1.ffn.experts.down_EDF": 0.9, "embedding_VD": 0.9,
        "blocks.0.attention.query.weight": 1.0, "norm.weight": 1.0,
    }  # fmt: skip
    assert {name: factors[name] for name in expected} == pytest.approx(expected)


def test_a_rate_of_zero_leaves_a_group_as_it_is():
    model = build()
    before = {name: value.clone() for name, value in model.named_parameters()}
    learn(model, optimizer.build(model, OptimizerConfig(router=GroupConfig(learning_rate=0.0))), range(1, 4))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (".router." in name), name


def test_muon_is_for_matrices_and_the_rest_is_adamws():
    model = build(attention=("kda", "gqa"))
    kept = {key.partition("/")[2] for key in optimizer.build(model, KINDS["muon"]).state() if key[:9] == "momentum/"}
    for name, parameter in model.named_parameters():
        other = parameter.ndim < 2 or "_VD" in name or ".router." in name or name.endswith("convolution_FK")
        assert (name not in kept) == other, name
    with pytest.raises(UsageError, match=r"optimizer\.norms\.kind: muon is for matrices"):
        OptimizerConfig(norms=GroupConfig(kind="muon"))


def test_groups_are_set_on_the_command_line_and_in_a_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        '[optimizer]\nkind = "muon"\nweight_decay = 0.3\n[optimizer.router]\nlearning_rate = 0.01\n'
        "[optimizer.embeddings]\nlearning_rate = 0.02\n"
    )
    arguments = ["--config", str(tmp_path / "run.toml"), "--optimizer.norms.kind", "adafactor"]
    config = cli.parse_config(TrainConfig, arguments, "trainer run", "").optimizer
    assert [config.of(group).kind for group in GROUPS] == ["adamw", "muon", "muon", "adamw", "adafactor"]
    assert [config.of(group).learning_rate for group in GROUPS] == [0.01, 0.003, 0.003, 0.02, 0.003]
    assert [config.of(group).weight_decay for group in GROUPS] == [0.3, 0.3, 0.3, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"), ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"), ({"clip": -1.0}, "clip"), ({"beta1": 1.0}, "beta1"),
        ({"eps": -1.0}, "eps"), ({"qk_clip": math.nan}, "qk_clip"),
        ({"router": GroupConfig(learning_rate=-1.0)}, r"router\.learning_rate"),
        ({"schedule": "wsd", "warmup": 0.5, "decay": 0.6}, "warmup"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_named(changes, named):
    with pytest.raises(UsageError, match=rf"optimizer\.{named}"):
        OptimizerConfig(**changes)


# ---- State


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_training_goes_on_to_the_bit(config, tmp_path):
    whole, first, second = build(), build(), build()
    expected = learn(whole, optimizer.build(whole, config), range(1, 11))
    own = optimizer.build(first, config)
    learn(first, own, range(1, 5))
    stored = checkpoint.write(tmp_path, AFTER, {OPTIMIZER: own.state()})
    second.load_state_dict(first.state_dict())
    again = optimizer.build(second, config)
    read(stored, again.state())
    assert learn(second, again, range(5, 11)) == expected[4:]
    for (name, a), b in zip(whole.named_parameters(), second.parameters()):
        assert torch.equal(a, b), name
    assert expected[-1] < expected[0] - 0.1


def test_state_is_in_fp32_and_of_the_same_names_from_the_start():
    model = build().to(torch.bfloat16)
    own = optimizer.build(model, KINDS["mixed"])
    before = {key: (piece.tensor.shape, *piece[1:]) for key, piece in own.state().items()}
    learn(model, own, range(1, 3))
    assert {key: (piece.tensor.shape, *piece[1:]) for key, piece in own.state().items()} == before
    assert all(piece.is_whole for piece in own.state().values())
    for tensors in (own.state(), dict(model.named_parameters())):
        assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_state_of_another_model_or_optimiser_is_refused(tmp_path):
    own = optimizer.build(build(), OptimizerConfig())
    whole = own.state()
    stored = checkpoint.write(tmp_path, AFTER, {OPTIMIZER: whole})
    extra, narrow = (Piece(torch.zeros(size), (size,), 0) for size in (1, 3))
    with pytest.raises(DataError, match=rf"{OPTIMIZER}: exp_avg/extra is missing; is it of another model, or of other"):
        read(stored, whole | {"exp_avg/extra": extra})
    with pytest.raises(DataError, match=rf"{OPTIMIZER}: step/norm.weight is none of this run's"):
        read(stored, {key: value for key, value in whole.items() if key != "step/norm.weight"})
    with pytest.raises(DataError, match=rf"{OPTIMIZER}: \S+ is (missing|none of this run's); is it of .* optimiser"):
        read(stored, optimizer.build(build(), KINDS["muon"]).state())
    with pytest.raises(DataError, match=rf"{OPTIMIZER}: exp_avg/norm.weight is \[16\], and this run's \[3\]"):
        read(stored, whole | {"exp_avg/norm.weight": narrow})


def test_damaged_state_is_refused(tmp_path):
    own = optimizer.build(build(), OptimizerConfig())
    stored = checkpoint.write(tmp_path, AFTER, {OPTIMIZER: own.state()})
    tensors = load_file(stored / OPTIMIZER)
    tensors["exp_avg/norm.weight"][3] = 1.0
    save_file(tensors, stored / OPTIMIZER)
    with pytest.raises(DataError, match=rf"{OPTIMIZER}: its sha256 is not the one in state.json"):
        read(stored, own.state())


# ---- Rows of a weight


@pytest.mark.parametrize("places", [(0, 3, 7), (0, 1, 1, 6, 7)])
def test_adamw_moves_rows_by_the_same_bits_as_the_whole(places):
    """Of matrices that a processor takes evenly and of others, of stacks and of vectors."""
    shapes = [(7, 32), (7, 24), (7, 5, 3), (7,), (7, 1)]
    draw = torch.Generator().manual_seed(0)
    stretches = [slice(*ends) for ends in itertools.pairwise(places)]
    whole = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    apart = [[torch.nn.Parameter(one.detach()[rows].clone()) for one in whole] for rows in stretches]
    config = OptimizerConfig(weight_decay=0.1)

    def made(parameters):
        own = adamw.build([{"params": parameters, "lr": 0.01, "weight_decay": 0.1}], config)
        own.state.update({parameter: adamw.slots(parameter) for parameter in parameters})
        return own

    together, several = made(whole), [made(own) for own in apart]
    for _ in range(4):
        for at, one in enumerate(whole):
            one.grad = torch.randn(one.shape, generator=draw)
            for rows, own in zip(stretches, apart, strict=True):
                own[at].grad = one.grad[rows].clone()
        for part in (together, *several):
            part.step()
        for at, one in enumerate(whole):
            assert torch.equal(one, torch.cat([own[at] for own in apart]))
            for slot in ("exp_avg", "exp_avg_sq"):
                rows = [part.state[own[at]][slot] for part, own in zip(several, apart, strict=True)]
                assert torch.equal(together.state[one][slot], torch.cat(rows))


# ---- Clipping


def test_norms_are_those_before_clipping_by_group_and_of_all():
    model = build()
    own = optimizer.build(model, OptimizerConfig(clip=0.0))
    gradients(model, 0)
    norms = own.clip()
    for group, named in own.groups.items():
        squares = sum(one.grad.double().square().sum().item() for _, one in named if one.grad is not None)
        assert norms[group].item() == pytest.approx(math.sqrt(squares), rel=1e-5)
    total = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    torch.testing.assert_close(norms["all"], total)
    again = own.clip()
    assert all(torch.equal(again[name], norm) for name, norm in norms.items())  # 0: nothing was cut


def test_the_norm_of_all_is_cut():
    model = build()
    own = optimizer.build(model, OptimizerConfig(clip=0.5))
    gradients(model, 0)
    before = own.clip()
    after = own.clip()
    assert after["all"].item() == pytest.approx(0.5, rel=1e-4)
    shares = [(after[name] / before[name]).item() for name in own.groups]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-4)


def test_each_groups_norm_is_cut_alone():
    model = build()
    own = optimizer.build(model, OptimizerConfig(clip=2.0, clip_by="group"))
    gradients(model, 0, 1e-3)
    for _, router in own.groups["router"]:
        router.grad = torch.randn_like(router)
    before, after = own.clip(), own.clip()
    assert before["router"] > 2 and after["router"].item() == pytest.approx(2.0, rel=1e-4)
    assert torch.equal(before["experts"], after["experts"])


def test_a_group_without_gradients_has_norm_zero():
    model = build()
    own = optimizer.build(model, OptimizerConfig())
    own.groups["dense"][0][1].grad = torch.ones_like(own.groups["dense"][0][1])
    norms = own.clip()
    assert norms["router"] == 0 and norms["dense"] > 0
    torch.testing.assert_close(norms["all"], norms["dense"])


# ---- Schedules

SCHEDULES = [{"schedule": "cosine"}, {"schedule": "linear"}, {"schedule": "wsd"}]
SCHEDULES += [{"schedule": "wsd", "decay_shape": "linear"}]


@pytest.mark.parametrize("changes", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_schedules_warm_up_and_end_at_their_final_share(changes, steps):
    about = OptimizerConfig(learning_rate=2.0, warmup=0.1, final=0.2, **changes)
    factors = [factor(about, step, steps) for step in range(1, steps + 1)]
    top = round(0.1 * steps)
    assert all(0.2 - 1e-12 <= value <= 1 for value in factors[top:]) and factors[-1] == pytest.approx(0.2)
    assert factors[:top] == pytest.approx([(step + 1) / max(top, 1) for step in range(top)])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert learning_rate(about, steps, steps) == pytest.approx(0.4)


def test_the_middle_of_each_schedule():
    def at(step: int, **changes) -> float:
        return factor(OptimizerConfig(warmup=0.0, final=0.0, **changes), step, 100)

    assert at(50) == pytest.approx(0.5) and at(25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert at(25, schedule="linear") == pytest.approx(0.75)
    assert at(1, schedule="wsd") == at(80, schedule="wsd") == 1.0
    assert at(85, schedule="wsd") == pytest.approx(0.5) and at(85, schedule="wsd", decay_shape="linear") == 0.75
    assert at(100, schedule="wsd", decay=0.0) == 1.0
