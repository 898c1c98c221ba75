"""A Ray cluster of several nodes on this machine, in a process of its own, whose nodes a test can take away.

    python tests/support/ray_cluster.py      then a command per line on stdin: add, remove RAYLET_PID, quit

Each command is answered by one line of JSON on stdout. Pytest itself never imports Ray for this: Ray reads its
settings (the access token above all) when it is imported, and there can be one Ray in a process.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import psutil
from tests.support.scripts import ROOT, environment

PIPELINES = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "pipelines"), os.environ.get("PYTHONPATH")]))
"""PYTHONPATH with which Ray's workers find the nodes of the pipelines."""
NODES = 2
"""Besides the head, which holds no work: what a user's head node should do too."""


class RayCluster:
    """`with RayCluster() as cluster:` a head and NODES nodes of one processor each; cluster.variables reach it."""

    def __enter__(self) -> RayCluster:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment(PYTHONPATH=PIPELINES, **token),
        )  # fmt: skip
        self.process = psutil.Process(self._process.pid)
        self.variables = {**token, "RAY_ADDRESS": self._answer()["address"]}
        self.raylets = [self.add() for _ in range(NODES)]
        """Of the nodes that work is done on, by process id."""
        return self

    def __exit__(self, *error: object) -> None:
        family = [*self.process.children(recursive=True), self.process]
        if self._process.poll() is None:
            self._ask("quit")
        psutil.wait_procs(family, timeout=5)
        for process in family:
            if process.is_running():
                process.kill()
        self._process.communicate()

    def add(self) -> int:
        """One more node."""
        return self._ask("add")["raylet"]

    def lose_raylet(self, raylet: int) -> None:
        """SIGKILL to a node's raylet alone: what it started finds out by itself. Another node takes its place."""
        psutil.Process(raylet).kill()
        self._replace(raylet)

    def lose_node(self, raylet: int) -> None:
        """Everything on a node gone at once, as when a machine loses power. Another node takes its place."""
        parent = psutil.Process(raylet)
        for process in (parent, *parent.children(recursive=True)):
            if process.is_running():
                process.kill()
        self._replace(raylet)

    def _replace(self, raylet: int) -> None:
        self._ask(f"remove {raylet}")
        self.raylets[self.raylets.index(raylet)] = self.add()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"the cluster's process ended with {self._process.wait()}"
        return json.loads(line)


def serve() -> None:
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it, and their names must be short
    common = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **common})
    answer(address=cluster.address)
    nodes: dict[int, Any] = {}
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "add":
            node = cluster.add_node(num_cpus=1, **common)
            raylet = node.all_processes["raylet"][0].process.pid
            nodes[raylet] = node
            answer(raylet=raylet)
        elif command == "remove":
            cluster.remove_node(nodes.pop(int(arguments[0])), allow_graceful=False)
            answer()
        else:
            break
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    answer()


if __name__ == "__main__":
    serve()
