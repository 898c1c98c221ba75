#!/usr/bin/env python3
"""The files of this folder that clusters read, made from resources.toml.

python places/render.py           write them
python places/render.py --check   exit 1 where one is not what it would be
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gristmill.base.config import from_mapping, load, load_toml
from gristmill.base.errors import GristmillError, UsageError
from gristmill.base.files import write_text
from gristmill.trainer.config import TrainConfig

HERE = Path(__file__).resolve().parent
MADE = "Made by places/render.py from places/resources.toml: change that, and make this again."
SHARED_SHARDS = '"$shared/shards"'
VENV = "/gristmill/.venv/bin"  # in the images; a login shell forgets their PATH


@dataclass(frozen=True)
class Run:
    name: str
    config: str
    mixture: str
    data: str
    bucket: str
    registry: str
    region: str


@dataclass(frozen=True)
class Stage:
    """One node of it, and how many there are; `hours`, after which it is ended."""

    cpus: int
    memory_gb: int
    disk_gb: int
    nodes: int
    hours: int
    gpus: int = 0
    gpu: tuple[str, ...] = ()
    instance: str = ""


@dataclass(frozen=True)
class Table:
    run: Run
    prices: dict[str, float]
    stages: dict[str, Stage]

    def price(self, name: str, gpu: str = "") -> float:
        """Of all nodes of a stage and an hour; with a GPU of the stage's choice, or the first."""
        stage = self.stages[name]
        kind = gpu or (stage.gpu[0] if stage.gpus else "cpu")
        if kind not in self.prices:
            raise UsageError(f"resources.toml: prices: {kind} is missing, of stage {name}")
        each = stage.gpus * self.prices[kind] if stage.gpus else stage.cpus * self.prices["cpu"]
        return round(stage.nodes * each, 4)


def table(path: Path = HERE / "resources.toml") -> Table:
    """
    Raises:
        UsageError: no such file, or an unknown key.
    """
    return from_mapping(Table, load_toml(path), path.name)


def files(about: Table, root: Path = HERE.parent) -> dict[str, str]:
    """The content of each file, by name."""
    run = load(TrainConfig, root / about.run.config)
    return {
        "ray_cluster.yaml": _yaml(_ray(about)),
        "skypilot.yaml": _yaml(*_skypilot(about, run)),
        "slurm_prepare.sh": _slurm_prepare(about, run),
        "slurm_train.sh": _slurm_train(about),
    }


def pull(about: Table, run: TrainConfig, folder: str) -> str:
    """Brings what the run reads, and no more."""
    return (
        f"shards pull {about.run.data} {folder} --mixture {about.run.mixture} --tokens {run.trained_tokens} "
        f"--sequence-length {run.batch.sequence} --batch-tokens {run.batch.tokens} --packing {run.packing}"
    )


def check(about: Table, data: str, output: str) -> str:
    return f"trainer check {_asked(about, data, output, 'prepare')} --threads {about.stages['prepare'].cpus}"


def train(about: Table, data: str, output: str) -> str:
    """What torchrun starts."""
    return f"-m gristmill.trainer run {_asked(about, data, output, 'train')} --require-check"


def _asked(about: Table, data: str, output: str, stage: str) -> str:
    return (
        f"--config {about.run.config} --mixture {about.run.mixture} --data {data} --output {output} "
        f"--price-per-hour {about.price(stage):g}"
    )


# Ray: the data side ---------------------------------------------------------------------------------------------------


