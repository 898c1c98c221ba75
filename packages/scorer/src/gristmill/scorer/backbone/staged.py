"""A frozen backbone, truly cut in two: blocks 0..p for every document, p..j for survivors, from the carried state.

Tap k is the residual stream after k blocks, before any final norm. Blocks above the judge's tap are never loaded.
Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

import contextlib
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
from gristmill.base.hub import origin
from gristmill.scorer.backbone.cut import blocks_of, cut_config, first_line, parity_failure, states_at, view

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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
        self._blocks = blocks_of(self.model)
        probe, judge = self.taps
        self._first: Any = view(self.model, 0, probe) if self.staged else None
        self._second: Any = view(self.model, probe, judge) if self.staged and judge > probe else None
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
            cut_config(config, 0, judge)
            _unpack_mxfp4(config, where)
            chosen = {"attn_implementation": attention} if attention else {}
            try:
                model = AutoModel.from_pretrained(
                    folder, config=config, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False, **chosen
                )
            except (ImportError, ValueError) as error:
                asked = f" with attention {attention!r}" if attention else ""
                raise UsageError(f"{folder}: cannot be loaded{asked} ({first_line(error)})") from None
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
        return states_at(self.model, self._blocks, taps, ids_BS.to(self.device), mask_BS.to(self.device))

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


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder / 'config.json'}: not of a model that is known here ({first_line(error)})") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device's code
        raise UsageError(f"device {name!r}: not to be had here ({first_line(error)})") from None
    return device


def _unpack_mxfp4(config: Any, device: torch.device) -> None:
    """gpt-oss comes packed in 4 bits, and is unpacked to the chosen dtype where the kernels for that are missing."""
    packed = getattr(config, "quantization_config", None)
    if isinstance(packed, dict) and packed.get("quant_method") == "mxfp4":
        missing = device.type != "cuda" or not all(importlib.util.find_spec(name) for name in MXFP4_NEEDS)
        config.quantization_config = {**packed, "dequantize": missing}


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
