"""A tokenizer.json whose ids 0 to 255 are the bytes, and those after them the added tokens that a test wants."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def byte_tokenizer(path: Path, special: tuple[str, ...] = ("<|endoftext|>",), ordinary: tuple[str, ...] = ()) -> Path:
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}  # printed as they are; the others from U+0100 on
    others = iter(range(256, 512))
    alphabet = {chr(byte if byte in own else next(others)): byte for byte in range(256)}
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ordinary])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path
