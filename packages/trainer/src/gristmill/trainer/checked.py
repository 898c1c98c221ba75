"""The marker of a run that was checked (`check`): for this configuration, this data and this code, and for no other."""

from __future__ import annotations

import dataclasses
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from gristmill.base.config import to_mapping
from gristmill.base.errors import UsageError
from gristmill.base.files import fingerprint, read_object, write_json
from gristmill.trainer.config import TrainConfig, differences

if TYPE_CHECKING:
    from gristmill.trainer.data import TrainingData

MARKER, FORMAT = "checked.json", "gristmill.check/1"
MEND = "run trainer check with the same flags first, where an hour is cheap"


def write(config: TrainConfig, data: TrainingData, smoke_losses: list[float], seconds: float) -> dict[str, Any]:
    """Into the run's folder; answers what it wrote."""
    marker = {
        "format": FORMAT,
        "config": _stored(config),
        "data": _data(data),
        "code": code(),
        "smoke": {"steps": len(smoke_losses), "first_loss": smoke_losses[0], "last_loss": smoke_losses[-1]},
        "seconds": round(seconds, 1),
        "cost": round(seconds / 3600 * config.price_per_hour, 4) if config.price_per_hour else None,
        "time": round(time.time(), 3),
    }
    write_json(config.folder / MARKER, marker)
    return marker


def require(config: TrainConfig, data: TrainingData) -> None:
    """Refuses a run that was not checked as it is now.

    Raises:
        UsageError: no marker in its folder, or one of another configuration, other data or other code.
        DataError: the marker is damaged.
    """
    path = config.folder / MARKER
    if not path.exists():
        raise UsageError(f"{path}: no such file: the run was not checked; {MEND}")
    marker = read_object(path, f"{MEND}", config=dict, data=str, code=str)
    if marker.get("format") != FORMAT:
        raise UsageError(f"{path}: format {marker.get('format')!r:.40}, wanted {FORMAT!r}; {MEND}")
    changed = differences(marker["config"], dataclasses.replace(config, device="auto", threads=1))
    if marker["data"] != _data(data):
        changed.append("the data or its mixture")
    if marker["code"] != code():
        changed.append("the code")
    if changed:
        raise UsageError(f"{path}: since the check there changed: {'; '.join(changed)}; {MEND}")


def _stored(config: TrainConfig) -> dict[str, Any]:
    """Without what may be otherwise on another machine."""
    return to_mapping(dataclasses.replace(config, device="auto", threads=1))


def _data(data: TrainingData) -> str:
    """Of all that decides what is read, in which order."""
    return fingerprint([data.dataset.manifest.content_id, data.plan.identity(data.plan.sequence_count)])


def code() -> str:
    """sha256 of the sources that train: a check speaks for these alone."""
    found: dict[str, str] = {}
    for name in ("base", "shards", "trainer"):
        with resources.as_file(resources.files(f"gristmill.{name}")) as folder:
            for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.toml")]):
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = path.read_text(encoding="utf-8")
    return fingerprint(found)
