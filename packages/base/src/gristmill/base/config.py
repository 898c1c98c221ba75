"""Configuration as frozen dataclasses: defaults < TOML < command line. An unknown key is refused."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from gristmill.base.errors import UsageError

T = TypeVar("T")


def load_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from None


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass (nested ones too) from a mapping; keys that are absent keep their defaults.

    Raises:
        UsageError: an unknown key (with the nearest known one), a value of the wrong type, or one that a section's own
            __post_init__ refuses; `where` names the file, or the section of it.
    """
    _refuse_unknown(cls, values, where, "")
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {key}: {first['msg']} (got {first['input']!r})") from None
    except UsageError as error:  # a section refuses its own values, and knows its own settings' names alone
        told = str(error)
        raise UsageError(told if told.startswith(where) else f"{where}: {told}") from None


def load(cls: type[T], path: Path | None, base: Mapping[str, Any] | None = None) -> T:
    """The dataclass from a TOML file over `base`, or its defaults where there is neither."""
    return from_mapping(cls, _over(base or {}, load_toml(path) if path else {}), str(path or "defaults"))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, section by section; what `above` says holds."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = _over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def to_mapping(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON types, nested as written."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def check_range(name: str, value: float, least: float = 0, most: float = 2**31 - 1) -> None:
    """Raises UsageError, which names the setting, where its value is outside; NaN is, too."""
    if not least <= value <= most:
        raise UsageError(f"{name}: {value!r} is not from {least} to {most}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean X?`, or the list of known names where nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _refuse_unknown(cls: Any, values: Any, where: str, prefix: str) -> None:
    if not (dataclasses.is_dataclass(cls) and isinstance(values, Mapping)):
        return
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {prefix + str(key)!r}{nearest(str(key), known)}")
        arguments = typing.get_args(hints[key])
        _refuse_unknown(hints[key], value, where, f"{prefix}{key}.")
        for item_type in arguments:  # tuple[Rule, ...], dict[str, Rule], Rule | None
            if isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    _refuse_unknown(item_type, item, where, f"{prefix}{key}[{index}].")
            elif isinstance(value, Mapping) and typing.get_origin(hints[key]) is dict:
                for name, item in value.items():
                    _refuse_unknown(item_type, item, where, f"{prefix}{key}.{name}.")
            else:
                _refuse_unknown(item_type, value, where, f"{prefix}{key}.")
