"""The processes of a run as workers of Ray Train, which starts all of them anew when one is lost: they go on from the
newest checkpoint. The run's folder and the data lie where all nodes see them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from gristmill.base.config import from_mapping, to_mapping
from gristmill.base.errors import DataError, GristmillError, UsageError, WriteError
from gristmill.base.files import read_object, write_json
from gristmill.trainer.config import TrainConfig
from gristmill.trainer.run_folder import pick_device, read_run
from gristmill.trainer.signals import stop_after_step

RESTARTS = 3
REFUSED, STOP = Path("ray") / "refused.json", Path("ray") / "stop.json"
LOOK_SECONDS = 0.5

log = logging.getLogger("gristmill.trainer")


def train_on_ray(config: TrainConfig) -> None:
    """Raises GristmillError where it failed RESTARTS + 1 times; UsageError where Ray Train is not installed."""
    _prepare()
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise UsageError(f"--launcher ray: Ray Train is not installed ({error}); pip install 'ray[train]'") from None
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        # "local": never a cluster that somebody else left running on this machine
        own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = str(error).splitlines()[0]
        raise GristmillError(
            f"--launcher ray: {told}; check RAY_ADDRESS, and RAY_AUTH_TOKEN where it has one"
        ) from error
    refused = config.folder / REFUSED
    refused.unlink(missing_ok=True)
    cuda = pick_device(config.device).type == "cuda"
    trainer: Any = TorchTrainer(
        _work,
        train_loop_config=to_mapping(config),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if cuda else "gloo", timeout_s=int(config.parallel.timeout)
        ),
        scaling_config=ScalingConfig(
            num_workers=config.nproc, use_gpu=cuda, resources_per_worker={"CPU": config.threads, "GPU": int(cuda)}
        ),
        run_config=RunConfig(
            name=config.folder.name,
            storage_path=str((config.folder / "ray").absolute()),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    stop = config.folder / STOP
    stop.unlink(missing_ok=True)
    try:
        signalled = _fit(trainer, stop)
    except TrainingFailedError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise GristmillError(f"--launcher ray: {lines[-1] if lines else 'training failed'}") from error
    finally:
        ray.shutdown()
    if refused.exists():
        found = read_object(refused, kind=str, told=str)
        raise (UsageError if found["kind"] == "UsageError" else DataError)(found["told"])
    if signalled and (run := read_run(config.folder))["status"] != "done":
        log.info("stopped after step %s; trainer resume %s goes on", f"{run['step']:,}", config.folder)
        raise KeyboardInterrupt if signalled == signal.SIGINT else SystemExit(128 + signalled)


def _prepare() -> None:
    """Ray reads these when it is imported. The ports of a cluster of our own listen on all interfaces, whatever Ray is
    told; a token of its own keeps others out."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # its 60 are few on a busy machine
    if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


def _fit(trainer: Any, stop: Path) -> int:
    """To the end, in a thread: in the main one Ray Train takes Ctrl-C for itself, and ends the workers at once. Answers
    the signal that came, which the workers are told of by the file `stop`; 0: none."""
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def fit() -> None:
        try:
            trainer.fit()
            ended.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            ended.put(error)

    threading.Thread(target=fit, name="ray train", daemon=True).start()
    with stop_after_step() as stopped:
        while True:
            try:
                error = ended.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if stopped and not stop.exists():
                    try:
                        write_json(stop, {"signal": stopped[0]})
                    except WriteError as failed:
                        log.warning("%s; it is tried again, since the workers are told to stop by it", failed)
                continue
            if error is not None:
                raise error
            return stopped[0] if stopped else 0


def _work(values: dict[str, Any]) -> None:
    """What no new start mends is put down, and told by the command, instead of being raised, as Ray would try again."""
    from gristmill.trainer import loop

    config = from_mapping(TrainConfig, values, "--launcher ray")
    told: list[int] = []
    over = threading.Event()
    threading.Thread(target=_listen, args=(config.folder / STOP, told, over), daemon=True).start()
    try:
        loop.train(config, told)
    except (UsageError, DataError) as error:
        write_json(config.folder / REFUSED, {"kind": type(error).__name__, "told": str(error)})
    except (KeyboardInterrupt, SystemExit):  # any of them was told to stop, and all have saved
        pass
    finally:
        over.set()


def _listen(stop: Path, told: list[int], over: threading.Event) -> None:
    while not over.wait(LOOK_SECONDS):
        with contextlib.suppress(OSError, DataError):  # of a file system that stumbles; the next look may see it
            if stop.exists():
                return told.append(read_object(stop, signal=int)["signal"])
