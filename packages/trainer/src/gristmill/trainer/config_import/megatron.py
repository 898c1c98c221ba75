"""Megatron-LM's flags, and Megatron-DeepSpeed's, as a configuration of ours.

Flags that are not given count with Megatron's defaults, not with ours: a script without --weight-decay trains with
0.01. Names and defaults are those of megatron/training/arguments.py in 2025, and of Megatron-DeepSpeed's arguments.py.
"""

from __future__ import annotations

import fnmatch

from gristmill.base.config import nearest
from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown
from gristmill.trainer.config_import.flags import Flags
from gristmill.trainer.config_import.imported import Batch, Imported, Length, Schedule, whole
from gristmill.trainer.config_import.megatron_flags import MEANINGLESS, UNSUPPORTED
from gristmill.trainer.config_import.megatron_model import read_experts, read_shape
from gristmill.trainer.config_import.reader import UNTOLD, Reader

_DEEPSPEED_ONLY = {
    "moe-expert-parallel-size", "moe-loss-coeff", "moe-train-capacity-factor", "moe-eval-capacity-factor", "topk",
    "expert-interval", "mlp-type", "disable-moe-token-dropping", "moe-min-capacity", "deepspeed", "deepspeed-config",
}  # fmt: skip


def read(flags: Flags, where: str, base: Imported | None = None) -> tuple[Imported, int]:
    """(what was found, the least number of ranks that there must have been). Batch and schedule are left to finish().

    Args:
        base: what a DeepSpeed file said; flags win.

    Raises:
        UsageError: a value that is none, a flag that nobody knows, or settings that contradict one another.
    """
    reader = Reader(flags, where)
    found = base or Imported(where)
    if base is not None and base.where != where:
        found.where = f"{base.where} and {where}"
    before = {name: (value, found.sources[name]) for name, value in found.settings.items()}
    deepspeed = bool(_DEEPSPEED_ONLY & reader.given)
    layers = read_shape(reader, found)
    read_experts(reader, found, layers, deepspeed)
    _precision(reader, found)
    experts_over = _parallel(reader, found)
    _training(reader, found)
    _optimizer(reader, found)
    _watching(reader, found)
    _rest(reader, found)
    for name, (value, source) in before.items():
        if found.sources[name].startswith(UNTOLD):  # what the file says holds against a default
            found.set(name, value, source)
    return found, experts_over


def _precision(reader: Reader, found: Imported) -> None:
    half, brain = reader.on("fp16"), reader.on("bf16")
    if half:
        found.unsupported["--fp16"] = "there is no fp16 here; bf16 is taken, which needs no loss scale"
    if half or brain or "precision" not in found.settings:
        found.set("precision", "bf16" if half or brain else "fp32", reader.source("bf16", "fp16"))
    recipe = reader.choice("fp8-recipe", "delayed", "delayed tensorwise blockwise mxfp8 custom")
    eight, four = reader.text("fp8-format"), reader.text("fp4-format")
    kind = "nvfp4" if four else {"blockwise": "fp8", "mxfp8": "mxfp8"}.get(recipe, "") if eight else ""
    if kind:
        found.set("expert_precision", kind, reader.source("fp4-format", "fp8-recipe"))
        found.differs.append(f"the experts' products alone are in {kind}; all others are in bf16")
    elif eight:
        found.unsupported[f"--fp8-recipe {recipe}"] = "scales are by block here: blockwise, or mxfp8"
    how = reader.choice("recompute-granularity", "none", "none full selective")
    old = reader.on("checkpoint-activations")
    if how == "full" or old:
        found.set("recompute", True, reader.source("recompute-granularity", "checkpoint-activations"))
    partly = reader.on("recompute-activations") or how == "selective"
    if partly:
        found.meaningless["--recompute-granularity selective"] = "attention's scores are never stored here"
    for name in ("recompute-method", "recompute-num-layers", "recompute-modules", "moe-layer-recompute",
                 "distribute-saved-activations", "checkpoint-num-layers"):  # fmt: skip
        reader.known.add(name)
        if reader.left.pop(name, None) is not None:
            found.unsupported[f"--{name}"] = "all layers are recomputed here, or none: --recompute"


