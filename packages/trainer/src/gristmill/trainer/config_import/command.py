"""`trainer config import`: a DeepSpeed file, Megatron's flags, or both together, as a run file of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import tyro.conf

from gristmill.base import cli
from gristmill.base.errors import UsageError
from gristmill.base.files import write_text
from gristmill.trainer.config_import import deepspeed, flags, megatron
from gristmill.trainer.config_import.imported import Imported, finish, whole


def run(arguments: list[str]) -> int:
    """`trainer config`, whose only word is import."""
    if arguments[:1] in (["--help"], ["-h"]):
        arguments = ["import", *arguments]
    if arguments[:1] != ["import"]:
        raise UsageError("config: there is trainer config import FILE alone; see trainer config import --help")
    rest = arguments[1:]
    for index, word in enumerate(rest[:-1]):
        if word == "--flags":  # its value begins with dashes itself
            rest[index : index + 2] = [f"--flags={rest[index + 1]}"]
            break
    return cli.typed(import_config, "trainer config import")(rest) or 0


def import_config(
    file: Annotated[Path | None, tyro.conf.Positional] = None,
    flags: str = "",
    kind: Literal["auto", "deepspeed", "megatron"] = "auto",
    output: Path | None = None,
    preset: str = "small",
    ranks: int | None = None,
    sequence: int | None = None,
) -> int:
    """Make a run file of a DeepSpeed MoE configuration (JSON) or of Megatron-LM's flags (a text, or a shell script).

    Every key is mapped, or named as not supported or without meaning here; one that nobody knows is refused. With both
    a DeepSpeed file and --flags, flags say what the model is, and win. trainer plan and trainer run take the result
    by --config.

    Examples:
        trainer config import ds_config.json --ranks 16 --output run.toml
        trainer config import pretrain_moe.sh --output run.toml
        trainer config import ds_config.json --flags "$(cat flags.txt)" --output run.toml

    Args:
        file: the JSON, or the text that has the flags. Nothing in it is run.
        flags: the flags themselves.
        kind: what the file is; auto looks at its name and beginning.
        output: the run file, which is not there yet; without it, the file is printed.
        preset: of a DeepSpeed file without flags, whose model it is.
        ranks: GPUs that the job had; not needed where the file tells.
        sequence: tokens of a window; not needed where the file tells.
    """
    if output is not None and output.exists():
        raise UsageError(f"{output}: is there already; give another --output, or remove it")
    found = import_from(file, flags, kind, preset, ranks, sequence)
    config = found.config()
    if output is None:
        print(found.toml(), end="")
        return 0
    write_text(output, found.toml())
    print(f"{output}: {len(found.settings)} settings, {config.steps:,} steps of {config.batch.tokens:,} tokens")
    if told := found.told():
        print(told)
    return 0


def import_from(
    file: Path | None, flags_text: str, kind: str, preset: str, ranks: int | None, sequence: int | None
) -> Imported:
    """
    Raises:
        UsageError: neither file nor flags, or what is wrong with them.
    """
    if file is None and not flags_text.strip():
        raise UsageError('config import: give FILE, --flags "...", or both; see trainer config import --help')
    text = _text(file) if file is not None else ""
    json_file = file is not None and (kind == "deepspeed" or (kind == "auto" and _is_json(file, text)))
    found: Imported | None = None
    least = 1
    if json_file and file is not None:
        found, least = deepspeed.read(deepspeed.load(file), str(file), preset)
    elif flags_text and text:
        flags_text = f"{text}\n{flags_text}"  # the later ones win
    if ranks is not None:
        whole("config import", "--ranks", ranks, 1)
    if found is not None:
        found.batch = found.batch._replace(ranks=ranks)
    if found is None or flags_text:
        where = "--flags" if flags_text and not (text and not json_file) else str(file)
        base = found or Imported(where)
        base.batch = base.batch._replace(ranks=ranks)
        if found is not None:
            found.settings.pop("model.preset", None)
            found.differs = [line for line in found.differs if "the preset's" not in line]
        found, most = megatron.read(flags.read(flags_text or text, where), where, base)
        least = max(least, most)
    if sequence is not None:
        found.length = found.length._replace(sequence=whole("config import", "--sequence", sequence, 1))
    finish(found, least)
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a text in UTF-8; give the JSON, or the script that has the flags") from None


def _is_json(file: Path, text: str) -> bool:
    return file.suffix == ".json" or re.match(r"\s*[{\[]", text) is not None
