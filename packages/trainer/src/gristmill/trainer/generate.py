"""Text from a checkpoint, one token at a time. Plain: the window is read anew for every token (no key-value cache)."""

from __future__ import annotations

from pathlib import Path

import torch

from gristmill.base.errors import UsageError
from gristmill.trainer.model.transformer import Transformer
from gristmill.trainer.run_folder import load_model


def generate(
    run: Path,
    prompt: str = "",
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    tokenizer: str = "",
    device: str = "auto",
) -> str:
    """Continue `prompt` by up to `tokens` tokens, or until the document ends. Answers prompt and continuation."""
    from tokenizers import Tokenizer

    trained = load_model(run, device)
    file = Path(tokenizer) if tokenizer else trained.tokenizer
    if file is None or not file.is_file():
        raise UsageError(f"{run}: no tokenizer.json was given when it was trained; give --tokenizer FILE")
    text = Tokenizer.from_file(str(file))
    start = [
        trained.eos,
        *text.encode(prompt, add_special_tokens=False).ids,
    ]  # EOS stands before a document's first token
    ids = sample(trained.model, start, tokens, trained.sequence, trained.eos, temperature, top_k, seed)
    return text.decode(ids[1:], skip_special_tokens=True)


@torch.no_grad()
def sample(
    model: Transformer, ids: list[int], tokens: int, window: int, eos: int, temperature: float, top_k: int, seed: int
) -> list[int]:
    """`ids` and up to `tokens` more, drawn from the `top_k` likeliest; temperature 0 takes the likeliest each time."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(ids)
    for _ in range(tokens):
        seen = torch.tensor([ids[-window:]], device=model.embedding_VD.device)
        logits_V = model.logits(seen)[0, -1].float().cpu()
        if temperature <= 0:
            ids.append(int(logits_V.argmax()))
        else:
            values, chosen = logits_V.topk(min(top_k, len(logits_V)))
            pick = torch.multinomial((values / temperature).softmax(dim=-1), 1, generator=generator)
            ids.append(int(chosen[pick]))
        if ids[-1] == eos:
            break
    return ids
