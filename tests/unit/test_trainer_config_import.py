"""`trainer config import`: DeepSpeed's JSON and Megatron's flags, key by key; nothing is dropped in silence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from gristmill.base.config import from_mapping
from gristmill.base.errors import UsageError
from gristmill.trainer import cli
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.config_import import command
from gristmill.trainer.config_import.deepspeed import _leaves
from gristmill.trainer.config_import.flags import read as flags_of
from gristmill.trainer.config_import.imported import Imported
from gristmill.trainer.model.config import resolve

DEEPSPEED = {
    "train_batch_size": 256,
    "gradient_accumulation_steps": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 0.0001, "betas": [0.9, 0.999], "eps": 1e-8}},
    "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16},
    "moe": {
        "enabled": True, "num_experts": 128, "expert_parallel_size": 8, "moe_loss_coeff": 0.01,
        "train_capacity_factor": 1.25, "eval_capacity_factor": 2.0, "min_capacity": 4, "drop_tokens": True,
        "use_residual": False, "use_tutel": False,
    },
    "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}, "overlap_comm": True},
}  # fmt: skip
MODEL = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 128 --lr 1e-3 --train-iters 100 "
BATCH = "--micro-batch-size 2 --global-batch-size 32 "
ALL = {"train_batch_size": 256, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}
SCRIPT = """#!/bin/bash
GPUS_PER_NODE=8
NUM_NODES=${SLURM_NNODES:-4}
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))  # 32
CHECKPOINT_PATH=$1
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
    --master_addr $MASTER_ADDR
)
MODEL_ARGS=(
    --use-mcore-models
    --seq-length 4096
    --num-layers 27      # the first one dense
    --hidden-size 2048
    --ffn-hidden-size 10944
    --num-attention-heads 16
    --kv-channels 16
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --attention-dropout 0.0 --hidden-dropout 0.0
    --untie-embeddings-and-output-weights --multi-latent-attention --kv-lora-rank 512 --qk-layernorm
)
MOE_ARGS=(
    --num-experts 64 --moe-layer-freq "([0]*1+[1]*26)" --moe-ffn-hidden-size 1408 --moe-router-topk 6
    --moe-shared-expert-intermediate-size 2816 --moe-router-load-balancing-type seq_aux_loss
    --moe-aux-loss-coeff 1e-3 --moe-router-score-function sigmoid --moe-router-enable-expert-bias
    --moe-router-topk-scaling-factor 2.446 --moe-token-dispatcher-type alltoall --moe-grouped-gemm
)
TRAINING_ARGS="
    --micro-batch-size 1 --global-batch-size 1024 --lr 3e-4 --min-lr 3e-5 --train-iters 500000
    --lr-decay-style cosine --lr-warmup-iters 2000 --clip-grad 1.0 --weight-decay 0.1 --bf16
    --adam-beta2 0.95
"
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \\
    ${MODEL_ARGS[@]} ${MOE_ARGS[@]} $TRAINING_ARGS \\
    --expert-model-parallel-size 8 --tensor-model-parallel-size 1 --use-distributed-optimizer \\
    --save $CHECKPOINT_PATH --load $CHECKPOINT_PATH
