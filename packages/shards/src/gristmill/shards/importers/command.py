"""`shards import`: the importers on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def import_(
    inputs: list[Path],
    /,
    output: Path,
    source: str,
    tokenizer: Path,
    kind: Literal["auto", "megatron", "datatrove", "numpy", "chat"] = "auto",
    eos: str = "",
    dtype: str = "",
    licence: str = "unknown",
    valid_fraction: float = 0.0,
    chat_template: Path | None = None,
    workers: int = 1,
) -> None:
    """Make tokens that another system wrote, or conversations, a source of a dataset.

    shards import megatron/web_text_document --output data/web --source web --tokenizer gpt2/tokenizer.json

    shards import chats.jsonl.zst --output data/sft --source chats --tokenizer qwen/tokenizer.json --licence MIT

    Args:
        inputs: Files, Megatron prefixes, or folders of them.
        output: The dataset's folder; sources that it holds already stay.
        source: The new source's name; one of this name is replaced.
        tokenizer: The tokenizer.json that made the tokens, or that is to make them.
        kind: megatron (.bin + .idx), datatrove (.ds), numpy (.npy, llm.c's .bin), or chat (.jsonl of messages).
        eos: The token that ends a document, or its id, if the tokenizer has no usual one.
        dtype: For kind numpy without a header: uint16, uint32, ...
        licence: For the dataset card.
        valid_fraction: The share of documents that is held out for validation.
        chat_template: Write conversations as this template does (a .jinja file, or a model's tokenizer_config.json).
        workers: Processes.
    """
    from gristmill.base.errors import UsageError
    from gristmill.base.progress import Progress
    from gristmill.shards.importers.api import import_source
    from gristmill.shards.writer import write_manifest

    if taken := next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), None):
        raise UsageError(f"--output {output}: {taken} is a file; give a folder")
    with Progress("import", 0, "tokens") as progress:
        done = import_source(
            kind, inputs, output, source, tokenizer,
            eos=eos, dtype=dtype, licence=licence, valid_fraction=valid_fraction, chat_template=chat_template,
            workers=workers, progress=progress.of,
        )  # fmt: skip
    write_manifest(output, tokenizer=tokenizer)
    for split in ("train", "valid"):
        shards = done.manifest.shards(split)
        tokens = sum(shard.token_count for shard in shards)
        documents = sum(shard.document_count - shard.continues for shard in shards)
        if shards:
            print(f"{source}: {tokens:,} {split} tokens of {documents:,} documents in {len(shards):,} shards")
    if done.left_out:
        print(f"{source}: {done.left_out:,} documents without a token left out")
    if done.quarantined:
        print(f"{source}: {done.quarantined:,} conversations that cannot be read: {done.quarantine}")
