"""Shards to train on: two sources, cut from the standard library's help texts, under a byte-level BPE of 400 tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.shards import manifest, writer


def write_shards(folder: Path, noise: float = 0.0) -> Path:
    """Of three tokens in the mixture "both", two are from the source "even" and one is from "odd".

    Args:
        noise: so many documents of tokens drawn at random stand beside each of the others; all else is the same.
    """
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    paragraphs = [text.strip() for topic in sorted(topics)[:30] for text in topics[topic].split("\n\n") if text.strip()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(paragraphs, settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    sha = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    about = manifest.TokenizerInfo(name="tiny", sha256=sha, vocab_size=tokenizer.get_vocab_size(), eos_id=0)
    for name, texts in (("even", paragraphs[::2]), ("odd", paragraphs[1::2])):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        draw = np.random.default_rng(0)
        ids += [draw.integers(1, about.vocab_size, 60).tolist() for _ in range(round(noise * len(texts)))]
        table = pa.table(
            {
                "id": [f"{name}-{number}" for number in range(len(ids))],
                "tokens": pa.array(ids, pa.list_(pa.uint16())),
                "file": [f"{name}.txt"] * len(ids),
                "row": pa.array(range(len(ids)), pa.int64()),
                "score": pa.nulls(len(ids), pa.float32()),
                "language": pa.nulls(len(ids), pa.string()),
            }
        )
        writer.write_source(folder, writer.SourceSpec(name=name, tokenizer=about, valid_fraction=0.15), [table])
    text = '[mixture]\nname = "both"\n[mixture.weights]\neven = 2\nodd = 1\n[mixture.max_epochs]\ndefault = 100\n'
    (folder / "both.toml").write_text(text)
    writer.write_manifest(folder, [folder / "both.toml"])
    return folder