"""


def imported(
    file: Path | None = None, flags: str = "", ranks: int | None = None, sequence: int | None = None
) -> Imported:
    return command.import_from(file, flags, "auto", "small", ranks, sequence)


def deepspeed(folder: Path, ranks: int | None = None, flags: str = "", **changes) -> Imported:
    path = folder / "ds_config.json"
    path.write_text(json.dumps(DEEPSPEED | changes))
    return imported(path, flags, ranks)


def test_a_deepspeed_file_gives_a_run_file_that_trainer_run_takes(tmp_path):
    found = deepspeed(tmp_path)
    (tmp_path / "run.toml").write_text(found.toml())
    config = from_mapping(TrainConfig, tomllib.loads(found.toml()), "run.toml")
    assert config == found.config()
    model = resolve(config.model, 1000)
    assert (model.experts, model.top_k, model.capacity, model.capacity_eval) == (128, 1, 1.25, 2.0)
    assert (model.balance_loss, model.sequence_loss, model.options["softmax.normalise"]) == (0.01, 0.0, False)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.beta2, optimizer.weight_decay, optimizer.clip) == (1e-4, 0.999, 0, 0)
    assert (optimizer.schedule, optimizer.final, config.precision) == ("linear", 1.0, "bf16")
    assert (config.parallel.ep, config.parallel.data) == (8, "shard")
    assert (config.batch.sequences, config.batch.micro) == (256, 32)  # on the 8 GPUs that experts were spread over


def test_every_key_of_a_deepspeed_file_is_somewhere(tmp_path):
    found = deepspeed(tmp_path, steps_per_print=10, wall_clock_breakdown=False)
    told = " ".join([*found.sources.values(), *found.unsupported, *found.meaningless])
    arithmetic = {"train_batch_size", "gradient_accumulation_steps", "optimizer.params.lr"}  # of batch and schedule
    switches = {"moe.enabled", "moe.use_residual"}  # as they are here too
    missing = {name for name in _leaves(DEEPSPEED) if name not in told} - arithmetic - switches
    assert missing == set()
    assert any(name.startswith("zero_optimization.offload_optimizer") for name in found.unsupported)
    assert "steps_per_print 10" in found.meaningless


@pytest.mark.parametrize(
    ("told", "ranks", "batch"),
    [
        (ALL, 16, (256, 4)),
        (ALL, None, (256, 4)),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, 16, (256, 4)),
        ({"train_micro_batch_size_per_gpu": 4}, 16, (64, 4)),
        ({"train_batch_size": 256, "gradient_accumulation_steps": 2}, 16, (256, 8)),
        ({"train_batch_size": 256, "train_micro_batch_size_per_gpu": 4}, 16, (256, 4)),
        ({"train_batch_size": 256}, 16, (256, 16)),
    ],
)  # fmt: skip
def test_a_batch_is_micro_times_accumulation_times_ranks(tmp_path, told, ranks, batch):
    (tmp_path / "ds.json").write_text(json.dumps(told))
    config = imported(tmp_path / "ds.json", "", ranks, 512).config()
    assert (config.batch.sequences, config.batch.micro, config.batch.sequence) == (*batch, 512)


@pytest.mark.parametrize(
    ("told", "ranks"),
    [
        (ALL, 8),
        ({"train_batch_size": 250, "train_micro_batch_size_per_gpu": 4}, 16),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, None),
    ],
)
def test_a_batch_that_does_not_come_out_is_refused(tmp_path, told, ranks):
    (tmp_path / "ds.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"the batch|--ranks"):
        imported(tmp_path / "ds.json", "", ranks)


@pytest.mark.parametrize(
    ("scheduler", "shape"),
    [
        ({"type": "WarmupLR", "params": {"warmup_num_steps": 50, "warmup_max_lr": 0.01}}, ("linear", 1.0, 0.05)),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": 500, "warmup_num_steps": 50}}, ("linear", 0.0, 0.1)),
        (
            {
                "type": "WarmupCosineLR",
                "params": {"total_num_steps": 200, "warmup_num_steps": 50, "cos_min_ratio": 0.1},
            },
            ("cosine", 0.1, 0.25),
        ),
    ],
)
def test_steps_of_a_schedule_become_shares_of_the_run(tmp_path, scheduler, shape):
    optimizer = deepspeed(tmp_path, scheduler=scheduler).config().optimizer
    assert (optimizer.schedule, optimizer.final, optimizer.warmup) == shape


def test_a_megatron_script_with_variables_and_arrays(tmp_path):
    (tmp_path / "pretrain.sh").write_text(SCRIPT)
    found = imported(tmp_path / "pretrain.sh")
    config, model = found.config(), resolve(found.config().model, 1000)
    assert (model.layers, model.width, model.heads, model.head_dim, model.attention) == (27, 2048, 16, 192, ("mla",))
    assert (model.dense_layers, model.moe_every, model.dense_width) == (1, 1, 10944)
    assert (model.experts, model.top_k, model.expert_width, model.shared_experts) == (64, 6, 1408, 2)
    assert model.options["sigmoid.scale"] == 2.446 and model.options["mla.kv_lora"] == 512
    assert (model.balance_loss, model.sequence_loss, model.z_loss, model.tie_embeddings) == (0.0, 1e-3, 0.0, False)
    assert config.tokens == 500_000 * 1024 * 4096 and (config.batch.sequences, config.batch.micro) == (1024, 1)
    optimizer = config.optimizer
    assert (optimizer.warmup, optimizer.final, optimizer.beta2) == (0.004, 0.1, 0.95)
    assert (config.parallel.ep, config.parallel.data) == (8, "shard")
    assert found.differs == []  # nothing in it is otherwise here
    assert {name.split()[0] for name in found.unsupported} == {"--save", "--load"}
    assert "--moe-grouped-gemm" in found.meaningless and "--master-addr" not in found.sources


def test_flags_that_are_not_given_count_with_megatron_s_defaults():
    found = imported(flags=MODEL + BATCH + "--num-experts 8")
    config, model = found.config(), resolve(found.config().model, 1000)
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.beta2, optimizer.schedule, optimizer.final) == (
        0.01,
        0.999,
        "linear",
        0.0,
    )
    assert (model.norm_eps, model.top_k, model.balance_loss, model.sequence_loss) == (1e-5, 2, 0.0, 0.0)
    assert (model.expert_width, model.kv_heads, config.seed) == (256, 4, 1234)
    assert len(found.differs) == 6  # SwiGLU, RMSNorm, rotary positions, biases, two dropouts
    assert found.sources["optimizer.weight_decay"].startswith("no --weight-decay")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--num-experts 8 --moe-layer-freq 2", {"moe_every": 2, "dense_layers": 0}),
        ("--num-experts 8 --moe-layer-freq [0,0,1,1]", {"moe_every": 1, "dense_layers": 2}),
        ("--num-experts 8 --moe-layer-freq ([0]+[1])*2", {"moe_every": 2, "dense_layers": 0}),
        ("--num-experts 8 --moe-router-topk 1 --moe-router-pre-softmax", {"top_k": 1}),
        ("--num-experts 8 --moe-expert-capacity-factor 1.25", {"capacity": 1.25, "capacity_eval": 1.25}),
        ("--num-experts 8 --moe-aux-loss-coeff 1e-2 --moe-z-loss-coeff 1e-3", {"balance_loss": 0.01, "z_loss": 0.001}),
        ("--num-experts 8 --moe-router-load-balancing-type aux_loss seq_aux_loss --moe-aux-loss-coeff 0.01 0.02",
         {"balance_loss": 0.01, "sequence_loss": 0.02}),
        ("--num-experts 4 8 --topk 1 --mlp-type residual --moe-loss-coeff 0.01",
         {"pyramid": (4, 8), "residual": True, "top_k": 1, "moe_every": 2, "capacity": 1.0}),
        ("--num-experts 8 --group-query-attention --num-query-groups 2", {"kv_heads": 2}),
        ("--num-experts 8 --window-size 127,0 --window-attn-skip-freq 2", {"attention": ("swa", "gqa")}),
        ("--ffn-hidden-size 128", {"dense_layers": 4, "dense_width": 128}),
    ],
)  # fmt: skip
def test_what_megatron_s_model_flags_become(flags, wanted):
    model = resolve(imported(flags=MODEL + BATCH + flags).config().model, 1000)
    assert {name: getattr(model, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--bf16 --fp8-format e4m3 --fp8-recipe blockwise", {"precision": "bf16", "expert_precision": "fp8"}),
        ("--recompute-granularity full --recompute-method uniform", {"recompute": True}),
        ("--save-interval 7 --eval-iters 0", {"checkpoint_every": 7, "validate_tokens": 0}),
    ],
)
def test_what_megatron_s_other_flags_become(flags, wanted):
    config = imported(flags=MODEL + BATCH + "--num-experts 8 " + flags).config()
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_wsd_samples_and_ranks():
    flags = (
        MODEL.replace("--train-iters 100", "--train-samples 3200")
        + "--micro-batch-size 2 --lr-decay-style WSD --lr-wsd-decay-style minus_sqrt --lr-wsd-decay-iters 25 "
        "--lr-warmup-samples 320 --tensor-model-parallel-size 2 --num-experts 8"
    )
    found = imported(flags=flags, ranks=32)
    config = found.config()
    assert (config.batch.sequences, config.steps) == (32, 100)  # 2 x 32 GPUs / 2
    optimizer = config.optimizer
    assert (optimizer.schedule, optimizer.warmup, optimizer.decay, optimizer.decay_shape) == ("wsd", 0.1, 0.25, "sqrt")
    assert any("--tensor-model-parallel-size 2" in name for name in found.unsupported)


def test_a_deepspeed_file_beside_the_script_that_reads_it(tmp_path):
    flags = MODEL + "--micro-batch-size 4 --ffn-hidden-size 128"
    config = deepspeed(tmp_path, ranks=16, flags=flags, gradient_accumulation_steps=4, gradient_clipping=0.5).config()
    model = resolve(config.model, 1000)
    assert (model.layers, model.experts, model.expert_width, model.capacity) == (4, 128, 128, 1.25)
    assert (config.batch.sequences, config.batch.micro, config.optimizer.clip) == (256, 4, 0.5)
    with pytest.raises(UsageError, match="sequences"):
        deepspeed(tmp_path, ranks=16, flags=flags + " --global-batch-size 128")


def test_a_name_that_nobody_knows_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"--num-exprts \(did you mean --num-experts\?\)"):
        imported(flags=MODEL + BATCH + "--num-exprts 8")
    with pytest.raises(UsageError, match=r"moe\.num_expert \(did you mean 'moe\.num_experts'\?\)"):
        deepspeed(tmp_path, moe={"num_expert": 8})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "[" * 100_000, '{"train_batch_size": NaN}', '{"a": 1, "a": 2}', '{"train_batch_size": 1e400}',
        '{"train_batch_size": -1}', '{"train_batch_size": "many"}', '{"train_batch_size": true}',
        '{"train_batch_size": 1' + "0" * 5000 + "}", '{"moe": 3}', '{"moe": {"num_experts": [1, "x"]}}',
        '{"optimizer": {"type": "Adam", "params": {"lr": 1, "betas": 3}}}', '{"bf16": {"enabled": "perhaps"}}',
        '{"moe": {"num_experts": 4, "k": 2, "top_k": 3}}', '{"moe": {"num_experts": 999999999999}}',
    ],
)  # fmt: skip
def test_odd_json_is_refused_in_one_line(tmp_path, text, capsys, monkeypatch):
    (tmp_path / "ds.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["trainer", "config", "import", str(tmp_path / "ds.json")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr()
    assert end.value.code == 2 and told.out == "" and len(told.err.splitlines()) == 1 and len(told.err) < 900


@pytest.mark.parametrize(
    "flags",
    [
        "no flags", "'--num-layers 4", MODEL + "--num-experts", MODEL + "--num-experts 8x", MODEL + "--swiglu 3",
        MODEL + BATCH + "--num-experts 8 --moe-layer-freq [1]*999999999999",
        MODEL + BATCH + "--num-experts 8 --moe-layer-freq __import__('os')",
        MODEL.replace("4", "99999999999", 1), MODEL.replace("--lr 1e-3", "--lr nan"),
        MODEL + "--global-batch-size $BATCH",
        MODEL + BATCH + "--num-experts 8 --moe-router-topk 9", "--lr 1",
        MODEL + BATCH + "--num-experts 8 --moe-router-score-function tanh",
        MODEL + BATCH + "--num-experts 8 --moe-layer-freq " + "(" * 3000,
    ],
)  # fmt: skip
def test_odd_flags_are_refused_in_one_line(flags):
    with pytest.raises(UsageError) as told:
        imported(flags=flags).config()
    assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 900


def test_a_key_cannot_write_lines_of_its_own(tmp_path):
    found = deepspeed(tmp_path, wandb={"enabled": True, "project": 'x"\nseed = 7\n[model]'})
    config = from_mapping(TrainConfig, tomllib.loads(found.toml()), "run.toml")
    assert config.seed == 0
    (tmp_path / "hostile.json").write_text(json.dumps({"\x1b[2J\nmoe": 1}))
    with pytest.raises(UsageError) as told:
        imported(tmp_path / "hostile.json")
    assert "\x1b" not in str(told.value) and "\n" not in str(told.value)


def test_sums_and_defaults_of_a_script_nothing_is_run(tmp_path):
    text = f"A=3\nB=$((A * (2 + 1)))\nC=$(touch {tmp_path}/ran)\nX=(--x $B --y ${{D:-7}} \\\n --z=$A)\n"
    text += "run.py --w $C --v $(id)"
    assert flags_of(text, "script") == {"x": ["9"], "y": ["7"], "z": ["3"], "w": ["$(touch"], "v": ["$(id)"]}
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_file_once_and_says_what_did_not_come_along(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run.toml"
    monkeypatch.setattr("sys.argv", ["trainer", "config", "import", "--flags", MODEL + BATCH, "--output", str(out)])
    for code in (0, 2):
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == code
    told = capsys.readouterr()
    assert "100 steps of 4,096 tokens" in told.out and "otherwise here:" in told.out and "is there already" in told.err
    assert "# otherwise here:" in out.read_text()
