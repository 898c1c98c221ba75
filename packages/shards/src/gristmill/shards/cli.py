"""The `shards` command: look into a dataset, check it, move it, and trace a token back to its document."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from gristmill.base import cli

ABOUT = "The published artifact: tokenised, memory-mapped shards with a manifest that pins every byte."


def main() -> None:
    functions = (inspect, verify, push, pull, explain)
    cli.main(
        "shards",
        {function.__name__: cli.typed(function, f"shards {function.__name__}") for function in functions},
        ABOUT,
    )


def inspect(folder: str, /, json: bool = False) -> None:
    """Say what a dataset holds: sources, tokens, documents, mixtures.

    shards inspect runs/demo/published

    shards inspect hf://datasets/ORG/NAME --json

    Args:
        folder: A folder, file://FOLDER or hf://datasets/ORG/NAME (pulled to the cache first).
        json: Print JSON instead of a table.
    """
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    rows: list[dict[str, Any]] = []
    for name, source in dataset.sources.items():
        train, valid = source.split("train"), source.split("valid")
        rows.append(
            {
                "source": name,
                "train_tokens": train.token_count,
                "train_documents": train.document_count,
                "valid_tokens": valid.token_count,
                "valid_documents": valid.document_count,
                "shards": len(train.shards) + len(valid.shards),
                "licence": source.manifest.licence,
                "content_id": source.manifest.content_id,
            }
        )
    if json:
        about = {
            "format": dataset.manifest.format,
            "content_id": dataset.manifest.content_id,
            "tokenizer": dataset.tokenizer.model_dump(),
            "dtype": dataset.tokenizer.dtype,
            "sources": rows,
            "mixtures": [entry.path for entry in dataset.manifest.mixtures],
        }
        print(json_module.dumps(about, indent=2))
        return
    print(f"{folder}  {dataset.manifest.format}  content {dataset.manifest.content_id[:12]}")
    print(f"tokenizer {dataset.tokenizer.name}  {dataset.tokenizer.vocab_size:,} ids  {dataset.tokenizer.dtype}\n")
    width = max(len("source"), *(len(str(row["source"])) for row in rows))
    columns = ("train_tokens", "train_documents", "valid_tokens", "valid_documents", "shards")
    print(f"{'source':<{width}}" + "".join(f"{column.replace('_', ' '):>17}" for column in columns) + "  licence")
    for row in rows:
        print(
            f"{row['source']:<{width}}" + "".join(f"{row[column]:>17,}" for column in columns) + f"  {row['licence']}"
        )
    if dataset.manifest.mixtures:
        print("\nmixtures: " + ", ".join(Path(entry.path).stem for entry in dataset.manifest.mixtures))


def verify(folder: str, /) -> None:
    """Read every file of a dataset and compare its sha256; exit code 3 and the file's name if one differs.

    shards verify runs/demo/published

    shards verify file:///data/published

    Args:
        folder: A folder, file://FOLDER or hf://datasets/ORG/NAME (pulled to the cache first).
    """
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    with _Progress("verify") as progress:
        size = dataset.verify(progress)
    print(f"{folder}: all {progress.total:,} files ({size:,} bytes) are as the manifest says")


def push(folder: Path, target: str, /, private: bool = False) -> None:
    """Publish a dataset to a folder or to the Hugging Face Hub; files that are there already are not sent again.

    shards push runs/demo/published /data/published

    shards push runs/demo/published hf://datasets/ORG/NAME --private

    Args:
        folder: The dataset.
        target: A folder, file://FOLDER, or hf://datasets/ORG/NAME with the token of HF_TOKEN or `hf auth login`.
        private: Make the repository private, if it is made now.
    """
    from gristmill.shards import hub

    with _Progress("push") as progress:
        print(hub.push(folder, target, private=private, progress=progress))


def pull(uri: str, folder: Path, /) -> None:
    """Bring a dataset to a folder and check every file; a pull that was cut short goes on where it stopped.

    shards pull hf://datasets/ORG/NAME data/web

    shards pull hf://datasets/ORG/NAME@v1 data/web

    Args:
        uri: hf://datasets/ORG/NAME[@REVISION], file://FOLDER or a folder.
        folder: Where to put it.
    """
    from gristmill.shards import hub

    with _Progress("pull") as progress:
        manifest = hub.pull(uri, folder, progress=progress)
    print(f"{folder}: {', '.join(manifest.sources)}  content {manifest.content_id[:12]}")


def explain(folder: str, source: str, token_offset: int, /, json: bool = False) -> None:
    """Lead a train token back to its document: id, file, row, score.

    shards explain runs/demo/published web 123456

    shards explain hf://datasets/ORG/NAME code 0 --json

    Args:
        folder: A folder, file://FOLDER or hf://datasets/ORG/NAME.
        source: The source's name.
        token_offset: The token's number among the source's train tokens, from 0.
        json: Print JSON.
    """
    from gristmill.base.config import nearest
    from gristmill.base.errors import UsageError
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    if source not in dataset.sources:
        raise UsageError(f"{folder}: no source {source!r}{nearest(source, dataset.sources)}")
    split = dataset.sources[source].split("train")
    place = split.locate(token_offset)
    row = split.meta(place.shard).slice(place.row, 1).to_pylist()[0]
    answer = {
        "source": source,
        "token_offset": token_offset,
        "token_id": int(split.tokens(place.shard)[place.offset]),
        "shard": split.shards[place.shard].tokens.path,
        "offset_in_shard": place.offset,
        "offset_in_document": place.offset_in_document,
        **row,
    }
    if json:
        print(json_module.dumps(answer, indent=2, ensure_ascii=False))
        return
    for name, value in answer.items():
        print(f"{name:<18} {value}")


class _Progress:
    """base.progress from a callback of (done, total), whose total is known with the first call."""

    def __init__(self, label: str) -> None:
        self.label, self.total, self.bar = label, 0, None

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        from gristmill.base.progress import Progress

        if self.bar is None:
            self.bar = Progress(self.label, total, "files").__enter__()
        self.total = total
        self.bar.update(done)

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*error)
