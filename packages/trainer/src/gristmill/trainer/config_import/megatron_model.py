"""The model in Megatron's flags: attention, norms, which layers have experts, how they are chosen and balanced."""

from __future__ import annotations

import ast
import re
from typing import Any

from gristmill.base.errors import UsageError
from gristmill.base.terminal import shown
from gristmill.trainer.config_import.imported import MOST_LAYERS, Imported, real, whole
from gristmill.trainer.config_import.reader import Reader


def read_shape(reader: Reader, found: Imported) -> int:
    """Everything but the experts; answers how many layers there are."""
    for name in ("num-layers", "hidden-size", "num-attention-heads"):
        if name not in reader.given:
            raise UsageError(f"{reader.where}: --{name} is missing, and without it there is no model to make")
    layers = reader.whole("num-layers", least=1, most=MOST_LAYERS)
    width, heads = reader.whole("hidden-size", least=1), reader.whole("num-attention-heads", least=1)
    found.set("model.layers", layers, "--num-layers")
    found.set("model.width", width, "--hidden-size")
    found.set("model.heads", heads, "--num-attention-heads")
    head_dim = reader.whole("kv-channels", max(width // heads, 1), 1)
    found.set("model.head_dim", head_dim, "--kv-channels or width / heads")
    grouped, groups = reader.on("group-query-attention"), reader.whole("num-query-groups", 1, 1)
    if "num-query-groups" in reader.given and not grouped:
        found.meaningless["--num-query-groups"] = "it counts beside --group-query-attention alone"
    found.set("model.kv_heads", groups if grouped else heads, reader.source("num-query-groups"))
    norm = reader.on("qk-layernorm")
    if reader.on("multi-latent-attention"):
        _latent(reader, found, heads)
    else:
        _plain_attention(reader, found, norm)
    found.set("model.rope_theta", reader.real("rotary-base", 10_000.0, 2.0), reader.source("rotary-base"))
    found.set("model.norm_eps", reader.real("norm-epsilon", 1e-5), reader.source("norm-epsilon"))
    name = "untie-embeddings-and-output-weights"
    found.set("model.tie_embeddings", not reader.on(name), reader.source(name))
    if not reader.on("swiglu"):
        found.differs.append("networks are SwiGLU here; without --swiglu they had two maps instead of three")
    if (norm_kind := reader.text("normalization", "LayerNorm")) != "RMSNorm":
        found.differs.append(f"norms are RMSNorm here; they were {norm_kind}")
    position = reader.text("position-embedding-type", "learned_absolute")
    if not (reader.on("use-rotary-position-embeddings") or position == "rope"):
        found.differs.append(f"positions are rotary here; they were {position}")
    if not reader.on("disable-bias-linear"):
        found.differs.append("products have no bias here; without --disable-bias-linear they had one")
    for name in ("attention-dropout", "hidden-dropout"):
        if reader.real(name, 0.1) > 0:
            found.differs.append(f"there is no dropout here; --{name} was not 0")
    return layers


def _plain_attention(reader: Reader, found: Imported, norm: bool) -> None:
    kinds, window = ["gqa"], reader.several("window-size", [""])
    every = reader.text("window-attn-skip-freq")
    if "window-size" in reader.given:
        left = re.split(r"[\s,()]+", " ".join(window).strip("() "))[0]
        kinds = ["swa"]
        size = whole(reader.where, "--window-size", left) + 1  # itself among them
        found.set("model.options/swa.window", size, "--window-size")
        if every:
            if every.isdigit() and 1 < int(every) <= MOST_LAYERS:
                kinds = ["swa"] * (int(every) - 1) + ["gqa"]
            else:
                found.unsupported[f"--window-attn-skip-freq {every}"] = "name the kinds in model.attention"
    found.set("model.attention", kinds, reader.source("window-size"))
    for kind in dict.fromkeys(kinds):
        found.set(f"model.options/{kind}.qk_norm", norm, reader.source("qk-layernorm"))


def _latent(reader: Reader, found: Imported, heads: int) -> None:
    nope, rope = reader.whole("qk-head-dim", 128, 1), reader.whole("qk-pos-emb-head-dim", 64, 1)
    found.set("model.attention", ["mla"], "--multi-latent-attention")
    found.set("model.kv_heads", heads, "--multi-latent-attention")
    found.set("model.head_dim", nope + rope, "--qk-head-dim + --qk-pos-emb-head-dim")
    options = {
        "q_lora": ("q-lora-rank", reader.whole("q-lora-rank", 0)),
        "kv_lora": ("kv-lora-rank", reader.whole("kv-lora-rank", 32, 1)),
        "nope_dim": ("qk-head-dim", nope),
        "rope_dim": ("qk-pos-emb-head-dim", rope),
        "value_dim": ("v-head-dim", reader.whole("v-head-dim", 128, 1)),
    }
    stretch = reader.real("rotary-scaling-factor", 1.0, 1.0)
    scale, scale_all = reader.real("mscale", 1.0), reader.real("mscale-all-dim", 0.0)
    original = reader.whole("original-max-position-embeddings", 4096, 1)
    if reader.choice("rope-type", "yarn", "rope yarn") == "yarn" and stretch > 1:
        options |= {
            "yarn_factor": ("rotary-scaling-factor", stretch),
            "yarn_original": ("original-max-position-embeddings", original),
            "yarn_mscale": ("mscale", scale),
            "yarn_mscale_all_dim": ("mscale-all-dim", scale_all),
        }
    for option, (name, value) in options.items():
        found.set(f"model.options/mla.{option}", value, reader.source(name))


def read_experts(reader: Reader, found: Imported, layers: int, deepspeed: bool) -> None:
    width = found.settings["model.width"]
    usual = int(width * 8 / 3 / 64) * 64 if "swiglu" in reader.given else 4 * width
    inner = reader.whole("ffn-hidden-size", usual, 1)
    counts = _counts(reader)
    if not counts and "model.experts" in found.settings:  # a DeepSpeed file's, as it has them
        found.set("model.expert_width", inner, reader.source("ffn-hidden-size"))
        return
    if not counts:
        found.set("model.dense_layers", layers, "no --num-experts")
        found.set("model.dense_width", inner, reader.source("ffn-hidden-size"))
        for name in [name for name in reader.left if name.startswith("moe-")]:
            found.meaningless[f"--{name}"] = "without --num-experts there are no experts"
            del reader.left[name]
        return
    found.set("model.experts", max(counts), "--num-experts")
    if len(counts) > 1:
        found.set("model.pyramid", counts, "--num-experts")
    top_k = reader.whole("topk" if "topk" in reader.given else "moe-router-topk", 2, 1)
    found.set("model.top_k", top_k, reader.source("moe-router-topk", "topk"))
    expert_width = reader.whole("moe-ffn-hidden-size", inner, 1)
    found.set("model.expert_width", expert_width, reader.source("moe-ffn-hidden-size", "ffn-hidden-size"))
    dense, every = _where(reader, found, layers, deepspeed)
    found.set("model.dense_layers", dense, reader.source("moe-layer-freq", "expert-interval"))
    found.set("model.moe_every", every, reader.source("moe-layer-freq", "expert-interval"))
    residual = reader.choice("mlp-type", "standard", "standard residual") == "residual"
    if dense or every > 1 or residual:
        found.set("model.dense_width", inner, reader.source("ffn-hidden-size"))
    if residual:
        found.set("model.residual", True, "--mlp-type")
    if shared := reader.whole("moe-shared-expert-intermediate-size", 0):
        number = max(round(shared / expert_width), 1)
        found.set("model.shared_experts", number, "--moe-shared-expert-intermediate-size")
        if number * expert_width != shared:
            found.differs.append(f"shared experts are {number * expert_width} wide together, not {shared}: they are as "
                                 "wide as the others")  # fmt: skip
    _router(reader, found, top_k, deepspeed)
    _losses(reader, found, deepspeed)
    _capacity(reader, found, deepspeed)


def _counts(reader: Reader) -> list[int]:
    """Experts, of each layer that has some where they are not alike: 128, 64 128, or "[64, 128]"."""
    given = re.split(r"[\s,\[\]()]+", " ".join(reader.several("num-experts", ["0"])))
    counts = [whole(reader.where, "--num-experts", one, most=2**20) for one in given if one]
    return counts if counts not in ([], [0], [1]) else []


def _where(reader: Reader, found: Imported, layers: int, deepspeed: bool) -> tuple[int, int]:
    """(dense layers at the beginning, every so-manieth of the others has experts)."""
    if deepspeed:  # counted from 1: the layers whose number it divides, as here
        return 0, reader.whole("expert-interval", 2, 1, MOST_LAYERS)
    given = " ".join(reader.several("moe-layer-freq", ["1"]))
    if given.isdigit():
        every = whole(reader.where, "--moe-layer-freq", given, 1, MOST_LAYERS)
        if every > 1:
            found.differs.append(f"of every {every} layers the last has experts here; with --moe-layer-freq {every} it "
                                 "was the first")  # fmt: skip
        return 0, every
    pattern = _pattern(reader.where, given)
    places = [layer for layer, has in enumerate(pattern) if has]
    every = places[1] - places[0] if len(places) > 1 else max(layers - 1, 1)
    dense = places[0] - every + 1 if places else -1
    if len(pattern) != layers or dense < 0 or places != list(range(dense + every - 1, layers, every)):
        raise UsageError(
            f"{reader.where}: --moe-layer-freq {shown(given)[:60]}: with {layers} layers that cannot be had here: some "
            "dense layers come first, and of the others every N-th has experts"
        )
    return dense, every


def _pattern(where: str, given: str) -> list[int]:
    """A sum of products of lists, as in ([0]*1+[1]*26)."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.List):
            return [value(one) for one in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            a, b = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add):
                return a + b
            times, repeated = (a, b) if isinstance(a, int) else (b, a)
            if isinstance(repeated, list) and 0 <= times * len(repeated) <= MOST_LAYERS:
                return times * repeated
        raise ValueError

    try:
        found = value(ast.parse(given.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, list) or not found or any(one not in (0, 1) for one in found):
        raise UsageError(
            f"{where}: --moe-layer-freq: {shown(given)[:60]} is neither a number nor a list like [0]+[1]*26"
        )
    return found


def _router(reader: Reader, found: Imported, top_k: int, deepspeed: bool) -> None:
    kind = reader.choice("moe-router-score-function", "softmax", "softmax sigmoid")
    found.set("model.router", kind, reader.source("moe-router-score-function"))
    before, biased = reader.on("moe-router-pre-softmax"), reader.on("moe-router-enable-expert-bias")
    rate = reader.real("moe-router-bias-update-rate", 1e-3)
    if kind == "sigmoid":
        found.set("model.options/sigmoid.rate", rate if biased else 0.0, reader.source("moe-router-enable-expert-bias"))
    elif biased:
        found.unsupported["--moe-router-enable-expert-bias"] = "with --moe-router-score-function sigmoid alone"
    normalise = top_k > 1 and (kind == "sigmoid" or not before)
    found.set(f"model.options/{kind}.normalise", normalise, reader.source("moe-router-pre-softmax"))
    if top_k == 1 and kind == "softmax" and not (before or deepspeed):
        found.differs.append("a token's only weight was always 1; here it is its probability, and the router learns")
    if "moe-router-topk-scaling-factor" in reader.given:
        scale = reader.real("moe-router-topk-scaling-factor")
        found.set(f"model.options/{kind}.scale", scale, "--moe-router-topk-scaling-factor")
    groups, kept = reader.whole("moe-router-num-groups", 1, 1), reader.whole("moe-router-group-topk", 1, 1)
    if groups > 1:
        found.set(f"model.options/{kind}.groups", groups, "--moe-router-num-groups")
        found.set(f"model.options/{kind}.groups_kept", kept, reader.source("moe-router-group-topk"))


def _losses(reader: Reader, found: Imported, deepspeed: bool) -> None:
    balance = sequence = 0.0
    if deepspeed:
        balance = reader.real("moe-loss-coeff", 0.1)
    kinds = reader.several("moe-router-load-balancing-type", ["none" if deepspeed else "aux_loss"])
    given = reader.several("moe-aux-loss-coeff", ["0"])
    for kind, text in zip(kinds, [*given, *[given[-1]] * len(kinds)]):
        weight = real(reader.where, "--moe-aux-loss-coeff", text)
        if kind == "aux_loss":
            balance += weight
        elif kind == "seq_aux_loss":
            sequence += weight
        elif kind != "none":
            why = "balance_loss looks at a micro-batch, sequence_loss at each sequence; there is no other"
            found.unsupported[f"--moe-router-load-balancing-type {kind}"] = why
    found.set("model.balance_loss", balance, reader.source("moe-aux-loss-coeff", "moe-loss-coeff"))
    found.set("model.sequence_loss", sequence, reader.source("moe-router-load-balancing-type"))
    found.set("model.z_loss", reader.real("moe-z-loss-coeff", 0.0), reader.source("moe-z-loss-coeff"))


def _capacity(reader: Reader, found: Imported, deepspeed: bool) -> None:
    if deepspeed:
        drops = not reader.on("disable-moe-token-dropping")
        train = reader.real("moe-train-capacity-factor", 1.0) if drops else 0.0
        outside = reader.real("moe-eval-capacity-factor", 1.0) if drops else 0.0
        for name in ("moe-train-capacity-factor", "moe-eval-capacity-factor"):
            reader.known.add(name)
            if not drops and reader.left.pop(name, None):
                found.meaningless[f"--{name}"] = "with --disable-moe-token-dropping nothing is dropped"
    else:
        train = outside = reader.real("moe-expert-capacity-factor", 0.0)
    source = reader.source("moe-expert-capacity-factor", "moe-train-capacity-factor", "disable-moe-token-dropping")
    found.set("model.capacity", train, source)
    found.set("model.capacity_eval", outside, reader.source("moe-expert-capacity-factor", "moe-eval-capacity-factor"))
