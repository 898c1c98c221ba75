"""Places to run: their files say what resources.toml says, are well formed, and call commands with flags that exist.

hadolint, SkyPilot and Modal look at them too where ./dev test --places has installed them; nothing is sent anywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from gristmill.base import cli
from gristmill.base.config import load
from gristmill.base.errors import UsageError
from gristmill.trainer.check import CheckConfig
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.model.config import resolve
from gristmill.trainer.model.counts import count

ROOT = Path(__file__).parents[2]
PLACES = ROOT / "places"
TOOLS = ROOT / ".cache" / "places" / "bin"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
RUN_FILES = sorted((ROOT / "pipelines" / "training").glob("*.toml"))


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # its dataclasses look themselves up there
    spec.loader.exec_module(found)
    return found


render = module(PLACES / "render.py")
TABLE = render.table()


def text(name: str) -> str:
    return (PLACES / name).read_text(encoding="utf-8")


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text("skypilot.yaml")))


# The table ------------------------------------------------------------------------------------------------------------


def test_made_files_are_up_to_date():
    assert {name: text(name) for name in render.files(TABLE)} == render.files(TABLE)


def test_a_change_of_the_table_reaches_every_file(tmp_path):
    changed = (
        (PLACES / "resources.toml").read_text().replace("nodes = 2\n", "nodes = 3\n").replace("H100 = 3.", "H100 = 13.")
    )
    changed = changed.replace('instance = "m7i.4xlarge"', 'instance = "m7i.8xlarge"')
    (tmp_path / "resources.toml").write_text(changed)
    made = render.files(render.table(tmp_path / "resources.toml"))
    assert "num_nodes: 3" in made["skypilot.yaml"] and "#SBATCH --nodes=3" in made["slurm_train.sh"]
    assert "m7i.8xlarge" in made["ray_cluster.yaml"]
    assert f"--price-per-hour {3 * 8 * 13.9492:g}" in made["slurm_train.sh"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("cpus = 64", "cpu = 64", "cpu"), ("H100 = 3.9492", "", "H100"), ("gpus = 8", 'gpus = "many"', "gpus")],
)
def test_a_wrong_table_is_refused_by_key(tmp_path, old, new, told):
    (tmp_path / "resources.toml").write_text((PLACES / "resources.toml").read_text().replace(old, new))
    with pytest.raises(UsageError, match=told):
        render.files(render.table(tmp_path / "resources.toml"))


# What the files do ----------------------------------------------------------------------------------------------------


def commands(script: str) -> list[list[str]]:
    """Commands of ours, as words."""
    lines = [line for line in script.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in lines:
        if any(f"{word} " in line for word in ("shards pull", "trainer check", "gristmill.trainer run")):
            words = shlex.split(line)
            found.append(words[next(at for at, word in enumerate(words) if word in ("shards", "trainer", "-m")) :])
    return found


SCRIPTS = {
    "slurm": text("slurm_prepare.sh") + text("slurm_train.sh"),
    "skypilot": "\n".join(document.get("run", "") for document in documents()),
}


@pytest.mark.parametrize("place", SCRIPTS)
def test_a_place_pulls_checks_and_trains_one_run(place, monkeypatch):
    """With flags that exist, of a configuration that loads; the expensive part wants the check."""
    monkeypatch.chdir(ROOT)
    pull, check, train = commands(SCRIPTS[place])
    assert pull[:2] == ["shards", "pull"] and check[:2] == ["trainer", "check"]
    assert train[:3] == ["-m", "gristmill.trainer", "run"]
    assert "--require-check" in train
    checked = cli.parse_config(CheckConfig, check[2:], "trainer check", "").run
    trained = parsed(train[3:])
    alike = {"data": "", "threads": 1, "price_per_hour": 0.0}  # where it lies, and what the machine is
    same = [dataclasses.replace(one, **alike, output=Path(one.output).name) for one in (checked, trained)]
    assert same[0] == same[1]
    assert trained.price_per_hour > 100 * checked.price_per_hour > 0
    flags = dict(zip(pull[4::2], pull[5::2]))
    assert int(flags["--tokens"]) == checked.trained_tokens and int(flags["--batch-tokens"]) == checked.batch.tokens


def parsed(words: list[str]) -> TrainConfig:
    return dataclasses.replace(cli.parse_config(TrainConfig, words, "trainer run", ""), require_check=False)


@pytest.mark.parametrize("script", ["slurm_prepare.sh", "slurm_train.sh", "setup", "run"])
def test_scripts_are_bash(script):
    parts = [text(script)] if script.endswith(".sh") else [one[script] for one in documents() if script in one]
    for part in parts:
        done = subprocess.run(["bash", "-n"], input=part, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_slurm_is_told_before_the_first_command():
    for name in ("slurm_prepare.sh", "slurm_train.sh"):
        lines = text(name).splitlines()
        last = max(at for at, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[:last])


def test_skypilot_s_documents_are_a_pipeline_of_two():
    name, prepare, train = documents()
    assert list(name) == ["name"] and (prepare["name"], train["name"]) == ("prepare", "train")
    known = {"name", "num_nodes", "workdir", "resources", "file_mounts", "secrets", "setup", "run"}
    assert all(set(one) <= known for one in (prepare, train))
    assert "accelerators" not in prepare["resources"] and train["resources"]["accelerators"] == ["H100:8", "H200:8"]
    assert prepare["file_mounts"] == train["file_mounts"] and "HF_TOKEN" not in json.dumps(prepare.get("envs", {}))


def test_the_ray_cluster_fits_ray_s_own_schema():
    import jsonschema

    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(text("ray_cluster.yaml"))
    jsonschema.validate(cluster, schema)
    starts = cluster["head_start_ray_commands"][1:] + cluster["worker_start_ray_commands"][1:]
    assert all("RAY_AUTH_MODE=token" in start for start in starts)  # else whoever reaches a port runs code
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0


# Modal ----------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for the package modal: notes how functions are declared, and lets itself be called in any way."""

    def __init__(self) -> None:
        self.functions: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self

    def function(self, **named: Any) -> Any:
        def keep(function: Any) -> Any:
            self.functions[function.__name__] = named | {"body": function}
            return function

        return keep

    def local_entrypoint(self) -> Any:
        return lambda function: function


