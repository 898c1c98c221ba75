"""Files in a format of another system into a source of shards: hash-ordered, checked and published like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from gristmill.base import files
from gristmill.base.errors import DataError, PartialError, UsageError
from gristmill.shards.importers import chat, datatrove, megatron, numpy_shards
from gristmill.shards.importers.flat import Found
from gristmill.shards.manifest import SourceManifest, TokenizerInfo
from gristmill.shards.tokenizer import tokenizer_info
from gristmill.shards.writer import SourceSpec, write_source

Format = Literal["megatron", "datatrove", "numpy", "chat"]
Kind = Literal["auto", "megatron", "datatrove", "numpy", "chat"]
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "megatron": (".bin",),
    "datatrove": (".ds",),
    "numpy": (".npy", ".bin"),
    "chat": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
}
VERSION = 1  # of how documents are read; a spool of another one is not gone on with
MAX_BAD_FRACTION = 0.01  # of conversations in quarantine


@dataclasses.dataclass(frozen=True)
class Imported:
    """`left_out`: documents without a token, None where only EOS tells documents apart. `quarantined`: rows of the
    file `quarantine`, which is there if any are."""

    kind: Format
    manifest: SourceManifest
    left_out: int | None
    quarantined: int
    quarantine: Path


def import_source(
    kind: Kind,
    inputs: Sequence[Path],
    folder: Path,
    name: str,
    tokenizer_file: Path,
    *,
    eos: str = "",
    dtype: str = "",
    licence: str = "unknown",
    salt: str = "gristmill",
    valid_fraction: float = 0.0,
    chat_template: Path | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Write FOLDER/sources/NAME from `inputs`: files, Megatron prefixes, or folders that are searched for files.

    A document's id is FILE:ROW, where FILE is the input's name, or its path below the folder that was given; it must
    stay the same for the order to stay the same. Ids are taken as they are: `tokenizer_file` must be what made them.
    Conversations are tokenised with it, as `chat_template` writes them if one is given; those that cannot be read stand
    in FOLDER/NAME.quarantine.jsonl.

    Raises:
        UsageError: no input, inputs of several kinds or of one name, or a kind that the files do not tell.
        DataError: a file that is damaged, does not fit its index or holds ids outside the vocabulary; no document.
        PartialError: more than `max_bad_fraction` of the conversations are in quarantine; nothing else was written.
    """
    format_, paths = find_inputs(kind, inputs)
    tokenizer = tokenizer_info(tokenizer_file, eos)
    quarantine = folder / f"{name}.quarantine.jsonl"
    recipe: dict[str, Any] = {"import": format_}
    spec = SourceSpec(name, tokenizer, salt, valid_fraction, recipe, [], licence)  # refuses a bad name before any work
    if chat_template is not None and format_ != "chat":
        raise UsageError(f"chat_template {chat_template}: is for conversations; these inputs are {format_}")
    found = _examine(format_, paths, tokenizer, tokenizer_file, dtype, quarantine, chat_template)
    quarantined = sum(each.quarantined for each in found.values())
    if format_ == "chat":
        form = chat.load_form(tokenizer_file, tokenizer.eos_id, chat_template)
        recipe |= {**form.recipe, "quarantined": quarantined}
        rows = quarantined + sum(each.documents or 0 for each in found.values())
        if quarantined > max_bad_fraction * rows:
            raise PartialError(
                f"{quarantined:,} of {rows:,} conversations cannot be read, more than {max_bad_fraction:.0%}: "
                f"see {quarantine}; nothing was imported"
            )
    if all(each.documents == 0 for each in found.values()):
        raise DataError(f"{', '.join(map(str, inputs))}: holds no document")
    spec = dataclasses.replace(spec, inputs=_provenance(found))
    parts = {key: part for each in found.values() for key, part in each.parts.items()}
    same = files.fingerprint([VERSION, recipe, dtype, spec.inputs])
    manifest = write_source(folder, spec, parts, workers=workers, resume_key=same, progress=progress)
    written = sum(shard.document_count - shard.continues for shard in (*manifest.train, *manifest.valid))
    if not written:
        raise DataError(f"{', '.join(map(str, inputs))}: holds no document with a token in it")
    counts = [each.documents for each in found.values() if each.documents is not None]
    left_out = sum(counts) - written if len(counts) == len(found) else None
    return Imported(format_, manifest, left_out, quarantined, quarantine)


