"""The Ray cluster that work runs on: start or join it, what of it is watched, and what it can carry at all.

Workers of an embedded cluster have this process's environment. Those of another cluster have their node's, also for
secrets (HF_TOKEN, AWS_...): nothing is put into a runtime environment, which everyone who may see the jobs can read.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence

from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.watch import Service

HEAD_REFUSALS = 30
"""For so many seconds the head of a cluster may be away: where it has a store of its own (GCS fault tolerance), it can
be started again. After 60 seconds Ray would end this process (its gcs_rpc_server_reconnect_timeout_s)."""
REACH_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20  # Ray takes 75 MiB at least


def connect(workers: int) -> bool:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or start one for this process alone.

    The embedded cluster's ports listen on all interfaces, whatever Ray is told; a token of its own keeps others out.
    Ray reads these variables when it is imported. Returns whether this call connected. Raises GristmillError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray's own handler of SIGTERM aborts the process three seconds later, however it is ending by then.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    address = _address()
    if not address and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray

    if ray.is_initialized():
        return False
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            ray.init(logging_level=logging.ERROR)
        else:
            # Idle processes up to the soft limit are kept: the next stage finds them warm. The usual limit is one per
            # processor, so that actors (a process each) would have Ray end the processes of tasks that come again.
            # "local": never a cluster that somebody else left running on this machine
            ray.init(
                "local", num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR, _system_config={"num_workers_soft_limit": 2 * workers + 2},
            )  # fmt: skip
    except Exception as error:
        why = str(error).splitlines()[0]
        if address:
            raise GristmillError(f"{why}: check RAY_ADDRESS, and RAY_AUTH_TOKEN where the cluster has one") from error
        raise GristmillError(f"Ray cannot start on this machine: {why}; --workers 0 does without it") from error
    return True


def _address() -> str:
    """Of the cluster to join; empty where one is to be started. Raises GristmillError where nothing answers there: Ray
    would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise UsageError(
            f"RAY_ADDRESS={address}: Ray Client is not supported; submit the command (ray job submit), or run it on a "
            "node of the cluster with RAY_ADDRESS=HOST:PORT"
        )
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise GristmillError(
                f"RAY_ADDRESS={address}: nothing answers there ({error}); name the head of a running cluster, or unset "
                "it to run on this machine alone"
            ) from None
    return "" if address == "local" else address


def services() -> list[Service]:
    """What this process cannot go on without: the cluster's head, and Ray's own process (raylet) on this machine."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    refusals = HEAD_REFUSALS if os.environ.get("RAY_ADDRESS", "local") != "local" else 1
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        Service("Ray on this machine", here["NodeManagerAddress"], here["NodeManagerPort"], refusals=1),
        Service("the head of the Ray cluster", host.strip("[]"), int(port), refusals),
    ]


def check(resources: Resources) -> None:
    """Raises GristmillError where no node that lives is large enough: Ray would wait for ever, without a word."""
    import ray

    refuse_infeasible(resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def refuse_infeasible(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises GristmillError where none of the nodes (Ray's names and amounts) can give what one worker needs.

    A cluster that grows on demand must have a node of each kind, or Ray is never asked for one.
    """
    units = {"CPU": 1, "GPU": 1, "memory": 2**30}
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_gb}
    wanted = {kind: amount for kind, amount in wanted.items() if amount}
    given = [{kind: node.get(kind, 0) / units[kind] for kind in wanted} for node in nodes]
    if any(all(node[kind] >= wanted[kind] for kind in wanted) for node in given):
        return
    most = {kind: max((node[kind] for node in given), default=0) for kind in wanted}
    short = [kind for kind in wanted if most[kind] < wanted[kind]]
    told = ", ".join(f"{kind} {wanted[kind]:g} (largest node has {most[kind]:g})" for kind in short or wanted)
    together = "" if short else " on the same node"
    raise GristmillError(f"no Ray node can run a worker that needs {told}{together}: lower it, or add a node")
