"""Pack: the documents that a selection keeps, as tokenised shards. Publish: the shards where others can fetch them."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.base.errors import GristmillError
from gristmill.base.files import read_json, sha256_file, write_json
from gristmill.datapipe.arrow import compute as pc
from gristmill.datapipe.workflow.stage import Inputs, Step
from gristmill.shards import hub
from gristmill.shards.manifest import TokenizerInfo
from gristmill.shards.writer import SourceSpec, write_manifest, write_source

END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


@dataclass(frozen=True)
class PackConfig:
    salt: str = "gristmill"
    valid_fraction: float = 0.02
    licences: dict[str, str] = field(default_factory=dict)
    """Licence per source, for the dataset card."""


class Pack(Step):
    """shards/NAME: one source folder per source, mixtures, manifest, card, and the tokenizer that made it.

    Without a `selection` every document is packed: the unfiltered side of a comparison.
    """

    version = 1

    def __init__(
        self,
        name: str,
        folder: str,
        config: PackConfig,
        selection: str | None,
        extra: Sequence[str] = (),
        mixtures: Sequence[Path] = (),
    ) -> None:
        """`extra`: annotations to carry into the shards' provenance, of language and scores."""
        self.name, self.folder = name, folder
        self.config = {"pack": config, "selection": selection}
        self._config, self._selection, self._mixtures = config, selection, tuple(mixtures)
        self.requires = ("documents", "tokens", "tokenizer", *((selection,) if selection else ()), *extra)
        self._extra = tuple(extra)
        self.resumes = True

    def files(self) -> Sequence[Path]:
        return self._mixtures

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        tokenizer_file = inputs.folders["tokenizer"] / "tokenizer.json"
        tokenizer = tokenizer_info(tokenizer_file)
        recipe: dict[str, Any] = {"selection": self._selection or "everything"}
        if self._selection:
            recipe["policy"] = read_json(inputs.folders[self._selection] / "policy.json")
        repeated = _repeated_ids(inputs)
        sources = self._kept_per_source(inputs)
        tokens = 0
        for source in sorted(sources):
            spec = SourceSpec(
                source, tokenizer, self._config.salt, self._config.valid_fraction, recipe,
                _input_files(inputs, source), self._config.licences.get(source, "unknown"),
            )  # fmt: skip
            manifest = write_source(out, spec, self._batches(inputs, source, repeated))
            tokens += sum(shard.token_count for shard in (*manifest.train, *manifest.valid))
        if not sources:
            raise GristmillError(
                f"{self.name}: no document is left to pack; loosen the policy (see selection/funnel.json)"
            )
        write_manifest(out, self._mixtures, tokenizer_file)
        return {"documents": sum(sources.values()), "tokens": tokens, "sources": len(sources)}

    def _kept_per_source(self, inputs: Inputs) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        for part in inputs.parts["documents"]:
            sources = inputs.part("documents", part, ("source",))["source"]
            counts.update(sources.filter(self._keep(inputs, part)).to_pylist())
        return counts

    def _keep(self, inputs: Inputs, part: str) -> pa.Array:
        """Every document of at least one token, less what the selection drops."""
        keep = pc.greater(inputs.part("tokens", part, ("count",))["count"], 0)
        if self._selection:
            keep = pc.and_(keep, inputs.part(self._selection, part, ("keep",))["keep"])
        return keep.combine_chunks()

    def _batches(self, inputs: Inputs, source: str, repeated: set[str]) -> Iterator[pa.Table]:
        for part in inputs.parts["documents"]:
            documents = inputs.part("documents", part, ("id", "source", "file", "row"))
            keep = pc.and_(self._keep(inputs, part), pc.equal(documents["source"], source).combine_chunks())
            if not pc.any(keep).as_py():
                continue
            origins = zip(*(documents[name].to_pylist() for name in ("id", "file", "row")))
            names = [f"{name}@{file}:{row}" if name in repeated else name for name, file, row in origins]
            count = len(documents)
            table = pa.table(
                {
                    "id": names,
                    "tokens": inputs.part("tokens", part, ("tokens",))["tokens"],
                    "file": documents["file"],
                    "row": documents["row"],
                    "score": self._column(inputs, "scores", "quality", part, pa.nulls(count, pa.float32())),
                    "language": self._column(inputs, "language", "label", part, pa.nulls(count, pa.string())),
                }
            )
            yield table.filter(keep)

    def _column(self, inputs: Inputs, annotation: str, name: str, part: str, missing: pa.Array) -> Any:
        return inputs.part(annotation, part, (name,))[name] if annotation in self._extra else missing


class Publish(Step):
    """published/: the shards pushed to `target` (a folder, file://, or hf://datasets/ORG/NAME), and the receipt."""

    version = 1

    def __init__(self, shards: str, target: str, name: str = "publish", folder: str = "published") -> None:
        self.name, self.folder, self.requires = name, folder, (shards,)
        self.config = {"target": target or "published"}
        self._target = target

    def run(self, inputs: Inputs, out: Path) -> dict[str, float]:
        shards = inputs.folders[self.requires[0]]
        target = self._target or str(out)
        hub.push(shards, target)
        sources = read_json(shards / "manifest.json")["sources"]
        if self._target:
            write_json(
                out / "receipt.json",
                {"target": target, "content_id": read_json(shards / "manifest.json")["content_id"]},
            )
        return {"sources": len(sources)}


def tokenizer_info(path: Path) -> TokenizerInfo:
    """Identity of a tokenizer.json, with its end-of-document token.

    Raises:
        GristmillError: it has none of the end tokens that we know.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ends = [tokenizer.token_to_id(token) for token in END_OF_DOCUMENT]
    known = [token for token in ends if token is not None]
    if not known:
        raise GristmillError(f"{path}: has none of the end-of-document tokens {', '.join(END_OF_DOCUMENT)}")
    return TokenizerInfo(
        name=path.parent.name, sha256=sha256_file(path), vocab_size=tokenizer.get_vocab_size(), eos_id=known[0]
    )


def _repeated_ids(inputs: Inputs) -> set[str]:
    """Ids that stand more than once in the run: corpora that were merged often share them."""
    counts = pc.value_counts(inputs.table("documents", ("id",))["id"])
    return set(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist())


def _input_files(inputs: Inputs, source: str) -> list[dict[str, Any]]:
    """Input files of a source, with how many documents each gave."""
    counts: collections.Counter[str] = collections.Counter()
    for part in inputs.parts["documents"]:
        table = inputs.part("documents", part, ("source", "file"))
        counts.update(table.filter(pc.equal(table["source"], source))["file"].to_pylist())
    return [{"path": name, "documents": count} for name, count in sorted(counts.items())]