def find_inputs(kind: Kind, inputs: Sequence[Path]) -> tuple[Format, dict[str, Path]]:
    """What the inputs are, and the files of tokens or lines among them, by the names that their documents carry.

    Raises:
        UsageError: none, several kinds, two of one name, or a file whose kind cannot be told.
    """
    found: dict[str, Path] = {}
    kinds: dict[Format, Path] = {}
    for given in inputs:
        for path, name in _files(given, kind):
            if not path.is_file():
                raise UsageError(f"{path}: no such file")
            this = _detect(path) if kind == "auto" else kind
            if this is None:
                raise UsageError(
                    f"{path}: cannot tell what it is; name its kind: {', '.join(SUFFIXES)} "
                    "(files of an index or of loss masks are found beside their tokens: leave them out)"
                )
            kinds.setdefault(this, path)
            if found.setdefault(name, path).resolve() != path.resolve():
                raise UsageError(f"{found[name]} and {path} have one name; give the folder that both are in")
    if not found:
        raise UsageError(f"{', '.join(map(str, inputs)) or 'no input'}: no file there that can be imported")
    if len(kinds) > 1:
        told = ", ".join(f"{path} is {this}" for this, path in kinds.items())
        raise UsageError(f"inputs of several kinds: {told}; import each kind as a source of its own")
    return next(iter(kinds)), found


def _files(given: Path, kind: Kind) -> Iterator[tuple[Path, str]]:
    """(path, name) of every file of tokens or lines that an input stands for."""
    if not given.is_dir():
        path = _tokens_of(given, kind)
        yield path, path.name
        return
    wanted = tuple(end for this, ends in SUFFIXES.items() if kind in (this, "auto") for end in ends)
    for path in sorted(given.rglob("*")):
        relative = path.relative_to(given)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            tokens = _tokens_of(path, kind)
            if tokens.name.lower().endswith(wanted):
                yield tokens, relative.with_name(tokens.name).as_posix()


def _tokens_of(path: Path, kind: Kind) -> Path:
    """PREFIX.bin, where PREFIX or PREFIX.idx was given of a Megatron dataset; else the path itself."""
    if kind not in ("megatron", "auto") or path.suffix == ".bin":
        return path
    tokens = path.with_suffix(".bin") if path.suffix == ".idx" else path.with_name(f"{path.name}.bin")
    return tokens if megatron.has_index(tokens) else path


def _detect(path: Path) -> Format | None:
    lower = path.name.lower()
    if path.suffix == ".bin":
        if megatron.has_index(path):
            return "megatron"
        return "numpy" if numpy_shards.is_llmc(path) else None
    for kind in ("chat", "datatrove", "numpy"):
        if lower.endswith(SUFFIXES[kind]):
            return kind
    return None


def _examine(
    kind: Format,
    paths: dict[str, Path],
    tokenizer: TokenizerInfo,
    tokenizer_file: Path,
    dtype: str,
    quarantine: Path,
    chat_template: Path | None,
) -> dict[str, Found]:
    """Headers, indices and lines of all inputs, checked; for conversations, what is wrong with them is written down."""
    eos_id = tokenizer.eos_id
    if dtype and kind != "numpy":
        raise UsageError(f"dtype {dtype!r} is for flat arrays without a header; {kind} files say what they hold")
    if kind == "megatron":
        return {name: megatron.find(path, name, eos_id) for name, path in paths.items()}
    if kind == "datatrove":
        masks = any(datatrove.beside(path, "loss").is_file() for path in paths.values())
        return {name: datatrove.find(path, name, eos_id, masks) for name, path in paths.items()}
    if kind == "numpy":
        return {name: numpy_shards.find(path, name, eos_id, dtype) for name, path in paths.items()}
    with files.atomic_path(quarantine) as temporary, temporary.open("w", encoding="utf-8") as sink:
        found = {
            name: chat.find(path, name, tokenizer_file, eos_id, sink, chat_template) for name, path in paths.items()
        }
    if not any(each.quarantined for each in found.values()):
        quarantine.unlink()
    return found


def _provenance(found: dict[str, Found]) -> list[dict[str, Any]]:
    """Every file that was read, by its name below what was given, with its size and sha256."""
    listed: list[dict[str, Any]] = []
    for name, each in found.items():
        for path in each.files:
            relative = Path(name).with_name(path.name).as_posix()
            listed.append({"path": relative, "bytes": path.stat().st_size, "sha256": files.sha256_file(path)})
    return listed
