"""A run on Modal: prepare on a few cores, then train on the GPUs of resources.toml, in its order.

    modal volume create gristmill
    modal secret create huggingface HF_TOKEN=...
    modal run --detach places/modal_app.py            both; the GPUs are asked for when prepare has passed
    modal run --detach places/modal_app.py::train     the second alone, again: it goes on from its newest checkpoint

Both write to the volume: /vol/shards and /vol/runs/NAME. One node of GPUs: the run file does not mind.
"""

# pyright: reportMissingImports=false, reportFunctionMemberAccess=false
from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import modal

INSIDE = Path("/gristmill")  # in the image
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent if (HERE / "resources.toml").exists() else INSIDE
TABLE = tomllib.loads((ROOT / "places" / "resources.toml").read_text(encoding="utf-8"))
RUN, PREPARE, TRAIN = TABLE["run"], TABLE["stages"]["prepare"], TABLE["stages"]["train"]
SHARDS, OUTPUT = "/vol/shards", f"/vol/runs/{RUN['name']}"

app = modal.App(RUN["name"])
volume = modal.Volume.from_name(RUN["name"], create_if_missing=True)
image = (
    modal.Image.from_dockerfile(ROOT / "docker" / "train.Dockerfile", context_dir=ROOT)
    .entrypoint([])
    .add_local_dir(ROOT / "pipelines" / "training", str(INSIDE / "pipelines" / "training"))
    .add_local_file(ROOT / "places" / "resources.toml", str(INSIDE / "places" / "resources.toml"))
)
shared = {"image": image, "volumes": {"/vol": volume}, "secrets": [modal.Secret.from_name("huggingface")]}


@app.function(
    **shared,
    cpu=PREPARE["cpus"],
    memory=PREPARE["memory_gb"] * 1024,
    timeout=PREPARE["hours"] * 3600,
    retries=2,
)
def prepare() -> None:
    """Shards, their hashes, and 20 smoke steps: what fails here fails for cents."""
    run = tomllib.loads((INSIDE / RUN["config"]).read_text(encoding="utf-8"))
    batch = run.get("batch", {})
    sequence, sequences = batch.get("sequence", 256), batch.get("sequences", 8)
    pull = ["shards", "pull", RUN["data"], SHARDS, "--mixture", RUN["mixture"], "--sequence-length", str(sequence)]
    pull += ["--tokens", str(run.get("tokens", 2_000_000)), "--batch-tokens", str(sequence * sequences)]
    _run([*pull, "--packing", run.get("packing", "concat")])
    _run(["trainer", "check", *_asked(PREPARE["cpus"] * TABLE["prices"]["cpu"]), "--threads", str(PREPARE["cpus"])])
    volume.commit()


@app.function(
    **shared,
    gpu=[f"{gpu}:{TRAIN['gpus']}" for gpu in TRAIN["gpu"]],
    cpu=TRAIN["cpus"],
    memory=TRAIN["memory_gb"] * 1024,
    timeout=TRAIN["hours"] * 3600,
    retries=modal.Retries(max_retries=10, initial_delay=0.0),
    single_use_containers=True,
)
def train() -> None:
    """To the end of the budget, or on from the newest checkpoint; refused where prepare has not passed."""
    volume.reload()
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    kind = next((gpu for gpu in TRAIN["gpu"] if gpu in name.stdout), TRAIN["gpu"][0])
    asked = [*_asked(TRAIN["gpus"] * TABLE["prices"][kind]), "--require-check"]
    try:
        launch = ["torchrun", "--standalone", "--nproc-per-node", str(TRAIN["gpus"])]
        _run([*launch, "-m", "gristmill.trainer", "run", *asked])
    finally:
        volume.commit()


@app.local_entrypoint()
def main() -> None:
    prepare.remote()
    train.remote()


def _asked(price: float) -> list[str]:
    asked = ["--config", str(INSIDE / RUN["config"]), "--mixture", RUN["mixture"], "--data", SHARDS]
    return [*asked, "--output", OUTPUT, "--price-per-hour", f"{price:g}"]


def _run(command: list[str]) -> None:
    """A preempted container is interrupted: the run saves after its step, and the next container goes on."""
    process = subprocess.Popen(command, cwd=INSIDE, env=os.environ | {"HF_HOME": "/vol/huggingface"})
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise RuntimeError(f"{' '.join(command[:2])} ended with exit code {code}")