@pytest.fixture
def modal_app(monkeypatch) -> tuple[Any, Recorder]:
    recorder = Recorder()
    stub = types.ModuleType("modal")
    for name in ("App", "Volume", "Image", "Secret"):
        setattr(stub, name, recorder)
    stub.Retries = lambda **named: named  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "modal", stub)
    return module(PLACES / "modal_app.py"), recorder


def test_modal_prepares_without_a_gpu_and_trains_with_those_of_the_table(modal_app):
    _app, recorder = modal_app
    prepare, train = recorder.functions["prepare"], recorder.functions["train"]
    assert "gpu" not in prepare and train["gpu"] == ["H100:8", "H200:8"]
    assert train["retries"]["max_retries"] == 10 and train["single_use_containers"]
    assert train["timeout"] == 24 * 3600 and prepare["cpu"] == TABLE.stages["prepare"].cpus


def test_what_modal_runs_is_one_run_that_was_checked(modal_app, monkeypatch):
    app, _recorder = modal_app
    ran: list[list[str]] = []
    monkeypatch.setattr(app, "_run", ran.append)
    monkeypatch.setattr(app, "INSIDE", ROOT)
    monkeypatch.setattr(app.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout="NVIDIA H200\n" * 8))
    app.prepare()
    app.train()
    pull, check, train = ran
    config = load(TrainConfig, ROOT / TABLE.run.config)
    flags = dict(zip(pull[4::2], pull[5::2]))
    assert int(flags["--tokens"]) == config.tokens and int(flags["--batch-tokens"]) == config.batch.tokens
    checked = cli.parse_config(CheckConfig, check[2:], "trainer check", "").run
    at = train.index("run")
    assert train[:at] == ["torchrun", "--standalone", "--nproc-per-node", "8", "-m", "gristmill.trainer"]
    trained = parsed(train[at + 1 :])
    assert "--require-check" in train and trained.price_per_hour == pytest.approx(8 * TABLE.prices["H200"])
    assert dataclasses.replace(trained, price_per_hour=0.0, threads=1) == dataclasses.replace(
        checked, price_per_hour=0.0, threads=1
    )


