"""The filtering pipeline as a user runs it: on good and bad input, in this process, on Ray, and as a submitted job."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tests.support.scripts import ROOT, environment, run

from gristmill.base.files import sha256_folder

GERMAN = """Am Morgen ging der Müller zum Bach hinunter, denn das Rad hatte in der Nacht geknarrt, und er wollte
nachsehen, ob ein Ast darin steckte. Seine Tochter fegte unterdessen den Boden der Mühle, zählte die Säcke vom Vortag
und schrieb mit Kreide an die Tür, wie viel Roggen noch zu mahlen war. Gegen Mittag kamen zwei Bauern aus dem
Nachbardorf, brachten Weizen und fragten, ob man das Mehl feiner bekommen könne als beim letzten Mal."""


def document(name: str, text: str) -> str:
    return json.dumps({"id": name, "text": text, "source": "web"}) + "\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's language reference as documents, some of them twice, some cut short, some in another language."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [text for text in topics.values() if len(text) > 600]
    lines = [document(f"topic-{number}", text) for number, text in enumerate(texts)]
    lines += [document(f"copy-{number}", text.replace(" ", "  ")) for number, text in enumerate(texts[:10])]
    lines += [document(f"short-{number}", text[:80]) for number, text in enumerate(texts[:10])]
    lines += [document("german", GERMAN)]
    lines += [document("repeats", "again and again the same line of words\n" * 60)]
    with gzip.open(folder / "web.jsonl.gz", "wt") as file:
        file.writelines(lines)
    return folder


def reasons(folder: Path) -> dict[str, str | None]:
    """Document id -> the rule that dropped it."""
    from gristmill.datapipe.workflow.stage import read_part

    found: dict[str, str | None] = {}
    for part in sorted((folder / "documents").glob("part-*.parquet")):
        ids = read_part(part, ("id",))["id"].to_pylist()
        found.update(zip(ids, read_part(folder / "selection" / part.name)["reason"].to_pylist(), strict=True))
    return found


def test_the_recipe_drops_what_it_should_and_workers_change_no_byte(corpus: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        code, _, error = run(
            "filter_olmo3.py", "--input", corpus, "--output", tmp_path / str(workers), "--workers", workers
        )
        assert code == 0, error
    why = reasons(tmp_path / "0")
    assert {why[f"short-{number}"] for number in range(10)} == {"characters"}
    assert why["german"] == "stop_words" and why["repeats"] in ("duplicate_lines", "duplicate_line_characters")
    kept = [name for name, reason in why.items() if reason is None]
    assert len(kept) > 20 and all(name.startswith("topic-") for name in kept)
    assert any(reason == "exact_duplicate" for name, reason in why.items() if name.startswith("copy-"))
    for output in ("documents", "annotations", "selection", "shards", "published"):
        assert sha256_folder(tmp_path / "0" / output) == sha256_folder(tmp_path / "2" / output), output


def test_bad_input_is_quarantined_told_in_the_report_and_bounded(corpus: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": 3}\nnot json\n{"text": "\xff"}\n{"text": ""}\n')
    command = ["filter_olmo3.py", "--input", corpus, bad, "--output", tmp_path / "run", "--workers", 0]
    code, _, error = run(*command)
    assert code == 4 and "--max-bad-fraction" in error.strip().splitlines()[-1]
    assert list((tmp_path / "run" / "documents").glob("*.parquet"))
    code, _, error = run(*command, "--max-bad-fraction", 0.2)
    assert code == 0, error
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["quarantine"]["total"] == 4
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "invalid UTF-8" in page and "bad.jsonl" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "/nowhere/*.jsonl"], 2, "no such file"),
        ([], 2, "--input is missing"),
        (
            ["--input", ".", "--policy", str(ROOT / "pipelines/policies/olmo3_scored.toml")],
            2,
            "--oracle and --backbone",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    ended, out, error = run("filter_olmo3.py", *arguments, "--output", tmp_path / "run")
    assert ended == code and out == ""
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A one-node Ray cluster on loopback, with a token of its own; yields the environment that reaches it."""
    ports = [_free_port() for _ in range(2)]
    variables = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={_free_port()}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    log = (tmp_path / "ray.log").open("w+")
    process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        yield {**variables, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        if _group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


@pytest.mark.slow
def test_submitted_to_a_ray_cluster_it_gives_the_same_bytes(
    corpus: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "pipelines/filter_olmo3.py"]
    command += ["--input", str(corpus), "--output", str(tmp_path / "job")]
    deadline = time.monotonic() + 120
    while True:  # the job server answers some seconds after the cluster does
        job = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, check=False, timeout=300)
        if job.returncode == 0 or "Failed to connect" not in job.stderr + job.stdout or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    code, _, error = run("filter_olmo3.py", "--input", corpus, "--output", tmp_path / "here", "--workers", 0)
    assert code == 0, error
    for output in ("selection", "shards"):
        assert sha256_folder(tmp_path / "job" / output) == sha256_folder(tmp_path / "here" / output)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
