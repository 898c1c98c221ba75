"""Cutting a decoder by slicing its list of blocks, for any architecture, and the check that it changes nothing.

Two views share one model's weights: blocks 0..p from token ids, blocks p..j from the state that the first left off at.
Tap k is the residual stream after k blocks, before any final norm. Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gristmill.base.errors import DataError, UsageError

# Relative error allowed between the cut and the uncut model in float32 (measured: 7e-7 on eleven architectures).
PARITY = 1e-5
# Up to this size that is checked on a float32 copy; above it in the loaded dtype, on batches of one and the same shape,
# where kernels that add in a fixed order give the same bits and others round a little differently.
PARITY_COPY_PARAMETERS = 1_000_000_000
PARITY_NATIVE = 0.02


def blocks_of(model: Any) -> nn.ModuleList:
    """Raises UsageError where a model's transformer blocks stand in no list that is known."""
    for name in ("layers", "h", "blocks"):
        if isinstance(found := model._modules.get(name), nn.ModuleList):
            return found
    raise UsageError(f"{type(model).__name__}: no list of transformer blocks found (layers, h or blocks)")


def view(model: Any, start: int, end: int) -> Any:
    """A shallow copy of `model` that runs blocks start..end and no final norm; it shares all weights."""
    part = copy.copy(model)
    part._modules = dict(model._modules)
    part.config = copy.deepcopy(model.config)
    cut_config(part.config, start, end)
    blocks = blocks_of(model)
    for name, module in model._modules.items():
        if module is blocks:
            part._modules[name] = nn.ModuleList(list(blocks)[start:end])
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if name in part._modules:
            part._modules[name] = nn.Identity()
    return part


def cut_config(config: Any, start: int, end: int) -> None:
    """Leave in a model's configuration, in place, what concerns blocks start..end."""
    for name in ("layer_types", "mlp_layer_types"):
        if kinds := getattr(config, name, None):
            setattr(config, name, list(kinds)[start:end])
    config.num_hidden_layers = end - start


def states_at(
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


def parity_failure(model: Any, taps: tuple[int, int]) -> str:
    """Empty where the two views give the uncut model's states on a padded random batch, else what differs.

    Raises:
        UsageError: no list of blocks to cut.
        DataError: the uncut model's states are not finite.
    """
    blocks = blocks_of(model)
    tolerance, rows = PARITY, [1, 2]  # two of three rows go on, with less padding
    if next(model.parameters()).dtype != torch.float32:
        if sum(p.numel() for p in model.parameters()) <= PARITY_COPY_PARAMETERS:
            model = copy.deepcopy(model).float()
            blocks = blocks_of(model)
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
        whole_probe, whole_judge = states_at(model, blocks, taps, ids_BS, mask_BS)
        try:
            cut_probe = view(model, 0, probe)(
                input_ids=ids_BS, attention_mask=mask_BS, use_cache=False
            ).last_hidden_state
            cut_judge = cut_probe[rows][:, :width]
            if judge > probe:
                cut_judge = view(model, probe, judge)(
                    inputs_embeds=cut_judge, attention_mask=mask_BS[rows][:, :width], use_cache=False
                ).last_hidden_state
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            return f"{model.config.model_type} cannot be cut at {taps}: {type(error).__name__}: {first_line(error)}"
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


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
