"""The `shards` command: look into a dataset, check it, plan on it, trace a token back, bring one in, move it."""

from __future__ import annotations

import dataclasses
import json as json_module
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gristmill.base import cli
from gristmill.base.progress import Progress
from gristmill.shards.importers.command import import_

if TYPE_CHECKING:
    from gristmill.shards.plan import Plan
    from gristmill.shards.reader import Dataset

ABOUT = "The published artifact: tokenised, memory-mapped shards with a manifest that pins every byte."


def main() -> None:
    functions = (inspect, verify, plan, explain, import_, push, pull)
    names = {function.__name__.rstrip("_"): function for function in functions}  # import is a word of Python's
    cli.main("shards", {name: cli.typed(function, f"shards {name}") for name, function in names.items()}, ABOUT)


def inspect(folder: str, /, json: bool = False) -> None:
    """Say what a dataset holds: sources, tokens, documents, mixtures.

    shards inspect runs/demo/published

    shards inspect hf://datasets/ORG/NAME --json

    Args:
        folder: A folder, file://FOLDER, hf://datasets/ORG/NAME[@REVISION] or a URL (only its manifests are fetched).
        json: Print JSON instead of a table.
    """
    from gristmill.shards import holdings
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    about = holdings.about(dataset)
    print(json_module.dumps(about, indent=2) if json else holdings.table(folder, _shown(about)))


def verify(folder: str, /) -> None:
    """Read every file of a dataset and compare its sha256; exit code 3 and the file's name if one differs.

    shards verify runs/demo/published

    shards verify file:///data/published

    Args:
        folder: A folder, file://FOLDER, or hf://datasets/ORG/NAME (what the cache has of it).
    """
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    with Progress("verify", 0, "files") as progress:
        found = dataset.verify(progress.of)
    scope = "all " if not found.absent_files else "a partial dataset: "
    print(f"{folder}: {scope}{found.files:,} files ({found.bytes:,} bytes) are as the manifest says")
    if found.absent_files:
        print(f"{found.absent_files:,} files ({found.absent_bytes:,} bytes) are not here yet")


def plan(
    folder: str,
    /,
    mixture: str,
    tokens: cli.Tokens,
    sequence_length: int,
    seed: int | None = None,
    packing: Literal["concat", "bestfit"] = "concat",
    match_repetition: bool = False,
    batch_tokens: cli.Tokens = 1,
    sequence: int | None = None,
    json: bool = False,
) -> None:
    """Say what a run would read, before it reads anything: shares, epochs, shards and bytes by source, phases.

    shards plan runs/demo/published --mixture demo --tokens 50K --sequence-length 256

    shards plan hf://datasets/ORG/NAME --mixture web40_code20 --tokens 10B --sequence-length 2048 --json

    shards plan DATA --mixture web40_code20 --tokens 1B --sequence-length 2048 --sequence 123456

    Args:
        folder: A folder, file://FOLDER, hf://datasets/ORG/NAME[@REVISION] or a URL (only its manifests are fetched).
        mixture: A mixture of the dataset by name, or a TOML file.
        tokens: The budget: 1_000_000, 250M, 1B.
        sequence_length: Tokens of a sequence.
        seed: Of the order; by default the mixture's own.
        packing: concat or bestfit.
        match_repetition: Read of each source what repeats as often as in the mixture's target_tokens.
        batch_tokens: As in the run: sequences per step times their length; only matters where phases differ in length.
        sequence: Say where this sequence of the order lies instead; `shards explain` takes the numbers.
        json: Print JSON instead of a table.
    """
    from gristmill.base.errors import UsageError
    from gristmill.shards import outline
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    budget = Budget(mixture, tokens, sequence_length, seed, packing, match_repetition, batch_tokens)
    resolved = budget.plan(dataset)
    if sequence is not None:
        if not 0 <= sequence < resolved.sequence_count:
            raise UsageError(f"--sequence {sequence}: the plan has {resolved.sequence_count:,}, from 0")
        found = [piece._asdict() for piece in outline.pieces(resolved, dataset, sequence)]
        if json:
            print(json_module.dumps(found, indent=2))
            return
        for piece in found:
            print(f"{piece['source']} {piece['token_offset']}  {piece['tokens']:,} tokens from there")
        return
    record = outline.outline(resolved, dataset)
    print(json_module.dumps(record, indent=2) if json else outline.table(_shown(record)))


def push(folder: Path, target: str = "", /, repo: str = "", private: bool = False, replace: bool = False) -> None:
    """Publish a dataset: to the Hugging Face Hub, a folder, or a bucket. What is there already is not sent again.

    A version of the same sources takes the place of the one before; whatever else is there stays.

    shards push runs/demo/published --repo ORG/NAME --private

    shards push runs/demo/published hf://datasets/ORG/NAME

    shards push runs/demo/published s3://BUCKET/PREFIX

    Args:
        folder: The dataset.
        target: hf://datasets/ORG/NAME, a folder, file://FOLDER, or a URL of fsspec (s3://, gs://, ...).
        repo: ORG/NAME on the Hub, instead of a target. The token is that of HF_TOKEN or `hf auth login`.
        private: Make the repository private, if it is made now.
        replace: Delete even sources that stand there and are not in this dataset.
    """
    from gristmill.base.errors import UsageError
    from gristmill.shards import transfer
    from gristmill.shards.remote import places

    if bool(target) == bool(repo):
        raise UsageError("give either a target or --repo ORG/NAME")
    with Progress("push", 0, "files") as progress:
        place = str(places.hub_address(repo)) if repo else target
        print(transfer.push(folder, place, private=private, progress=progress.of, replace=replace))


