"""The executor on an embedded Ray cluster: what becomes of a piece whose worker dies, hangs or has a bug; who gets in,
and what gets out."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.scripts import environment

from gristmill.base.durations import seconds_of
from gristmill.base.errors import GristmillError, UsageError
from gristmill.datapipe.workflow import cluster, executor, watch
from gristmill.datapipe.workflow.cluster import refuse_infeasible
from gristmill.datapipe.workflow.crew import Task
from gristmill.datapipe.workflow.executor import Executor, InProcess
from gristmill.datapipe.workflow.options import RunOptions
from gristmill.datapipe.workflow.stage import Resources
from gristmill.datapipe.workflow.watch import Limit
from gristmill.datapipe.workflow.worker import Outcome

SECRET = "hf_not_a_real_token"
FEW = Resources(cpus=0.5)
LIMIT = 10.0
"""Seconds, of which a worker may need some to import what a job is made of."""
told: list[str] = []


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        ray = executor.start(2, told.append)
    yield ray
    ray.close()


@dataclass
class Act:
    """Does one of the things below with each item, and counts in a file how often it was asked to."""

    what: Callable[[str, int], Any]
    folder: Path
    stateful: bool = False
    at_setup: bool = False
    name: str = "act"

    def setup(self) -> None:
        if self.at_setup:
            self._act("setup")

    def __call__(self, item: str) -> Any:
        return self._act(item)

    def _act(self, item: str) -> Any:
        with (self.folder / f"{item}.tries").open("a+") as file:
            file.write("x")
            file.flush()
            tries = file.tell()
        return self.what(item, tries)

    def tries(self, item: str) -> int:
        return (self.folder / f"{item}.tries").stat().st_size


def die_at_first(item: str, tries: int) -> str:
    if item == "b" and tries < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.upper()


def die_always(item: str, tries: int) -> str:
    if item == "b":
        os._exit(1)
    return item.upper()


def hang(item: str, tries: int) -> str:
    if item in ("python", "setup"):
        time.sleep(300)
    if item == "c":
        ctypes.PyDLL(None).sleep(300)  # unlike CDLL it keeps the interpreter's lock
    return item.upper()


def take_a_while(item: str, tries: int) -> str:
    time.sleep(0.4 * LIMIT)
    return item.upper()


def upper(item: str, tries: int) -> str:
    return item.upper()


def look_around(item: str, tries: int) -> tuple[dict[str, Any], str | None]:
    import ray

    return dict(ray.get_runtime_context().runtime_env), os.environ.get("HF_TOKEN")


def by_item(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    return {outcome.item: outcome for outcome in outcomes}


# Workers that die -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [False, True])
def test_a_piece_whose_worker_dies_is_tried_again_a_few_times(on_ray: Executor, tmp_path: Path, stateful: bool) -> None:
    job = Act(die_at_first, tmp_path, stateful)
    told.clear()
    found = by_item(on_ray.map(job, "abcde", FEW))
    assert {outcome.value for outcome in found.values()} == set("ABCDE") and job.tries("b") == 3
    assert len(told) == 2 and told[0].startswith("act, b: its worker died (") and told[0].endswith("it is tried again")
    (tmp_path / "b.tries").unlink()
    found = by_item(on_ray.map(Act(die_always, tmp_path, stateful), "abcde", FEW))
    assert [item for item, outcome in found.items() if outcome.error] == ["b"] and job.tries("b") == 3
    assert str(found["b"].error).startswith("tried 3 times: its worker died (")


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("bug", [ValueError("a\nbug"), SystemExit(3), GristmillError("bad row")])
def test_bad_code_is_not_tried_again(on_ray: Executor, tmp_path: Path, stateful: bool, bug: BaseException) -> None:
    def fail(item: str, tries: int) -> None:
        raise bug

    for where in (on_ray, InProcess()):
        job = Act(fail, tmp_path, stateful)
        (outcome,) = where.map(job, ["b"], FEW)
        told = "bad row" if isinstance(bug, GristmillError) else f"{type(bug).__name__}: {str(bug).splitlines()[0]}"
        assert outcome.error == told and job.tries("b") == 1
        assert ("in fail" in outcome.detail) != isinstance(bug, GristmillError)
        (tmp_path / "b.tries").unlink()


@pytest.mark.parametrize("stateful", [False, True])
def test_workers_import_what_their_driver_can_and_the_rest_is_an_error(
    on_ray: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stateful: bool
) -> None:
    name = f"beside_the_script_{stateful}".lower()
    (tmp_path / f"{name}.py").write_text("def act(item, tries):\n    return item\n")
    monkeypatch.syspath_prepend(tmp_path)
    act = importlib.import_module(name).act
    (outcome,) = on_ray.map(Act(act, tmp_path, stateful), ["a"], FEW)
    assert outcome.value == "a"
    monkeypatch.setitem(sys.modules, "nowhere", importlib.import_module(name))
    monkeypatch.setattr(act, "__module__", "nowhere")
    (outcome,) = on_ray.map(Act(act, tmp_path, stateful), ["a"], FEW)
    assert outcome.error == "ModuleNotFoundError: No module named 'nowhere'" and "Traceback" in outcome.detail


# Pieces that hang -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [False, True])
def test_a_piece_that_hangs_is_ended_and_tells_where_it_stood(on_ray: Executor, tmp_path: Path, stateful: bool) -> None:
    job, limit = Act(hang, tmp_path, stateful), Limit(LIMIT, tmp_path / "hung")
    found = by_item(on_ray.map(job, ["python", "a", "c", "b"], FEW, limit))
    assert found["a"].value == "A" and found["b"].value == "B"
    lines = [number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if ".sleep(300)" in line]
    for item, line in zip(("python", "c"), lines, strict=False):
        trace = limit.traces / f"act-{item}.txt"
        assert found[item].error == (
            f"no result after {LIMIT:g} s; where it stood: {__file__}, line {line}, in hang; whole trace in {trace}"
        )
        assert f"line {line} in hang" in trace.read_text() and job.tries(item) == 1
    assert len(list(limit.traces.iterdir())) == 2


def test_each_piece_has_its_own_time_and_old_traces_say_nothing(on_ray: Executor, tmp_path: Path) -> None:
    limit = Limit(LIMIT, tmp_path / "hung")
    limit.traces.mkdir()
    for item in "abc":
        limit.trace("act", item).write_text('File "of another time.py", line 1 in hang\n')
    one_by_one = Resources(cpus=2)
    found = by_item(on_ray.map(Act(take_a_while, tmp_path), "abc", one_by_one, limit))
    assert {outcome.value for outcome in found.values()} == set("ABC") and not list(limit.traces.iterdir())
    limit.trace("act", "b").write_text('File "of another time.py", line 1 in hang\n')
    found = by_item(on_ray.map(Act(die_always, tmp_path), "abc", FEW, limit))
    assert str(found["b"].error).startswith("tried 3 times")


def test_loading_a_model_is_under_the_limit_too(on_ray: Executor, tmp_path: Path) -> None:
    job = Act(hang, tmp_path, stateful=True, at_setup=True)
    (outcome,) = on_ray.map(job, ["a"], FEW, Limit(LIMIT, tmp_path / "hung"))
    assert "in hang" in str(outcome.error) and job.tries("setup") == 1


def test_of_a_trace_the_line_is_told_that_is_no_librarys(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    assert watch.where_it_stood(trace) is None
    trace.touch()
    assert watch.where_it_stood(trace) is None
    trace.write_text(
        'Timeout (0:00:01)!\nThread 0x1 (most recent call first):\n  File "/x/ray/worker.py", line 9 in main_loop\n\n'
        'Thread 0x2 (most recent call first):\n  File "/x/site-packages/numpy/core.py", line 3 in dot\n'
        '  File "/my/stage.py", line 7 in annotate\n  File "/x/workflow/worker.py", line 90 in work\n'
        '  File "/x/ray/worker.py", line 1 in call\n'
    )
    assert watch.where_it_stood(trace) == "/my/stage.py, line 7, in annotate"


def test_the_timeout_option() -> None:
    run = Path("run")
    assert RunOptions().limit(run) == Limit(7200, run / ".work" / "hung") and RunOptions(timeout="0").limit(run) is None
    assert [seconds_of(given, "--x") for given in ("90s", "30m", "1.5h", "2w")] == [90, 1800, 5400, 14 * 86400]
    for wrong in ("", "7", "d", "-1d", "1 d", "7days"):
        with pytest.raises(UsageError, match=r"--timeout .*write a duration as"):
            RunOptions(timeout=wrong).limit(run)


# Ray ------------------------------------------------------------------------------------------------------------------


def test_no_more_is_submitted_than_may_run(on_ray: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, most, begin = [], [0], Task.begin

    def counted(task: Task, *order: Any) -> Any:
        begun.append(order)
        return begin(task, *order)

    monkeypatch.setattr(Task, "begin", counted)
    outcomes = on_ray.map(Act(upper, tmp_path), [str(number) for number in range(20)], Resources(cpus=1))
    for finished, _ in enumerate(outcomes):
        most.append(len(begun) - finished)
    assert len(begun) == 20 and max(most) <= 2 + 1 + 2  # at work, the one that just finished, and those not yet read


def test_workers_have_our_environment_and_no_runtime_environment_holds_it(on_ray: Executor, tmp_path: Path) -> None:
    for stateful in (False, True):
        (outcome,) = on_ray.map(Act(look_around, tmp_path, stateful), ["a"], FEW)
        assert outcome.value == ({}, SECRET)


def test_the_embedded_cluster_has_neither_dashboard_nor_job_server(on_ray: Executor) -> None:
    family = set(psutil.Process().children(recursive=True))
    running = [each for each in psutil.process_iter(["cmdline"]) if each in family]  # skips the ended
    commands = [each.info["cmdline"] or [] for each in running]
    (dashboard,) = [command for command in commands if any("dashboard/dashboard.py" in word for word in command)]
    assert {"--disable-frontend", "--modules-to-load=UsageStatsHead"} <= set(dashboard)  # it counts for itself alone


def test_who_has_not_the_token_is_refused(on_ray: Executor) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    code = f"from ray._raylet import GcsClient; print(GcsClient(address={address!r}).get_all_node_info())"
    own = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    assert own["RAY_AUTH_MODE"] == "token" and len(own["RAY_AUTH_TOKEN"]) == 64
    none, wrong = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for variables, let_in in ((own, True), (none, False), (wrong, False)):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == let_in and ("node_id" in done.stdout) == let_in, done.stderr


@pytest.mark.parametrize(
    ("resources", "missing"),
    [
        (Resources(gpus=1), r"GPU 1 \(largest node has 0\): lower it"),
        (Resources(cpus=5), r"CPU 5 \(largest node has 4\): lower it"),  # 6 in all, on no node
        (Resources(memory_gb=20), r"memory 20 \(largest node has 16\): lower it"),
        (Resources(cpus=3, memory_gb=10), r"CPU 3 .*, memory 10 \(largest node has 16\) on the same node: lower it"),
    ],
)
def test_resources_that_no_node_has_are_refused_with_what_is_missing(resources: Resources, missing: str) -> None:
    nodes: Sequence[dict[str, float]] = [{"CPU": 4, "memory": 8 * 2**30}, {"CPU": 2, "memory": 16 * 2**30}]
    refuse_infeasible(Resources(cpus=4, memory_gb=8), nodes)
    with pytest.raises(GristmillError, match=missing):
        refuse_infeasible(resources, nodes)
    with pytest.raises(GristmillError, match="largest node has 0"):
        refuse_infeasible(Resources(), [])


def test_a_ray_that_takes_too_long_to_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def slow(*_arguments: object, **_options: object) -> None:
        raise Exception("The current node timed out during startup.\nPerhaps ...")

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(GristmillError, match=r"^Ray cannot start on this machine: The current node .*; --workers 0"):
        cluster.connect(2)


def test_a_stage_whose_model_is_small_has_no_process_of_its_own(tmp_path: Path) -> None:
    from gristmill.datapipe.filters.language import LanguageConfig
    from gristmill.datapipe.filters.perplexity import PerplexityConfig
    from gristmill.datapipe.stages.measure import Language, Perplexity
    from gristmill.datapipe.workflow.jobs import StageJob

    jobs = [
        StageJob(stage, tmp_path, {}, {}, tmp_path, {}, tmp_path)
        for stage in (Language(LanguageConfig()), Perplexity(PerplexityConfig()))
    ]
    assert [job.stateful for job in jobs] == [False, True]
