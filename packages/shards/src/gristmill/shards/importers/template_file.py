"""The file that a chat template stands in, and the sandbox that it runs in.

The settings are those of transformers, whose templates they are (utils/chat_template_utils.py); the clock is left out,
so that the same conversation is the same tokens tomorrow.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.base.errors import DataError, UsageError
from gristmill.base.files import read_object

if TYPE_CHECKING:
    import jinja2

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
INSTEAD = "give another file with --chat-template, or none of it (trainer finetune --chat-template none) for ChatML"


def find_template(folder: Path) -> Path | None:
    """The file of a model's folder that holds its chat template, if one does."""
    if (folder / FILE).is_file():
        return folder / FILE
    config = folder / CONFIG
    return config if config.is_file() and read_object(config, "fetch it again").get("chat_template") else None


def read(path: Path) -> str:
    """A template's text, out of a .jinja file or of a tokenizer_config.json; of several, the one named "default".

    Raises:
        DataError: no such file, or none in it.
    """
    if path.suffix != ".json":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); give a chat template") from None
    told = read_object(path, "give a chat template").get("chat_template")
    if isinstance(told, list):
        told = next(
            (one.get("template") for one in told if isinstance(one, dict) and one.get("name") == "default"), None
        )
    if not isinstance(told, str) or not told:
        raise DataError(f"{path}: has no chat_template; {INSTEAD}")
    return told


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and their like, which templates write."""
    config = folder / CONFIG
    if not config.is_file():
        return {}
    found = {}
    for name, value in read_object(config, "fetch it again").items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def compiled(text: str, path: Path) -> jinja2.Template:
    """
    Raises:
        DataError: it is no template.
        UsageError: jinja2 is not installed.
    """
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise UsageError(f"{path}: chat templates need jinja2; pip install 'gristmill-shards[chat]'") from None

    def refuse_private(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a name that begins with _: {name}")

    class Namespace(jinja2.utils.Namespace):
        """Of plain names only: others lead out of the sandbox."""

        def __init__(self, /, *args: Any, **values: Any) -> None:
            for name in dict(*args, **values):
                refuse_private(name)
            super().__init__(*args, **values)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_others: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals = {"range": sandbox.globals["range"], "namespace": Namespace, "raise_exception": raise_exception}
    # transformers' own tag around what is to be learnt; here, marks tell that
    text = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", text)
    text = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", text)
    try:
        return sandbox.from_string(text)
    except jinja2.TemplateError as error:
        raise DataError(f"{path}: no chat template that can be read ({error}); {INSTEAD}") from None
