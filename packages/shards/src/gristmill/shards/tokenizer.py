"""What a manifest says of a tokenizer.json, and the tokenizer for text that may spell its control tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_json, sha256_file
from gristmill.shards.manifest import TokenizerInfo

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def tokenizer_info(path: Path, eos: str = "") -> TokenizerInfo:
    """Identity of a tokenizer.json. `eos`: its end-of-document token or that token's id; else a name that we know.

    Raises:
        DataError: no such file, or no tokenizer.json.
        UsageError: it has no such token, or none of those that we know.
    """
    vocabulary = load_tokenizer(path).get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1  # not the number of tokens: some vocabularies have holes
    if eos.isdecimal():
        eos_id = int(eos)
        if eos_id >= size:
            raise UsageError(f"{path}: end-of-document id {eos} is outside its vocabulary of {size:,}")
    else:
        names = (eos,) if eos else END_OF_DOCUMENT
        eos_id = next((vocabulary[name] for name in names if name in vocabulary), -1)
        if eos_id < 0:
            raise UsageError(
                f"{path}: has no token {eos!r}"
                if eos
                else f"{path}: has none of the end-of-document tokens {', '.join(names)}; name its own (eos)"
            )
    name = path.absolute().parent.name if path.name == "tokenizer.json" else path.stem
    return TokenizerInfo(name=name or "tokenizer", sha256=sha256_file(path), vocab_size=size, eos_id=eos_id)


def load_tokenizer(path: Path, control: Iterable[str] = ()) -> Tokenizer:
    """A tokenizer.json for text that nobody vouches for: a page that spells a special token does not end its document.

    `control`: added tokens to be guarded in the same way although the file does not call them special.
    """
    from tokenizers import Tokenizer

    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise DataError(f"{path}: not a tokenizer.json: it has no model")
    guarded = set(control)
    try:
        for token in value.get("added_tokens") or ():
            token["special"] = token["special"] or token["content"] in guarded
        tokenizer = Tokenizer.from_str(json.dumps(value))
    except Exception as error:  # its own errors have no other type
        raise DataError(f"{path}: not a tokenizer.json that can be read: {error}") from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # some files carry the maximum length of a model, which would cut documents short
    tokenizer.no_padding()
    return tokenizer
