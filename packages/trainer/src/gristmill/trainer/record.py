"""run.json: what a training run is, and how far it came."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from gristmill.base.config import to_mapping
from gristmill.base.files import write_json
from gristmill.trainer.checkpoints.checkpoint import Position
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.data import TrainingData
from gristmill.trainer.model.config import ModelConfig
from gristmill.trainer.model.counts import count
from gristmill.trainer.parallel.world import World
from gristmill.trainer.run_folder import FORMAT


def make(config: TrainConfig, data: TrainingData, model: ModelConfig, world: World) -> dict[str, Any]:
    manifest, plan, counts = data.dataset.manifest, data.plan, count(model)
    tokenizer = data.dataset.tokenizer
    return {
        "format": FORMAT,
        "status": "running",
        "steps": config.steps,
        "config": to_mapping(config),
        "model": to_mapping(model),
        "plan": plan.record(),
        "data": {"content_id": manifest.content_id, "mixture": plan.mixture, "sources": plan.summary()},
        "tokenizer": {name: getattr(tokenizer, name) for name in ("name", "sha256", "vocab_size", "eos_id")},
        "moe_layers": model.moe_layers,
        "parameters": counts.total,
        "active_parameters": counts.active,
        "flops_per_token": counts.flops_per_token(config.batch.sequence),
        "seed": config.seed,
        "device": world.device.type,
        "processes": world.size,
        "versions": {name: version(name) for name in ("torch", "numpy", "gristmill-trainer", "gristmill-shards")},
    }


def now(record: dict[str, Any], position: Position, status: str, **more: str | None) -> dict[str, Any]:
    """run.json with where the run stands. `more`: error, or the reason of an early end."""
    stands = {"status": status, "step": position.step, "tokens": position.tokens, "seconds": round(position.seconds, 3)}
    return {**record, **stands, "error": None, **more}


def write(folder: Path, record: dict[str, Any]) -> None:
    write_json(folder / "run.json", record)
