"""Rules of the house that no linter knows: quick help, no pickle, no remote code, nothing that names a machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("packages/*/src/**", "pipelines", "benchmarks", "places")
SOURCES = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.py"))
COMMANDS = ("datapipe", "scorer", "shards", "trainer", "report")
SUBCOMMANDS = {"trainer": "run", "scorer": "train-heads", "datapipe": "explain", "shards": "verify", "report": "export"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("deep", [False, True], ids=["overview", "subcommand"])
def test_help_is_quick_torch_and_ray_stay_asleep(command: str, deep: bool) -> None:
    arguments = [SUBCOMMANDS[command], "--help"] if deep else ["--help"]
    code = f"""
import sys
sys.argv = ["{command}", *{arguments!r}]
from gristmill.{command}.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "ray", "transformers", "vllm", "numba", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


def test_a_pipeline_is_described_without_models_and_pandas() -> None:
    """A run with nothing to do takes as long as its imports."""
    code = """
import sys
sys.path.insert(0, "pipelines")
import dag
heavy = {"pandas", "tldextract", "torch", "ray", "transformers", "vllm"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_console_scripts_are_ours(command: str) -> None:
    import importlib.metadata

    (script,) = importlib.metadata.entry_points(group="console_scripts", name=command)
    assert script.value == f"gristmill.{command}.cli:main"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_and_no_remote_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & {
                "pickle",
                "cloudpickle",
                "dill",
                "joblib",
                "shelve",
            }
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "eval", "exec"), f"{path}:{node.lineno}"
            for keyword in node.keywords:
                risky = keyword.arg in ("trust_remote_code", "allow_pickle", "shell")
                assert not (risky and ast.unparse(keyword.value) != "False"), f"{path}:{node.lineno}"


def test_files_stay_short_enough_to_read() -> None:
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 500}
    assert not long