def _ray(about: Table) -> dict[str, Any]:
    """A cluster whose head holds no work, and whose workers come and go with it."""
    image = f"{about.run.registry}/gristmill-data"
    start = f"RAY_AUTH_MODE=token {VENV}/ray start"
    types: dict[str, dict[str, Any]] = {
        name: {
            "resources": {"CPU": stage.cpus} | ({"GPU": stage.gpus} if stage.gpus else {}),
            "min_workers": 0,
            "max_workers": stage.nodes,
            "node_config": _instance(stage),
        }
        for name, stage in about.stages.items()
        if stage.instance
    }
    types["grade"]["docker"] = {"worker_image": f"{image}-cuda", "pull_before_run": True}
    head = {"resources": {"CPU": 0}, "node_config": _instance(about.stages["filter"])}
    return {
        "cluster_name": about.run.name,
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {"type": "aws", "region": about.run.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": image,
            "container_name": "gristmill",
            "pull_before_run": True,
            "run_options": ["--entrypoint=''", "--env RAY_AUTH_MODE=token", "--shm-size=16g"],
        },
        "head_node_type": "head",
        "available_node_types": {"head": head, **types},
        "file_mounts": {"/home/gristmill/.ray/auth_token": "~/.ray/auth_token"},
        "head_start_ray_commands": [
            f"{VENV}/ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [f"{VENV}/ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _instance(stage: Stage) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": stage.disk_gb, "VolumeType": "gp3"}}
    return {"InstanceType": stage.instance, "BlockDeviceMappings": [disk]}


# SkyPilot: prepare, then train ----------------------------------------------------------------------------------------

_INSTALL = """\
set -e
[ -x .venv/bin/trainer ] || uv venv --python 3.11 .venv
uv pip install --no-config --python .venv/bin/python -c constraints.txt ./packages/{base,shards,trainer}
"""


def _skypilot(about: Table, run: TrainConfig) -> list[dict[str, Any]]:
    bucket = {"/mnt/gristmill": {"source": about.run.bucket, "mode": "MOUNT_CACHED"}}
    output = f"/mnt/gristmill/runs/{about.run.name}"

    def task(name: str, script: str) -> dict[str, Any]:
        stage = about.stages[name]
        resources: dict[str, Any] = {
            "cpus": f"{stage.cpus}+",
            "memory": f"{stage.memory_gb}+",
            "disk_size": stage.disk_gb,
            "job_recovery": {"max_restarts_on_errors": 3},
        }
        if stage.gpus:
            resources["accelerators"] = [f"{gpu}:{stage.gpus}" for gpu in stage.gpu]
        return {
            "name": name,
            "num_nodes": stage.nodes,
            "workdir": ".",
            "resources": resources,
            "file_mounts": bucket,
            "secrets": {"HF_TOKEN": ""},
            "setup": _INSTALL,
            "run": f"set -e\nexport PATH=$PWD/.venv/bin:$PATH\n{script}\n",
        }

    launch = (
        "mkdir -p ~/shards && cp -rn /mnt/gristmill/shards/. ~/shards/  # read by place: not over a mount\n"
        'torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\\n'
        '  --nproc-per-node "$SKYPILOT_NUM_GPUS_PER_NODE" --master-port 29500 \\\n'
        '  --master-addr "$(echo "$SKYPILOT_NODE_IPS" | head -n 1)" \\\n'
    )
    shards = "/mnt/gristmill/shards"
    return [
        {"name": about.run.name},
        task("prepare", f"{pull(about, run, shards)}\n{check(about, shards, output)}"),
        task("train", f"{launch}  {train(about, '~/shards', output)}"),
    ]


# Slurm ----------------------------------------------------------------------------------------------------------------


def _batch(about: Table, name: str) -> str:
    stage = about.stages[name]
    lines = [
        f"--job-name={about.run.name}-{name}", f"--nodes={stage.nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={stage.cpus}", f"--mem={stage.memory_gb}G", f"--time={stage.hours}:00:00",
        "--output=%x-%j.log",
    ]  # fmt: skip
    if stage.gpus:
        lines += [f"--gpus-per-node={stage.gpus}", "--exclusive", "--requeue", "--open-mode=append"]
    directives = "\n".join(f"#SBATCH {line}" for line in lines)
    return f"#!/usr/bin/env bash\n# {MADE}\n{directives}\nset -euo pipefail\n"


_SHARED = 'shared="${GRISTMILL_SHARED:?a folder that all nodes see}"\nexport PATH="$PWD/.venv/bin:$PATH"\n'


def _output(about: Table) -> str:
    return f'"$shared/runs/{about.run.name}"'


def _slurm_prepare(about: Table, run: TrainConfig) -> str:
    return (
        _batch(about, "prepare")
        + "# Shards and checks, where an hour is cheap. The other script waits for it:\n"
        + "#   job=$(sbatch --parsable places/slurm_prepare.sh)\n"
        + '#   sbatch --dependency=afterok:"$job" places/slurm_train.sh\n'
        + _SHARED
        + f"{pull(about, run, SHARED_SHARDS)}\n{check(about, SHARED_SHARDS, _output(about))}\n"
    )


def _slurm_train(about: Table) -> str:
    asked = train(about, SHARED_SHARDS, _output(about))
    return (
        _batch(about, "train")
        + "# One torchrun on each node. The same script again goes on from the newest checkpoint.\n"
        + _SHARED
        + 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        + 'srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \\\n'
        + '  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \\\n'
        + f"  {asked}\n"
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Scripts as they are read."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _yaml(*documents: dict[str, Any]) -> str:
    dumped = [yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=1000) for one in documents]
    return f"# {MADE}\n" + "---\n".join(dumped)


def main(arguments: list[str]) -> int:
    try:
        made = files(table())
    except GristmillError as error:
        print(f"places/render.py: {error}", file=sys.stderr)
        return error.exit_code
    stale = [name for name, text in made.items() if not (HERE / name).exists() or (HERE / name).read_text() != text]
    if arguments == ["--check"]:
        print(
            "\n".join(f"places/{name}: not up to date; run python places/render.py" for name in stale) or "up to date"
        )
        return 1 if stale else 0
    for name in stale:
        write_text(HERE / name, made[name])
        print(f"places/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
