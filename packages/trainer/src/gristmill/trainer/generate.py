"""Text from a checkpoint, one token at a time: what was read once is remembered, until the window is full.

A full window begins anew with its later half, which is read again: positions then start at 0, as in training.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from gristmill.base.config import check_range
from gristmill.base.errors import UsageError
from gristmill.shards.importers.conversation import Turn
from gristmill.trainer import chat_form
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.run_folder import load_model, tokenizer_of

log = logging.getLogger("gristmill.trainer")


def generate(
    run: Path,
    prompt: str = "",
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    tokenizer: str = "",
    device: str = "auto",
    expert_cache_gb: float | None = None,
    which: str = "latest",
    chat: bool = False,
) -> str:
    """Continue `prompt` by up to `tokens` tokens, or until the document ends. Answers prompt and continuation.

    Args:
        expert_cache_gb: leave experts on disk, and hold so many gigabytes of those that were used last.
        which: the checkpoint: latest, best, or a step's number.
        chat: the prompt is a user's question in the run's chat template; answers the model's answer alone.
    """
    check_range("--tokens", tokens)
    check_range("--top-k", top_k, 1)
    check_range("--temperature", temperature)
    check_range("--seed", seed, -(2**63), 2**64 - 1)
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # how Python holds bytes that are no text
        raise UsageError("--prompt: not UTF-8; write it in that encoding")
    if expert_cache_gb is not None:
        check_range("--expert-cache-gb", expert_cache_gb)
    trained = load_model(run, device, None if expert_cache_gb is None else int(expert_cache_gb * 1e9), which)
    text = tokenizer_of(run, trained, tokenizer)
    if chat:
        asked = chat_form.load(run, trained).prompt([Turn("user", prompt, learnt=False)])
    else:
        asked = text.encode(prompt, add_special_tokens=False).ids
    start = asked if asked[:1] == [trained.bos] else [trained.bos, *asked]
    ids = sample(trained.model, start, tokens, trained.sequence, trained.eos, temperature, top_k, seed)
    if trained.experts is not None:
        log.info(trained.experts.summary())
    return text.decode(ids[len(start) if chat else 1 :], skip_special_tokens=True)


@torch.no_grad()
def sample(
    model: Transformer, ids: list[int], tokens: int, window: int, eos: int, temperature: float, top_k: int, seed: int
) -> list[int]:
    """`ids` and up to `tokens` more, drawn from the `top_k` likeliest; temperature 0 takes the likeliest each time."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(ids)
    memory, begun, read = model.new_memory(), 0, 0  # what is remembered are the ids from `begun` up to `read`
    for _ in range(tokens):
        if (start := window_start(len(ids), window)) != begun:
            memory, begun, read = model.new_memory(), start, start
        new_1S = torch.tensor([ids[read:]], device=model.embedding_VD.device)
        x_1SD, _ = model(new_1S, memory=memory, past=read - begun)
        read = len(ids)
        logits_V = model.precision.linear(x_1SD[0, -1:], model.output_VD)[0].float().cpu()
        if temperature <= 0:
            ids.append(int(logits_V.argmax()))
        else:
            values, chosen = logits_V.topk(min(top_k, len(logits_V)))
            # Differences in fp64: a temperature near 0 makes the others' weights 0, and nothing infinite.
            weights = ((values.double() - values.max()) / temperature).softmax(dim=-1).float()
            pick = torch.multinomial(weights, 1, generator=generator)
            ids.append(int(chosen[pick]))
        if ids[-1] == eos:
            break
    return ids


def window_start(length: int, window: int) -> int:
    """The first of `length` tokens that the model sees: it sees at most `window`, and lets go of half a window at a
    time."""
    half = max(window // 2, 1)
    return max(-(-(length - window) // half) * half, 0)
