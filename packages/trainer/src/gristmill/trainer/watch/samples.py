"""Text that the model writes in the midst of its training: the same prompts each time, and no trace left on the run.

Draws have a generator of their own, and a compiled model writes uncompiled, because each length would be compiled anew.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from gristmill.trainer.generate import sample
from gristmill.trainer.hub import load_tokenizer
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.watch.config import SamplesConfig


def write_samples(
    model: Transformer, tokenizer: Path, config: SamplesConfig, bos: int, eos: int, seed: int, window: int
) -> list[dict[str, str]]:
    """One {"prompt", "text"} for each prompt; the text goes on from the prompt, and ends where the document does.

    Args:
        bos: stands before a document's first token.
        seed: of the draws, where config.temperature is not 0.
        window: tokens that the model sees at once.
    """
    text = load_tokenizer(tokenizer)
    was_training = model.training
    model.eval()
    samples = []
    with _uncompiled(model):
        for prompt in config.prompts if config.tokens else ():
            start = [bos, *text.encode(prompt, add_special_tokens=False).ids]
            ids = sample(model, start, config.tokens, window, eos, config.temperature, config.top_k, seed)
            whole, given = (text.decode(some, skip_special_tokens=True) for some in (ids[1:], start[1:]))
            samples.append({"prompt": prompt, "text": whole.removeprefix(given)})
    model.train(was_training)
    return samples


def _uncompiled(model: Transformer) -> contextlib.AbstractContextManager[object]:
    compiled = any(block._compiled_call_impl is not None for block in model.blocks)
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
