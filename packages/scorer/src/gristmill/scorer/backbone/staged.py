"""A frozen backbone, truly cut in two: blocks 0..p for every document, p..j for survivors, from the carried state.

Tap k is the residual stream after k blocks, before any final norm. Blocks above the judge's tap are never loaded.
Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import fingerprint, sha256_file
from gristmill.scorer.backbone.hub import origin

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Relative error allowed between the cut and the uncut model in float32 (measured: 7e-7 on eleven architectures).
PARITY = 1e-5
# Up to this size that is checked on a float32 copy; above it in the loaded dtype, on batches of one and the same shape,
# where kernels that add in a fixed order give the same bits and others round a little differently.
PARITY_COPY_PARAMETERS = 1_000_000_000
PARITY_NATIVE = 0.02
MXFP4_NEEDS = ("accelerate", "kernels", "triton")


@dataclass(frozen=True)
class BackboneIdentity:
    """What a bundle of heads was trained on; `fingerprint` covers config, tokenizer and every weight file."""

    name: str
    architecture: str
    width: int
    layers: int
    first_token: int
    fingerprint: str
    revision: str = ""
    """The commit on the Hub that it came from, else empty."""


@dataclass
class Counters:
    """Work done: block_tokens counts tokens x blocks, padding included."""

    block_tokens: int = 0


@dataclass
class StagedBackbone:
    """Two views of one model that share its weights. Where `staged` is False, `reason` says why both run as one.

    Inputs may be on any device; states are on the model's.
    """

    identity: BackboneIdentity
    taps: tuple[int, int]
    model: Any
    staged: bool = True
    reason: str = ""
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self._blocks = _blocks(self.model)
        probe, judge = self.taps
        self._first: Any = _view(self.model, 0, probe) if self.staged else None
        self._second: Any = _view(self.model, probe, judge) if self.staged and judge > probe else None
        for block in self._blocks:
            block.register_forward_pre_hook(self._count)

    @classmethod
    def load(
        cls,
        folder: Path,
        taps: tuple[int, int],
        dtype: str = "bfloat16",
        threads: int = 1,
        identity: BackboneIdentity | None = None,
        device: str = "cpu",
        attention: str = "",
    ) -> StagedBackbone:
        """Load blocks 0..taps[1] of a Hugging Face model folder, and check that cutting it changes nothing.

        identity: from identify(), where the caller has it; it hashes every weight file. attention: one of transformers'
        attn_implementation, empty for the model's own default.

        Raises:
            UsageError: an unknown dtype, a device or attention that is not to be had, taps that are not 1 <= probe <=
                judge <= layers, or no model in the folder.
            DataError: its states are not finite.
        """
        from transformers import AutoModel

        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
        identity = identity or identify(folder)
        probe, judge = taps
        if not 1 <= probe <= judge <= identity.layers:
            raise UsageError(
                f"taps {taps}: need 1 <= probe <= judge <= {identity.layers}, the layers of {identity.name}"
            )
        torch.set_num_threads(threads)
        where = _device(device)
        with quiet():
            config = _config(folder)
            _cut_config(config, 0, judge)
            _unpack_mxfp4(config, where)
            chosen = {"attn_implementation": attention} if attention else {}
            try:
                model = AutoModel.from_pretrained(
                    folder, config=config, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False, **chosen
                )
            except (ImportError, ValueError) as error:
                asked = f" with attention {attention!r}" if attention else ""
                raise UsageError(f"{folder}: cannot be loaded{asked} ({_first_line(error)})") from None
        return cls.from_model(model.to(where), identity, taps)

    @classmethod
    def from_model(cls, model: Any, identity: BackboneIdentity, taps: tuple[int, int]) -> StagedBackbone:
        """The same on a model in memory that has at least taps[1] blocks; it is frozen and put in eval mode."""
        model.eval().requires_grad_(False)
        reason = parity_failure(model, taps)
        return cls(identity, taps, model, staged=not reason, reason=reason)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.inference_mode()
    def first(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """State at the probe's tap [B, S, D]; and the judge's as well where the model runs unstaged, else None."""
        if self.staged:
            ids_BS, mask_BS = ids_BS.to(self.device), mask_BS.to(self.device)
            hidden = self._first(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
            return hidden, hidden if self.taps[0] == self.taps[1] else None
        probe, judge = self.at(self.taps, ids_BS, mask_BS)
        return probe, judge

    @torch.inference_mode()
    def second(self, hidden_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """State at the judge's tap, resumed from the state at the probe's tap.

        Raises:
            DataError: the backbone runs unstaged; first() has already returned this state.
        """
        if self._second is None:
            raise DataError("this backbone has no second stage to resume; use the state that first() returned")
        hidden_BSD, mask_BS = hidden_BSD.to(self.device), mask_BS.to(self.device)
        return self._second(inputs_embeds=hidden_BSD, attention_mask=mask_BS, use_cache=False).last_hidden_state

    @torch.inference_mode()
    def at(self, taps: Sequence[int], ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> list[torch.Tensor]:
        """States [B, S, D] at any taps up to the judge's, from one pass of the uncut model."""
        return _tapped(self.model, self._blocks, taps, ids_BS.to(self.device), mask_BS.to(self.device))

    def _count(self, _block: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            self.counters.block_tokens += arguments[0].shape[0] * arguments[0].shape[1]


def identify(folder: Path) -> BackboneIdentity:
    """Read a model folder's identity; the weights are hashed, not loaded.

    A folder in the Hub's cache is named for its repository and commit.

    Raises:
        UsageError: config.json, tokenizer.json or *.safetensors is missing, or the model is not one of text alone.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file() or not weights:
        raise UsageError(f"{folder}: a backbone is a folder with config.json, tokenizer.json and *.safetensors")
    with quiet():
        config = _config(folder)
    if config.get_text_config() is not config:
        raise UsageError(f"{folder}: {config.model_type} reads more than text; give a model of text alone")
    parts = [(p.name, sha256_file(p)) for p in (folder / "config.json", folder / "tokenizer.json", *weights)]
    # Token 0 is an attention sink; which one it is moves every score, so it is part of the identity.
    first = next((t for t in (config.bos_token_id, config.eos_token_id) if isinstance(t, int)), 0)
    name, revision = origin(folder)
    return BackboneIdentity(
        name,
        str(config.model_type),
        config.hidden_size,
        config.num_hidden_layers,
        first,
        fingerprint(parts),
        revision,
    )


def parity_failure(model: Any, taps: tuple[int, int]) -> str:
    """Empty where the two views give the uncut model's states on a padded random batch, else what differs.

    Raises:
        DataError: the uncut model's states are not finite.
    """
    try:
        blocks = _blocks(model)
    except UsageError as error:
        return str(error)
    tolerance, rows = PARITY, [1, 2]  # two of three rows go on, with less padding
    if next(model.parameters()).dtype != torch.float32:
        if sum(p.numel() for p in model.parameters()) <= PARITY_COPY_PARAMETERS:
            model = copy.deepcopy(model).float()
            blocks = _blocks(model)
        else:
            tolerance, rows = PARITY_NATIVE, [0, 1, 2]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([24, 9, 15])
    device = next(model.parameters()).device
    ids_BS = torch.randint(3, model.config.vocab_size, (3, 24), generator=generator).to(device)
    mask_BS = (torch.arange(24)[None, :] < lengths[:, None]).long().to(device)
    width = int(lengths[rows].max())
    probe, judge = taps
    with torch.inference_mode(), _short_windows(model.config, 8):
        whole_probe, whole_judge = _tapped(model, blocks, taps, ids_BS, mask_BS)
        try:
            cut_probe = _view(model, 0, probe)(
                input_ids=ids_BS, attention_mask=mask_BS, use_cache=False
            ).last_hidden_state
            cut_judge = cut_probe[rows][:, :width]
            if judge > probe:
                cut_judge = _view(model, probe, judge)(
                    inputs_embeds=cut_judge, attention_mask=mask_BS[rows][:, :width], use_cache=False
                ).last_hidden_state
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            return f"{model.config.model_type} cannot be cut at {taps}: {type(error).__name__}: {_first_line(error)}"
    kept = mask_BS.bool()
    for name, cut, whole, valid in (
        ("probe", cut_probe, whole_probe, kept),
        ("judge", cut_judge, whole_judge[rows][:, :width], kept[rows][:, :width]),
    ):
        if not whole[valid].isfinite().all():
            raise DataError(
                f"{model.config.model_type}: its states at the {name}'s tap are not finite; the weights are damaged, "
                "or made for another dtype: get the model again, or load it in float32"
            )
        difference = (cut[valid].float() - whole[valid].float()).norm() / whole[valid].float().norm()
        if not difference <= tolerance:
            return f"{model.config.model_type} cut at {taps}: the {name}'s state differs by {difference:.1e} (relative)"
    return ""


def _tapped(
    model: Any, blocks: nn.ModuleList, taps: Sequence[int], ids_BS: torch.Tensor, mask_BS: torch.Tensor
) -> list[torch.Tensor]:
    """States at these taps of the uncut model, caught by hooks on its blocks."""
    caught: dict[int, torch.Tensor] = {}

    def catch(tap: int) -> Any:
        def hook(_block: nn.Module, _arguments: Any, output: Any) -> None:
            caught[tap] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[tap - 1].register_forward_hook(catch(tap)) for tap in set(taps)]
    try:
        model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [caught[tap] for tap in taps]


def _view(model: Any, start: int, end: int) -> Any:
    """A shallow copy of `model` that runs blocks start..end and no final norm; it shares all weights."""
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.config = copy.deepcopy(model.config)
    _cut_config(view.config, start, end)
    for name, module in model._modules.items():
        if isinstance(module, nn.ModuleList) and module is _blocks(model):
            view._modules[name] = nn.ModuleList(list(module)[start:end])
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if name in view._modules:
            view._modules[name] = nn.Identity()
    return view


def _cut_config(config: Any, start: int, end: int) -> None:
    for name in ("layer_types", "mlp_layer_types"):
        if kinds := getattr(config, name, None):
            setattr(config, name, list(kinds)[start:end])
    config.num_hidden_layers = end - start


@contextlib.contextmanager
def _short_windows(config: Any, tokens: int) -> Iterator[None]:
    """Sliding windows shorter than the checked batch: in longer ones a sliding block looks like a full one."""
    own = getattr(config, "sliding_window", None)
    if own:
        config.sliding_window = min(own, tokens)
    try:
        yield
    finally:
        if own:
            config.sliding_window = own


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder / 'config.json'}: not of a model that is known here ({_first_line(error)})"
        ) from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device's code
        raise UsageError(f"device {name!r}: not to be had here ({_first_line(error)})") from None
    return device


def _unpack_mxfp4(config: Any, device: torch.device) -> None:
    """gpt-oss comes packed in 4 bits, and is unpacked to the chosen dtype where the kernels for that are missing."""
    packed = getattr(config, "quantization_config", None)
    if isinstance(packed, dict) and packed.get("quant_method") == "mxfp4":
        missing = device.type != "cuda" or not all(importlib.util.find_spec(name) for name in MXFP4_NEEDS)
        config.quantization_config = {**packed, "dequantize": missing}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _blocks(model: Any) -> nn.ModuleList:
    for name in ("layers", "h", "blocks"):
        if isinstance(found := model._modules.get(name), nn.ModuleList):
            return found
    raise UsageError(f"{type(model).__name__}: no list of transformer blocks found (layers, h or blocks)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting, at every load, the blocks that we leave out on purpose."""
    from transformers.utils import logging as reports

    level = reports.get_verbosity()
    bars = reports.is_progress_bar_enabled()
    reports.set_verbosity(logging.ERROR)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()
