"""Whole runs on Ray, in processes of their own: on a cluster of several nodes, as a submitted job, and where a part of
Ray dies or memory runs out under them."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import psutil
import pytest
from tests.support.ray_cluster import RayCluster
from tests.support.scripts import SCRIPTS, environment, start

from gristmill.base.files import sha256_folder

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from gristmill.base import cli
from gristmill.datapipe.ingest.ingest import Ingest, IngestConfig
from gristmill.datapipe.workflow.runner import Runner
from beside import Slow

def main():
    text, output, workers = sys.argv[1:4]
    ingest = Ingest((text,), IngestConfig(rows_per_partition=1))
    Runner(Path(output), ingest, [Slow()], workers=int(workers)).run()

if __name__ == "__main__":
    sys.exit(cli.guarded("program", main))
"""
BESIDE = '''
import os, time
import pyarrow as pa
import ray
from gristmill.datapipe.workflow.stage import Stage

class Slow(Stage):
    """Keeps a second, and notes in beside.log where and from when to when."""
    name, folder, config = "slow", "annotations/slow", None

    def annotate(self, table, previous):
        begin = time.time()
        time.sleep(1)
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        with open(os.path.join(table["text"][0].as_py(), "beside.log"), "a") as file:
            file.write(f"{node} {begin} {time.time()}\\n")
        return pa.table({"n": [len(table)]})
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a program, a module of its own beside it, and 14 documents for it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": str(tmp_path)}) + "\n")
    lines = "".join(json.dumps({"text": str(tmp_path), "id": str(number)}) + "\n" for number in range(14))
    (tmp_path / "in.jsonl").write_text(lines)
    return tmp_path


def begin(project: Path, workers: int, first: str = "pass", **variables: str) -> subprocess.Popen[str]:
    """`first`: what is done in the process before the program runs."""
    code = f"import sys, program; {first}; sys.exit(program.cli.guarded('program', program.main))"
    arguments = [str(project / "in.jsonl"), str(project / "run"), str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=project, env=environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_pieces(project: Path, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((project / "run" / "annotations" / "slow").glob("part-*"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
        time.sleep(0.1)


def program_of(process: psutil.Process) -> str:
    try:
        return Path((process.cmdline() or [""])[0]).name
    except psutil.Error:
        return ""


def one(
    family: psutil.Process, program: str, but: Callable[[psutil.Process], bool] = lambda _: False
) -> psutil.Process:
    (found,) = [p for p in family.children(recursive=True) if program_of(p) == program and not but(p)]
    return found


def status(project: Path) -> tuple[str, dict[str, object]]:
    record = json.loads((project / "run" / "run.json").read_text())
    return record["status"], next(node for node in record["nodes"] if node["name"] == "slow")


def looks(project: Path) -> list[tuple[str, float, float]]:
    rows = [line.split() for line in (project / "beside.log").read_text().splitlines()]
    return [(node, float(begin), float(end)) for node, begin, end in rows]


# A cluster of several nodes -------------------------------------------------------------------------------------------


def test_a_cluster_gives_the_same_bytes(cluster: RayCluster, tmp_path: Path) -> None:
    corpus = tmp_path / "web.jsonl"
    with corpus.open("w") as file:
        for name, text in list(topics.items())[:40]:
            file.write(json.dumps({"id": name, "text": text}) + "\n")
    for workers, variables in ((0, {}), (2, cluster.variables)):
        command = ["--input", corpus, "--output", tmp_path / str(workers), "--workers", workers]
        process = start("filter_olmo3.py", *command, "--ingest.rows-per-partition", 10, **variables)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
    for output in ("documents", "annotations", "selection", "shards"):
        assert sha256_folder(tmp_path / "0" / output) == sha256_folder(tmp_path / "2" / output), output


def test_pieces_are_spread_and_no_more_are_under_way_than_workers(cluster: RayCluster, project: Path) -> None:
    for workers, nodes in ((1, 1), (2, 2)):
        process = begin(project, workers, **cluster.variables)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-2000:]
        found = looks(project)
        most = max(sum(begin < moment <= end for _, begin, end in found) for _, _, moment in found)
        assert len(found) == 14 and most == workers, found
        assert min(Counter(node for node, _, _ in found).values()) >= 3 or nodes == 1
        (project / "beside.log").unlink()
        (project / "run").rename(project / f"run{workers}")


def test_a_lost_node_costs_only_what_was_under_way(cluster: RayCluster, project: Path) -> None:
    process = begin(project, 2, **cluster.variables)
    wait_for_pieces(project, process, 3)
    cluster.lose_node(cluster.raylets[0])
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    assert status(project)[0] == "done" and len(looks(project)) <= 14 + 2
    assert 1 <= error.count("; it is tried again") <= 2


def test_where_the_head_dies_the_run_ends_at_once(project: Path) -> None:
    with RayCluster() as cluster:
        process = begin(project, 2, **cluster.variables)
        wait_for_pieces(project, process, 3)
        one(cluster.process, "gcs_server").kill()
        one(cluster.process, "raylet", but=lambda raylet: raylet.pid in cluster.raylets).kill()
        started = time.monotonic()
        _, error = process.communicate(timeout=60)
        assert time.monotonic() - started < 45
    told = error.strip().splitlines()[-1]
    assert process.returncode == 1 and told.startswith("program: Ray on this machine (") and "Traceback" not in error
    assert told.endswith(
        "died, or cannot be reached any more; what is done is kept, and the same command goes on from there"
    )
    assert status(project)[0] == "failed"


def test_where_no_node_is_left_that_can_do_it_the_run_ends(project: Path) -> None:
    with RayCluster() as cluster:
        sooner = "from gristmill.datapipe.workflow import on_ray; on_ray.QUIET_SECONDS = 3"
        process = begin(project, 2, sooner, **cluster.variables)
        wait_for_pieces(project, process, 3)
        for raylet in cluster.raylets:
            psutil.Process(raylet).kill()
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in error
    assert error.strip().endswith(
        "no Ray node can run a worker that needs CPU 1 (largest node has 0): lower it, or add a node"
    )


def test_a_submitted_job_finds_the_modules_beside_its_script(project: Path) -> None:
    """The workers of a job with a working folder do not look there for modules, unless they are told."""
    ports = [_free_port() for _ in range(3)]
    variables = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    head = [str(SCRIPTS / "ray"), "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"]
    head += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={ports[0]}"]
    head += [f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
    (project / "code").mkdir()
    for name in ("program.py", "beside.py"):
        (project / name).rename(project / "code" / name)
    submit = [str(SCRIPTS / "ray"), "job", "submit", "--working-dir", str(project), "--", sys.executable]
    submit += ["code/program.py", str(project / "in.jsonl"), str(project / "run"), "2"]
    with (project.parent / "head.log").open("w") as log:
        process = psutil.Popen(head, env=variables, stdout=log, stderr=log)
        try:
            variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports[1]}"
            deadline = time.monotonic() + 120
            while True:  # the job server answers some seconds after the cluster does
                job = subprocess.run(submit, env=variables, capture_output=True, text=True, check=False, timeout=300)
                waits = (
                    "Failed to connect" in job.stderr + job.stdout or "No available agent" in job.stderr + job.stdout
                )
                if job.returncode == 0 or not waits or time.monotonic() > deadline:
                    break
                time.sleep(2)
        finally:
            family = [*process.children(recursive=True), process]
            process.terminate()
            for left in psutil.wait_procs(family, timeout=15)[1]:
                left.kill()
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert status(project)[0] == "done" and len(looks(project)) == 14


# An embedded cluster --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_where_a_part_of_ray_is_killed_the_run_ends_and_the_next_goes_on(project: Path, victim: str) -> None:
    process = begin(project, 2)
    wait_for_pieces(project, process, 3)
    one(psutil.Process(process.pid), victim).kill()
    started = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - started < 45
    told = error.strip().splitlines()[-1]
    assert told.startswith("program: ") and "died, or cannot be reached any more" in told and "Traceback" not in error
    assert told.endswith("; what is done is kept, and the same command goes on from there")
    recorded, slow = status(project)
    assert recorded == slow["status"] == "failed" and str(slow["error"]) in told
    process = begin(project, 2)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    recorded, slow = status(project)
    assert recorded == "done" and int(str(slow["partitions_cached"])) >= 3


def test_nothing_of_ray_outlives_a_driver_that_is_killed(project: Path) -> None:
    process = begin(project, 2)
    wait_for_pieces(project, process, 1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {program_of(child) for child in family} and len(family) > 4
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = psutil.wait_procs(family, timeout=15)[1]
    assert {program_of(child) for child in left} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    assert not psutil.wait_procs(left, timeout=90)[1]  # they try for a minute to tell the cluster that it is gone


MEMORY = """
import builtins, json, os, sys, time
from gristmill.datapipe.workflow import executor
from gristmill.datapipe.workflow.stage import Resources

class Job:
    name = "job"
    def __init__(self, greedy, stateful):
        self.greedy, self.stateful = greedy, stateful
    def setup(self):
        pass
    def __call__(self, item):
        held = vars(builtins).setdefault("held", [])  # of the process
        held.append(bytearray(b"x") * 300_000_000)
        while item == "3" and self.greedy and len(held) < 40:
            held.append(bytearray(b"x") * 300_000_000)
            time.sleep(0.05)
        return os.getpid()

if __name__ == "__main__":
    ray = executor.start(2, lambda text: print(text, file=sys.stderr))
    job = Job(sys.argv[1] == "greedy", sys.argv[2] == "actors")
    for outcome in ray.map(job, [str(number) for number in range(16)], Resources()):
        print(json.dumps([outcome.item, outcome.value, outcome.error]))
    ray.close()
"""


@pytest.mark.parametrize("workers", ["tasks", "actors"])
@pytest.mark.parametrize("fault", ["leak", "greedy"])
def test_where_memory_runs_out_a_fresh_process_tries_again(tmp_path: Path, fault: str, workers: str) -> None:
    """Ray may use 2.4 GB more than is in use now: less than 16 pieces leak together, more than two take."""
    (tmp_path / "memory.py").write_text(MEMORY)
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 2.4e9) / memory.total
    assert threshold < 0.95, "this machine has too little memory left for the test"
    variables = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(
        [sys.executable, tmp_path / "memory.py", fault, workers],
        env=environment(**variables), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {item: (process, error) for item, process, error in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 16 and "its machine ran out of memory (" in done.stderr
    failed = [item for item, (_, error) in found.items() if error]
    assert failed == (["3"] if fault == "greedy" else []), found
    if failed:
        told = found["3"][1]
        assert (
            told.startswith("tried 3 times: its machine ran out of memory (") and "and Ray ended its worker (" in told
        )
        assert "; give it more: fewer --workers, smaller --ingest.rows-per-partition, or memory_gb" in told


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
