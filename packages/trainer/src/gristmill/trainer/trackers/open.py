"""All who are told what happens in a run: events.jsonl first, which must be written, then others, which may fail."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gristmill.base.errors import UsageError
from gristmill.base.files import read_object, write_json
from gristmill.trainer.trackers.flatten import Told, flatten
from gristmill.trainer.trackers.jsonl import EventLog
from gristmill.trainer.watch.config import TrackersConfig

log = logging.getLogger("gristmill.trainer")


class About(NamedTuple):
    """What an adapter knows of the run."""

    folder: Path
    project: str
    name: str
    id: str  # the same whenever the run goes on
    online: bool
    facts: dict[str, Any]  # its configuration, without what might hold a secret
    next_step: int  # numbers of this step and later ones, told before, are told again


class Adapter(Protocol):
    def write(self, step: int, told: Told) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Whoever raises once is left out from then on."""

    def __init__(self, events: EventLog, adapters: dict[str, Adapter], layers: list[int]) -> None:
        self._events, self._adapters, self._layers = events, adapters, layers

    def write(self, kind: str, step: int, **values: Any) -> None:
        self._events.write(kind, step, **values)
        if self._adapters:
            told = flatten(kind, values, self._layers)
            self._tell(lambda adapter: adapter.write(step, told))

    def sync(self) -> None:
        """events.jsonl is on the disk."""
        self._events.sync()

    def close(self) -> None:
        self._events.close()
        self._tell(lambda adapter: adapter.close())

    def _tell(self, act: Callable[[Adapter], None]) -> None:
        for name, adapter in list(self._adapters.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):  # what they say is not what the command answers
                    act(adapter)
            except Exception as error:  # noqa: BLE001 - training outlives whatever a tracker does
                _left_out(name, error)
                del self._adapters[name]


def find_adapters(config: TrackersConfig) -> dict[str, Callable[[About], Adapter]]:
    """By name. Raises UsageError where a tracker's package is not installed."""
    return {name: _import(name) for name in config.use}


class _Silence(Trackers):
    """Of a process that another one tells for."""

    def __init__(self) -> None:
        self._adapters = {}

    def write(self, kind: str, step: int, **values: Any) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_trackers(
    config: TrackersConfig, folder: Path, record: Mapping[str, Any], last_step: int, tells: bool = True
) -> Trackers:
    """Open all; events after `last_step` (-1: none is kept) will happen again.

    Args:
        record: the content of run.json.
        tells: False: of what these trackers are told, nothing is written.
    """
    if not tells:
        return _Silence()
    classes = find_adapters(config)
    adapters: dict[str, Adapter] = {}
    for name, adapter in classes.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                adapters[name] = adapter(_about(config, folder, record, last_step))
        except Exception as error:  # noqa: BLE001 - no account, no network, a full disk, a damaged trackers.json
            _left_out(name, error)
    return Trackers(EventLog(folder / "events.jsonl", last_step), adapters, list(record.get("moe_layers") or []))


def _about(config: TrackersConfig, folder: Path, record: Mapping[str, Any], last_step: int) -> About:
    name = config.name or folder.resolve().name
    return About(folder, config.project, name, _run_id(folder), config.online, facts(record), last_step + 1)


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of run.json, what a tracker may show: numbers, and strings that are plain words. Addresses and paths are left
    out, because an address may hold a key."""
    shown = ("config", "model", "parameters", "active_parameters", "flops_per_token", "device", "versions")
    return dict(_plain("", {key: record[key] for key in shown if key in record}))


def _plain(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _plain(f"{name}.{key}" if name else key, inner)]
    word = isinstance(value, (bool, int, float)) or (isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value))
    return [(name, value)] if word else []


def _import(name: str) -> Callable[[About], Adapter]:
    try:
        return importlib.import_module(f"{__package__}.{name}").Adapter
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and broken
            raise
        raise UsageError(f"trackers.use: {name} is not installed; pip install {name}, or leave it out") from None


def _run_id(folder: Path) -> str:
    path = folder / "trackers.json"
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return read_object(path, id=str)["id"]


def _left_out(name: str, error: Exception) -> None:
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    log.warning("tracker %s failed, and is left out (%s); events.jsonl has every number", name, told)