# Run files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_run_file_loads_and_its_model_can_be_made(path):
    config = load(TrainConfig, path)
    assert resolve(config.model, 16_384).moe_layers and config.steps > 0


def test_the_walkthrough_s_sixteen_gpus():
    config = load(TrainConfig, ROOT / "pipelines" / "training" / "sixteen_gpus.toml")
    model = resolve(config.model, 50_304)
    assert (model.layers, model.width, model.heads, model.experts, model.top_k) == (32, 4096, 32, 64, 2)
    assert (model.capacity, model.balance_loss, model.z_loss) == (1.25, 0.01, 0.001)
    assert len(model.moe_layers) == 16  # every second block
    assert config.batch.sequences == 4 * 16 and config.batch.micro == 4 and config.batch.sequence == 2048
    assert (config.parallel.ep, config.optimizer.learning_rate, config.precision) == (8, 1e-4, "bf16")
    said = re.findall(r"there are ([\d.]+) B, ([\d.]+) B of them active", " ".join(
        (ROOT / "pipelines" / "training" / "sixteen_gpus.toml").read_text().replace("#", "").split()
    ))  # fmt: skip
    counts = count(model)
    assert said == [(f"{counts.total / 1e9:.1f}", f"{counts.active / 1e9:.1f}")]
    assert config.tokens >= 20 * counts.active


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_is_pinned_and_runs_without_root(path):
    content = path.read_text()
    lines = [line for line in content.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    users = [at for at, line in enumerate(lines) if line.startswith("USER")]
    assert users and lines[users[-1]] != "USER root"
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in lines[users[-1] :])
    assert all("--no-install-recommends" in line for line in lines if "apt-get install" in line)
    assert not any(line.startswith("ADD") or "curl" in line for line in lines)
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])


# The pages -----------------------------------------------------------------------------------------------------------


def test_the_page_on_gpus_names_files_and_tests_that_exist():
    page = (ROOT / "docs" / "gpu.md").read_text()
    package = ROOT / "packages" / "trainer" / "src" / "gristmill" / "trainer"
    for name in re.findall(r"`((?:model|watch|optim|checkpoints|parallel)/[\w/.]*)`", page):
        assert (package / name).exists(), name
    told = re.findall(r"`(test_\w+\.py) -k (\w+)`", page)
    assert len(told) > 10
    for file, word in told:
        names = re.findall(r"def (test_\w+)", (ROOT / "tests" / "gpu" / file).read_text())
        assert any(word in name for name in names), f"{file} -k {word}"


def test_the_page_on_places_names_files_that_exist():
    page = (ROOT / "docs" / "places.md").read_text()
    for name in re.findall(r"(?:places|docker)/[\w-]+\.\w+", page):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+)\.toml` \(", page):
        assert ROOT / "pipelines" / "training" / f"{name}.toml" in RUN_FILES


# The tools themselves -------------------------------------------------------------------------------------------------


def tool(name: str) -> Path:
    path = TOOLS / name
    if not path.exists():
        pytest.skip("./dev test --places installs what is needed")
    return path


def said_by(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_hadolint_has_nothing_to_say():
    said_by(tool("hadolint"), *DOCKERFILES)


def test_skypilot_reads_its_file():
    code = """
import sys
from sky.utils import dag_utils
dag = dag_utils.load_chain_dag_from_yaml(sys.argv[1])
print([(task.name, task.num_nodes, sorted(str(r.accelerators) for r in task.resources)) for task in dag.tasks])
"""
    said = said_by(tool("sky").with_name("python"), "-c", code, PLACES / "skypilot.yaml")
    assert "'prepare', 1" in said and "'train', 2" in said and "'H100': 8" in said


def test_modal_takes_its_file():
    said_by(tool("modal").with_name("python"), PLACES / "modal_app.py")


def test_the_table_is_toml_that_modal_can_read():
    content = tomllib.loads((PLACES / "resources.toml").read_text())
    assert {"run", "prices", "stages"} == set(content)
