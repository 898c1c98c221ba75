"""DeepSpeed's JSON, with the section "moe" that MoE training scripts read from it, as a configuration of ours.

It says how a model is trained and not what it is: the model is a preset with the experts of "moe", or that of the flags
beside it. Keys that are not there count with DeepSpeed's defaults (deepspeed/runtime, deepspeed/moe/layer.py).
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown
from gristmill.trainer.config_import.imported import Batch, Imported, Length, Schedule, real, truth, whole

# By reason: keys, with wildcards, that nothing here is set from.
_MEANINGLESS = {
    "what is logged is every step's event here (docs/training.md)": (
        "steps_per_print wall_clock_breakdown memory_breakdown dump_state flops_profiler.* comms_logger.* "
        "csv_monitor.* comet.* tensorboard.job_name tensorboard.output_path wandb.team wandb.group autotuning.*"
    ),
    "how ranks exchange what they compute; nothing here to tune": (
        "zero_optimization.* communication_data_type prescale_gradients gradient_predivide_factor sparse_gradients "
        "disable_allgather seq_parallel_communication_data_type data_types.* use_data_before_expert_parallelism "
        "communication.* moe.use_tutel moe.enable_expert_tensor_parallelism moe.moe_param_group aio.* compile.*"
    ),
    "bf16 needs no scale of the loss": "fp16.* bf16.* bfloat16.*",
    "checkpoints here are whole, asynchronous and exact": "checkpoint.* nebula.* load_universal_checkpoint",
    "whether activations are recomputed is said in the script; here --recompute": "activation_checkpointing.*",
    "AdamW runs fused, and as its paper has it": "optimizer.params.torch_adam optimizer.params.bias_correction "
    "optimizer.legacy_fusion zero_allow_untested_optimizer zero_force_ds_cpu_optimizer optimizer.params.fused "
    "optimizer.params.amsgrad optimizer.params.adam_w_mode",
    "the tokenizer, and with it the vocabulary, comes with the shards": "vocabulary_size dataloader_drop_last",
    "a job here has the ranks that it is started with, and resumes on others": "elasticity.* world_size",
    "experts are all the layer's own here": "moe.moe_freq moe.type",
}
_UNSUPPORTED = {
    "nothing is moved off the GPU here: --recompute, a smaller batch.micro, or more ranks": (
        "zero_optimization.offload_* zero_optimization.cpu_offload* activation_checkpointing.cpu_checkpointing"
    ),
    "batches double here (batch.ramp_from), and a mixture's phases may have other lengths (docs/mixtures.md)": (
        "curriculum_learning.* data_efficiency.*"
    ),
    "there is no model, pipeline or context parallelism here: parallel.data shards, parallel.ep spreads experts": (
        "pipeline.* tensor_parallel.* sequence_parallel_size autotp_size"
    ),
    "there is no such training here": (
        "progressive_layer_drop.* compression_training.* eigenvalue.* quantize_training.* sparse_attention.* amp.* "
        "hybrid_engine.* graph_harvesting torch_autocast.* zenflow.*"
    ),
    "tokens are dropped by weight, least first; none at random, and routers get no noise": (
        "moe.noisy_gate_policy moe.use_rts moe.top2_2nd_expert_sampling"
    ),
    "an expert's smallest capacity is 4 here, DeepSpeed's default": "moe.min_capacity",
    "of optimisers, only what optimizer.* has is here": "optimizer.params.* scheduler.params.*",
}
_IDLE = {"false", "none", "null", "{}", "[]", "4", "", "0"}
"""Values under which an unsupported key asks for nothing."""
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "fusedadam": "adamw", "muon": "muon"}


class _Keys:
    """Leaves by dotted name, each taken once."""

    def __init__(self, leaves: dict[str, Any], where: str) -> None:
        self.left, self.where = dict(leaves), where
        self.known = set[str]()

    def take(self, *names: str) -> tuple[str, Any]:
        """(name, value) of the first of these that is there; all of them are taken. None: none is.

        Raises:
            UsageError: two of them are there, and differ.
        """
        self.known |= set(names)
        found = [(name, self.left.pop(name)) for name in names if name in self.left]
        if any(value != found[0][1] for _name, value in found):
            told = ", ".join(f"{name} {value!r:.20}" for name, value in found)
            raise UsageError(f"{self.where}: {shown(told)} are the same setting, and differ; take one out")
        return found[0] if found else (names[0], None)

    def whole(self, *names: str, default: int | None = None, least: int = 0) -> Any:
        name, value = self.take(*names)
        return default if value is None else whole(self.where, name, value, least)

    def real(self, *names: str, default: float | None = None, most: float = 1e30) -> Any:
        name, value = self.take(*names)
        return default if value is None else real(self.where, name, value, 0.0, most)

    def truth(self, *names: str, default: bool) -> bool:
        name, value = self.take(*names)
        return default if value is None else truth(self.where, name, value)


def load(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        UsageError: no such file, or it holds something else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            double = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise UsageError(f"{path}: {shown(double)[:60]!r} stands twice in one object; take one out")
        return found

    def refuse(constant: str) -> Any:
        raise UsageError(f"{path}: {constant} is no number; write one")

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise UsageError(f'{path}: holds no JSON object; DeepSpeed\'s file is one, as in {{"train_batch_size": 256}}')
    return value


def read(content: dict[str, Any], where: str, preset: str = "small") -> tuple[Imported, int]:
    """(what was found, the least number of ranks that there must have been). Batch and schedule are left to finish().

    Raises:
        UsageError: a value that is none, a key that nobody knows, or settings that contradict one another.
    """
    found = Imported(where)
    leaves = _leaves(content)
    for name, value in leaves.items():
        if value == "auto":
            found.unsupported[name] = '"auto" is put in by transformers\' Trainer; write the number there'
    keys = _Keys({name: value for name, value in leaves.items() if value != "auto"}, where)
    found.set("model.preset", preset, "a preset: the file does not say what the model is")
    experts_over = _experts(keys, found)
    _precision(keys, found)
    found.batch = Batch(
        keys.whole("train_batch_size", least=1),
        keys.whole("train_micro_batch_size_per_gpu", "train_micro_batch_size", least=1),
        keys.whole("gradient_accumulation_steps", least=1),
    )
    steps = _optimizer(keys, found)
    found.length = Length(None, steps, None)
    stage = keys.whole("zero_optimization.stage", default=0)
    found.set("parallel.data", "shard" if stage else "replicate", f"zero_optimization.stage {stage}")
    _trackers(keys, found)
    _rest(keys, found)
    return found, experts_over


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            result |= _leaves(value, f"{name}.")
        else:
            result[name] = value
    return result


def _experts(keys: _Keys, found: Imported) -> int:
    """Answers the ranks over which experts were spread."""
    if not any(name.startswith("moe.") for name in keys.left):
        found.differs.append("the file has no section moe: experts are the preset's")
        return 1
    if not keys.truth("moe.enabled", default=True):
        found.unsupported["moe.enabled false"] = "a model without experts is model.dense_layers = model.layers"
    name, given = keys.take("moe.num_experts", "moe.moe_experts")
    counts = [
        whole(keys.where, name, one, 1) for one in (given if isinstance(given, list) else [given]) if one is not None
    ]
    if counts:
        found.set("model.experts", max(counts), name)
    if len(counts) > 1:
        found.set("model.pyramid", counts, name)
    top_k = keys.whole("moe.k", "moe.top_k", "moe.topk", "moe.num_experts_per_tok", default=1, least=1)
    found.set("model.top_k", top_k, "moe.k, or DeepSpeed's default")
    found.set("model.router", "softmax", "DeepSpeed's gate")
    found.set("model.options/softmax.normalise", top_k > 1, "DeepSpeed's gate: a single weight is the probability")
    drops = keys.truth("moe.drop_tokens", default=True)
    train = keys.real("moe.train_capacity_factor", "moe.capacity_factor", default=1.0)
    outside = keys.real("moe.eval_capacity_factor", default=1.0)
    found.set("model.capacity", train if drops else 0.0, "moe.train_capacity_factor, moe.drop_tokens")
    found.set("model.capacity_eval", outside if drops else 0.0, "moe.eval_capacity_factor, moe.drop_tokens")
    names = ("moe.moe_loss_coeff", "moe.loss_coeff", "moe.aux_loss_coeff", "moe.load_balance_loss_coeff")
    if (weight := keys.real(*names)) is None:
        found.differs.append("what the load-balance loss weighs is said in the script: set model.balance_loss")
    found.set("model.balance_loss", weight or 0.0, "moe.moe_loss_coeff")
    found.set("model.sequence_loss", 0.0, "DeepSpeed has none")
    found.set("model.z_loss", keys.real("moe.router_z_loss_coeff", "moe.z_loss_coeff", default=0.0), "moe.z_loss_coeff")
    if keys.truth("moe.use_residual", default=False):
        found.set("model.residual", True, "moe.use_residual")
    size = keys.whole("moe.expert_parallel_size", "moe.ep_size", default=1, least=1)
    found.set("parallel.ep", size, "moe.expert_parallel_size")
    return size


def _precision(keys: _Keys, found: Imported) -> None:
    half = keys.truth("fp16.enabled", default=False)
    brain = keys.truth("bf16.enabled", "bfloat16.enabled", default=False)
    if half:
        found.unsupported["fp16.enabled"] = "there is no fp16 here; bf16 is taken, which needs no loss scale"
    found.set("precision", "bf16" if half or brain else "fp32", "fp16.enabled" if half else "bf16.enabled")


def _optimizer(keys: _Keys, found: Imported) -> int | None:
    """Answers the steps of the run, where the scheduler tells them."""
    found.set(
        "optimizer.clip", keys.real("gradient_clipping", default=0.0), "gradient_clipping, or DeepSpeed's default"
    )
    _name, kind = keys.take("optimizer.type")
    params = "optimizer.params."
    peak = keys.real(f"{params}lr")
    if kind is not None:
        ours = _OPTIMIZERS.get(str(kind).lower())
        if ours is None:
            found.unsupported[f"optimizer.type {kind}"] = "adamw, muon and adafactor are here; adamw is taken"
        found.set("optimizer.kind", ours or "adamw", "optimizer.type")
        name, betas = keys.take(f"{params}betas")
        if not isinstance(betas := [0.9, 0.999] if betas is None else betas, list) or len(betas) != 2:
            raise UsageError(f"{keys.where}: {name}: {betas!r:.60} are not two numbers, as in [0.9, 0.95]")
        for setting, value in zip(("beta1", "beta2"), betas):
            found.set(f"optimizer.{setting}", real(keys.where, name, value, 0.0, 1.0), name)
        found.set("optimizer.eps", keys.real(f"{params}eps", default=1e-8), f"{params}eps")
        found.set("optimizer.weight_decay", keys.real(f"{params}weight_decay", default=0.0), f"{params}weight_decay")
        if (momentum := keys.real(f"{params}momentum", most=1.0)) is not None:
            found.set("optimizer.momentum", momentum, f"{params}momentum")
    return _schedule(keys, found, peak)


def _schedule(keys: _Keys, found: Imported, peak: float | None) -> int | None:
    _name, kind = keys.take("scheduler.type")
    params = "scheduler.params."
    top = keys.real(f"{params}warmup_max_lr")
    peak = top if peak is None else peak
    steps, warmup = keys.whole(f"{params}total_num_steps"), keys.real(f"{params}warmup_num_steps", default=0.0)
    style, least = "constant", 0.0
    if kind == "WarmupDecayLR":
        style = "linear"
    elif kind == "WarmupCosineLR":
        style, least = "cosine", keys.real(f"{params}cos_min_ratio", default=1e-4, most=1.0) * (peak or 0.0)
    elif kind not in (None, "WarmupLR"):
        found.unsupported[f"scheduler.type {kind}"] = "cosine, linear and wsd are here; the rate stays as it is"
    for name, usual in (("warmup_min_lr", 0.0), ("warmup_min_ratio", 0.0)):
        if keys.real(f"{params}{name}", default=usual) > 0:
            found.unsupported[params + name] = "warm-up begins at 0 here"
    name, shape = keys.take(f"{params}warmup_type")
    if kind is not None and (shape or "log") != "linear":
        found.differs.append(f"warm-up is a line here; {name} was {shape or 'log, the default'}")
    if peak:
        found.schedule = Schedule(style, peak, least, (warmup, "steps"))
    else:
        found.differs.append("no learning rate is told: ours stands; set optimizer.learning_rate")
    return steps


def _trackers(keys: _Keys, found: Imported) -> None:
    use = [name for name in ("tensorboard", "wandb") if keys.truth(f"{name}.enabled", default=False)]
    if use:
        found.set("trackers.use", use, "tensorboard.enabled, wandb.enabled")
    _name, project = keys.take("wandb.project")
    if isinstance(project, str) and project:
        found.set("trackers.project", project, "wandb.project")


def _rest(keys: _Keys, found: Imported) -> None:
    """What nobody took: told of by the tables, or unknown.

    Raises:
        UsageError: keys that are in no table, each with the nearest that is known.
    """
    unknown: list[str] = []
    for name, value in keys.left.items():
        told = f"{name} {json.dumps(value)[:40]}"
        hard = _reason(_UNSUPPORTED, name)
        soft = _reason(_MEANINGLESS, name)
        if hard and not (soft and hard.startswith("of optimisers")):
            idle = str(value).lower() in _IDLE
            (found.meaningless if idle else found.unsupported)[told] = hard
        elif soft:
            found.meaningless[told] = soft
        else:
            unknown.append(name)
    if unknown:
        tables = [one for table in (_UNSUPPORTED, _MEANINGLESS) for names in table.values() for one in names.split()]
        known = [*keys.known, *(one.removesuffix(".*") for one in tables)]
        told = "; ".join(f"{shown(name)[:60]}{_hint(name, known)}" for name in unknown[:10])
        raise UsageError(
            f"{keys.where}: {len(unknown)} key{'s' * (len(unknown) > 1)} that DeepSpeed's file does not have: {told}. "
            "Mend the name, or take it out of the file"
        )


def _reason(table: dict[str, str], name: str) -> str:
    return next((why for why, names in table.items() if any(fnmatch.fnmatch(name, one) for one in names.split())), "")


def _hint(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint.replace("; did you mean ", " (did you mean ").replace("?", "?)") if "did you mean" in hint else ""
