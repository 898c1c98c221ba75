"""A frozen backbone, truly cut in two: blocks 0..p for every document, p..j for survivors, from the carried state.

Tap k is the residual stream after k blocks, before any final norm. Blocks above the judge's tap are never loaded.
Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import fingerprint, sha256_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Relative error allowed between the staged and the unsliced model in fp32 (measured: 7e-7 on ten architectures).
PARITY = 1e-4
# Up to this size the parity check runs on an fp32 copy; above it, in the loaded dtype with a tolerance to match.
PARITY_COPY_PARAMETERS = 1_000_000_000
PARITY_NATIVE = 0.05


@dataclass(frozen=True)
class BackboneIdentity:
    """What a bundle of heads was trained on; `fingerprint` covers config, tokenizer and every weight file."""

    name: str
    architecture: str
    width: int
    layers: int
    first_token: int
    fingerprint: str


@dataclass
class Counters:
    """Work done: block_tokens counts tokens x blocks, padding included."""

    block_tokens: int = 0


@dataclass
class StagedBackbone:
    """Two views of one model that share its weights. Where `staged` is False, `reason` says why both run as one."""

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
    ) -> StagedBackbone:
        """Load blocks 0..taps[1] of a Hugging Face model folder, and check that cutting it changes nothing.

        identity: from identify(), where the caller has it; it hashes every weight file.

        Raises:
            UsageError: an unknown dtype, taps that are not 1 <= probe <= judge <= layers, or no model in the folder.
        """
        from transformers import AutoConfig, AutoModel

        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
        identity = identity or identify(folder)
        probe, judge = taps
        if not 1 <= probe <= judge <= identity.layers:
            raise UsageError(
                f"taps {taps}: need 1 <= probe <= judge <= {identity.layers}, the layers of {identity.name}"
            )
        torch.set_num_threads(threads)
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            _cut_config(config, 0, judge)
            model = AutoModel.from_pretrained(
                folder, config=config, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False
            )
        return cls.from_model(model, identity, taps)

    @classmethod
    def from_model(cls, model: Any, identity: BackboneIdentity, taps: tuple[int, int]) -> StagedBackbone:
        """The same on a model in memory that has at least taps[1] blocks; it is frozen and put in eval mode."""
        model.eval().requires_grad_(False)
        reason = parity_failure(model, taps)
        return cls(identity, taps, model, staged=not reason, reason=reason)

    @torch.inference_mode()
    def first(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """State at the probe's tap [B, S, D]; and the judge's as well where the model runs unstaged, else None."""
        if self.staged:
            hidden = self._first(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
            return hidden, hidden if self.taps[0] == self.taps[1] else None
        return _tapped(self.model, self._blocks, self.taps, ids_BS, mask_BS)

    @torch.inference_mode()
    def second(self, hidden_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """State at the judge's tap, resumed from the state at the probe's tap.

        Raises:
            DataError: the backbone runs unstaged; first() has already returned this state.
        """
        if self._second is None:
            raise DataError("this backbone has no second stage to resume; use the state that first() returned")
        return self._second(inputs_embeds=hidden_BSD, attention_mask=mask_BS, use_cache=False).last_hidden_state

    def _count(self, _block: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            self.counters.block_tokens += arguments[0].shape[0] * arguments[0].shape[1]


def identify(folder: Path) -> BackboneIdentity:
    """Read a model folder's identity; the weights are hashed, not loaded.

    Raises:
        UsageError: config.json, tokenizer.json or *.safetensors is missing.
    """
    from transformers import AutoConfig

    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file() or not weights:
        raise UsageError(f"{folder}: a backbone is a folder with config.json, tokenizer.json and *.safetensors")
    with quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    parts = [(p.name, sha256_file(p)) for p in (folder / "config.json", folder / "tokenizer.json", *weights)]
    # Token 0 is an attention sink; which one it is moves every score, so it is part of the identity.
    first = next((t for t in (config.bos_token_id, config.eos_token_id) if isinstance(t, int)), 0)
    return BackboneIdentity(
        folder.resolve().name,
        str(config.model_type),
        config.hidden_size,
        config.num_hidden_layers,
        first,
        fingerprint(parts),
    )


def parity_failure(model: Any, taps: tuple[int, int]) -> str:
    """Empty where the two views give the unsliced model's states on a padded random batch, else what differs."""
    try:
        blocks = _blocks(model)
    except UsageError as error:
        return str(error)
    size = sum(p.numel() for p in model.parameters())
    tolerance = PARITY
    if next(model.parameters()).dtype != torch.float32:
        if size <= PARITY_COPY_PARAMETERS:
            model = copy.deepcopy(model).float()
            blocks = _blocks(model)
        else:
            tolerance = PARITY_NATIVE
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(3, model.config.vocab_size, (3, 24), generator=generator)
    lengths = (24, 9, 15)
    mask_BS = (torch.arange(24)[None, :] < torch.tensor(lengths)[:, None]).long()
    probe, judge = taps
    with torch.inference_mode():
        whole_probe, whole_judge = _tapped(model, blocks, taps, ids_BS, mask_BS)
        try:
            cut_probe = _view(model, 0, probe)(
                input_ids=ids_BS, attention_mask=mask_BS, use_cache=False
            ).last_hidden_state
            cut_judge, rows, width = whole_judge, [1, 2], max(lengths[1:])
            if judge > probe:
                cut_judge = _view(model, probe, judge)(
                    inputs_embeds=cut_probe[rows][:, :width], attention_mask=mask_BS[rows][:, :width], use_cache=False
                ).last_hidden_state
            else:
                cut_judge = cut_judge[rows][:, :width]
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            return f"{model.config.model_type} cannot be cut at {taps}: {type(error).__name__}: {error}"
    kept = mask_BS.bool()
    for name, cut, whole, valid in (
        ("probe", cut_probe, whole_probe, kept),
        ("judge", cut_judge, whole_judge[rows][:, :width], kept[rows][:, :width]),
    ):
        difference = (cut[valid] - whole[valid]).norm() / whole[valid].norm()
        if not difference <= tolerance:
            return f"{model.config.model_type} cut at {taps}: the {name}'s state differs by {difference:.1e} (relative)"
    return ""


def _tapped(
    model: Any, blocks: nn.ModuleList, taps: tuple[int, int], ids_BS: torch.Tensor, mask_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both taps of the unsliced model, caught by hooks on its blocks."""
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
    return caught[taps[0]], caught[taps[1]]


def _view(model: Any, start: int, end: int) -> Any:
    """A shallow copy of `model` that runs blocks start..end and no final norm; it shares all weights."""
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.config = copy.deepcopy(model.config)
    _cut_config(view.config, start, end)
    for name, module in model._modules.items():
        if isinstance(module, nn.ModuleList) and module is _blocks(model):
            view._modules[name] = nn.ModuleList(list(module)[start:end])
    for name in ("norm", "ln_f", "final_layer_norm"):
        if name in view._modules:
            view._modules[name] = nn.Identity()
    return view


def _cut_config(config: Any, start: int, end: int) -> None:
    for name in ("layer_types", "mlp_layer_types"):
        if kinds := getattr(config, name, None):
            setattr(config, name, list(kinds)[start:end])
    config.num_hidden_layers = end - start


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