def _parallel(reader: Reader, found: Imported) -> int:
    """Answers the ranks over which experts were spread."""
    names = ("expert-model-parallel-size", "moe-expert-parallel-size")
    size = max(reader.whole(name, 1, 1) for name in names)
    if size > 1 or "parallel.ep" not in found.settings:
        found.set("parallel.ep", size, reader.source(*names))
    strategy = reader.choice(
        "data-parallel-sharding-strategy", "no_shard", "no_shard optim optim_grads optim_grads_params"
    )
    stage = reader.whole("zero-stage", 0, 0, 3)
    named = ("use-distributed-optimizer", "use-torch-fsdp2", "use-megatron-fsdp", "use-custom-fsdp")
    shard = sum(reader.on(name) for name in named) > 0 or strategy != "no_shard" or stage > 0
    if shard or "parallel.data" not in found.settings:
        source = reader.source(*named, "data-parallel-sharding-strategy", "zero-stage")
        found.set("parallel.data", "shard" if shard else "replicate", source)
    return max(size, 1)


def _training(reader: Reader, found: Imported) -> None:
    """Batch and length; what a DeepSpeed file said of the batch must agree."""
    micro, sequences = reader.whole("micro-batch-size", None, 1), reader.whole("global-batch-size", None, 1)
    each, nodes = _count(reader, "nproc-per-node", "num-gpus"), _count(reader, "nnodes", "num-nodes")
    world = each * (nodes or 1) if each else None
    apart = 1
    for name in ("tensor-model-parallel-size", "model-parallel-size", "pipeline-model-parallel-size",
                 "context-parallel-size"):  # fmt: skip
        size = reader.whole(name, 1, 1)
        if size > 1:
            found.unsupported[f"--{name} {size}"] = next(
                why for why, names in UNSUPPORTED.items() if name[:20] in names
            )
        apart *= size
    if found.batch.ranks is not None:  # given by hand
        world = found.batch.ranks
    if world is not None and world % apart:
        raise UsageError(f"{reader.where}: {world} GPUs are no multiple of the {apart} that one model was spread over")
    told = Batch(sequences, micro, None, world and world // apart)
    for name, ours, theirs in zip(Batch._fields, told, found.batch):
        if name != "ranks" and None not in (ours, theirs) and ours != theirs:
            raise UsageError(
                f"{found.where}: the two do not agree on {name} of a batch: {theirs}, and {ours}; mend one"
            )
    found.batch = Batch(*(theirs if ours is None else ours for ours, theirs in zip(told, found.batch)))
    steps, windows = reader.whole("train-iters"), reader.whole("train-samples", most=2**53)
    sequence = reader.whole("seq-length", None, 1)
    own = Length(sequence, steps, windows)
    found.length = Length(*(theirs if ours is None else ours for ours, theirs in zip(own, found.length)))
    found.set("seed", reader.whole("seed", 1234), reader.source("seed"))


def _count(reader: Reader, *names: str) -> int | None:
    """A launcher's number; what a variable stands for that is set elsewhere is not known."""
    number = None
    for name in names:
        reader.known.add(name)
        given = reader.left.pop(name, [])
        if given and given[0].isdigit():
            number = whole(reader.where, f"--{name}", given[0], 1)
    return number


def _optimizer(reader: Reader, found: Imported) -> None:
    kind = reader.text("optimizer", "adam")
    kinds = {"adam": "adamw", "muon": "muon", "dist_muon": "muon"}
    if kind not in kinds:
        found.unsupported[f"--optimizer {kind}"] = "adamw, muon and adafactor are here; adamw is taken"
    found.set("optimizer.kind", kinds.get(kind, "adamw"), reader.source("optimizer"))
    if reader.on("no-decoupled-weight-decay"):
        found.unsupported["--no-decoupled-weight-decay"] = "weight decay is decoupled here, as in AdamW"
    for setting, name, default in (
        ("weight_decay", "weight-decay", 0.01), ("beta1", "adam-beta1", 0.9), ("beta2", "adam-beta2", 0.999),
        ("eps", "adam-eps", 1e-8), ("clip", "clip-grad", 1.0),
    ):  # fmt: skip
        found.set(f"optimizer.{setting}", reader.real(name, default), reader.source(name))
    if "muon-momentum" in reader.given:
        found.set("optimizer.momentum", reader.real("muon-momentum"), "--muon-momentum")
    if "decoupled-lr" in reader.given:
        found.set("optimizer.embeddings.learning_rate", reader.real("decoupled-lr"), "--decoupled-lr")
    reader.on("use-distributed-optimizer")
    peak = reader.real("lr", None)
    if peak is None and found.schedule is None:
        raise UsageError(f"{reader.where}: --lr is missing: how fast did it learn?")
    style = reader.choice("lr-decay-style", "linear", "constant linear cosine inverse-square-root WSD")
    shape = reader.choice("lr-wsd-decay-style", "exponential", "exponential linear cosine minus_sqrt")
    if style == "inverse-square-root":
        found.unsupported["--lr-decay-style inverse-square-root"] = "cosine, linear and wsd are here; cosine is taken"
        style = "cosine"
    if style == "WSD" and shape in ("exponential", "cosine"):
        found.unsupported[f"--lr-wsd-decay-style {shape}"] = "linear and sqrt are here; linear is taken"
    warmup = _warmup(reader)
    falls, wsd = reader.whole("lr-decay-iters"), reader.whole("lr-wsd-decay-iters")
    if falls is not None and falls != found.length.steps:
        found.unsupported[f"--lr-decay-iters {falls}"] = "the rate falls to the run's last step here"
    least = reader.real("min-lr", 0.0)
    if peak is None:
        return
    if not peak > 0:
        raise UsageError(f"{reader.where}: --lr must be above 0 (got {peak:g})")
    found.schedule = Schedule(
        style.lower(), peak, least, warmup,
        (wsd, "steps") if wsd is not None else (0.2, "share"), "sqrt" if shape == "minus_sqrt" else "linear",
    )  # fmt: skip


def _warmup(reader: Reader) -> tuple[float, str]:
    share, steps = reader.real("lr-warmup-fraction", None, 0, 1), reader.whole("lr-warmup-iters", 0)
    windows = reader.whole("lr-warmup-samples", 0, most=2**53)
    if share is not None:
        return share, "share"
    return (windows, "windows") if windows else (steps, "steps")


def _watching(reader: Reader, found: Imported) -> None:
    if every := reader.whole("save-interval", 0):
        found.set("checkpoint_every", every, "--save-interval")
    if every := reader.whole("eval-interval", 1000):
        found.set("validate_every", every, reader.source("eval-interval"))
    rounds = reader.whole("eval-iters", 100)
    if not rounds:
        found.set("validate_tokens", 0, "--eval-iters")
    elif "eval-iters" in reader.given:
        found.unsupported[f"--eval-iters {rounds}"] = "a validation reads validate_tokens (50,000) of each source"
    use = []
    if project := reader.text("wandb-project"):
        use.append("wandb")
        found.set("trackers.project", project, "--wandb-project")
    if name := reader.text("wandb-exp-name"):
        found.set("trackers.name", name, "--wandb-exp-name")
    if reader.text("tensorboard-dir"):
        use.append("tensorboard")
    if use:
        found.set("trackers.use", use, reader.source("wandb-project", "tensorboard-dir"))


def _rest(reader: Reader, found: Imported) -> None:
    """What nobody took: told of by the tables, or unknown.

    Raises:
        UsageError: flags that are in no table, each with the nearest that is known.
    """
    unknown: list[str] = []
    for name, values in reader.left.items():
        told = f"--{name}{' ' + ' '.join(values)[:40] if values else ''}"
        for table, notes in ((UNSUPPORTED, found.unsupported), (MEANINGLESS, found.meaningless)):
            reasons = [why for why, names in table.items() if any(fnmatch.fnmatch(name, one) for one in names.split())]
            if reasons:
                notes[told] = reasons[0]
                break
        else:
            unknown.append(name)
    if unknown:
        known = [
            *reader.known,
            *(n for table in (UNSUPPORTED, MEANINGLESS) for names in table.values() for n in names.split()),
        ]
        plain = [name for name in known if "*" not in name]
        told = "; ".join(f"--{shown(name)[:60]}{_hint(name, plain)}" for name in unknown[:10])
        raise UsageError(
            f"{reader.where}: {len(unknown)} flag{'s' * (len(unknown) > 1)} that Megatron does not have: {told}. Mend "
            "the name, or take it out of the text"
        )


def _hint(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint.replace("; did you mean '", " (did you mean --").replace("'?", "?)") if "did you mean" in hint else ""