def pull(
    uri: str,
    folder: Path,
    /,
    mixture: str = "",
    tokens: cli.Tokens = 0,
    sequence_length: int = 0,
    seed: int | None = None,
    packing: Literal["concat", "bestfit"] = "concat",
    match_repetition: bool = False,
    batch_tokens: cli.Tokens = 1,
    replace: bool = False,
) -> None:
    """Bring a dataset to a folder and check every file; a pull that was cut short goes on where it stopped.

    With --mixture, only the shards that a run of that budget reads; what else is asked for later is fetched then.

    shards pull hf://datasets/ORG/NAME data/web

    shards pull hf://datasets/ORG/NAME@v1 data/web --mixture web40_code20 --tokens 1B --sequence-length 2048

    Args:
        uri: hf://datasets/ORG/NAME[@REVISION], a folder, file://FOLDER, or a URL of fsspec (s3://, gs://, ...).
        folder: Where to put it.
        mixture: A mixture of the dataset by name, or a TOML file.
        tokens: The budget of the run: 1_000_000, 250M, 1B.
        sequence_length: As in the run.
        seed: As in the run; by default the mixture's own.
        packing: As in the run.
        match_repetition: As in the run.
        batch_tokens: As in the run: sequences per step times their length; only matters where phases differ in length.
        replace: Delete even sources that the folder has and the dataset has not, and take the place of foreign files.
    """
    from gristmill.base.errors import UsageError
    from gristmill.shards import skeleton, transfer

    budget = Budget(mixture, tokens, sequence_length, seed, packing, match_repetition, batch_tokens)
    if not mixture and budget != Budget():
        raise UsageError(
            "--tokens, --sequence-length and the like say which part of a --mixture to pull; give that too"
        )
    if mixture and not (tokens and sequence_length):
        raise UsageError("--mixture needs --tokens and --sequence-length: they decide which shards a run reads")
    only = budget.touched if mixture else None
    with Progress("pull", 0, "files") as progress:
        manifest = transfer.pull(uri, folder, only=only, progress=progress.of, replace=replace)
    print(f"{folder}: {', '.join(manifest.sources)}  content {manifest.content_id[:12]}")
    if only is not None:
        standing = skeleton.read_skeleton(folder)
        total = sum(entry.bytes for entry in standing.shard_files())
        left = sum(entry.bytes for entry in transfer.absent(standing, folder))
        print(f"{total - left:,} of {total:,} bytes are here; the rest is fetched if it is asked for")


def explain(folder: str, source: str, token_offset: int, /, json: bool = False) -> None:
    """Lead a train token back to its document: id, file, row, score, and the text around it.

    shards explain runs/demo/published web 123456

    shards explain hf://datasets/ORG/NAME code 0 --json

    Args:
        folder: A folder, file://FOLDER, hf://datasets/ORG/NAME[@REVISION] or a URL.
        source: The source's name.
        token_offset: The token's number among the source's train tokens, from 0.
        json: Print JSON.
    """
    from gristmill.base.config import nearest
    from gristmill.base.errors import UsageError
    from gristmill.base.terminal import shown
    from gristmill.shards import provenance
    from gristmill.shards.reader import open_dataset

    dataset = open_dataset(folder)
    if source not in dataset.sources:
        raise UsageError(f"{folder}: no source {source!r}{nearest(source, dataset.sources)}")
    answer = provenance.explain(dataset, source, token_offset)
    if json:
        print(json_module.dumps(answer, indent=2, default=str))  # ASCII: what documents hold is not for the terminal
        return
    for name, value in answer.items():
        print(f"{shown(name):<18} {shown(value)}")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What decides a run's plan on a dataset."""

    mixture: str = ""
    tokens: int = 0
    sequence_length: int = 0
    seed: int | None = None
    packing: Literal["concat", "bestfit"] = "concat"
    match_repetition: bool = False
    batch_tokens: int = 1

    def plan(self, dataset: Dataset) -> Plan:
        from gristmill.base.errors import UsageError
        from gristmill.shards.mixture import load_mixture
        from gristmill.shards.resolve import plan

        if self.batch_tokens < 1:
            raise UsageError(f"--batch-tokens {self.batch_tokens}: give at least 1")
        return plan(
            load_mixture(self.mixture, search=[dataset.root / "mixtures"]),
            dataset,
            self.sequence_length,
            self.seed,
            self.tokens,
            pack=self.packing,
            match_repetition=self.match_repetition,
            align=self.batch_tokens,
        )

    def touched(self, dataset: Dataset) -> Mapping[str, Iterable[int]]:
        """The train shards that the run reads, for transfer.pull."""
        return self.plan(dataset).touched()


def _shown(value: Any) -> Any:
    """Names, licences and paths that a manifest holds, safe to print."""
    from gristmill.base.terminal import shown

    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value
