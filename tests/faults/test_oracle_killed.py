"""`scorer label`, killed with SIGKILL twenty times at random moments: no answer lost, none asked for twice but what was
on its way.

A server on loopback counts what it answered. An answer that it sent and that the killed process had not stored yet has
to be asked for again; there can be one such for each thread. Anything beyond those would be a repeated grade.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.scripts import ROOT, SCRIPTS, environment

from gristmill.scorer.oracle.replies import Replies

pytestmark = pytest.mark.slow

KILLS, DOCUMENTS, DIMENSIONS, THREADS = 20, 120, 5, 16
REQUESTS = DOCUMENTS * DIMENSIONS


class CountingServer(ThreadingHTTPServer):
    """Grades by a hash of what it is asked, and counts the answers that it has sent, by what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answered: Counter[str] = Counter()
        self.busy = 0
        self.seconds = 0.0
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked was killed: part of the play

    def settled(self) -> int:
        """Answers sent, once nobody is being answered any more."""
        while True:
            with self.lock:
                if not self.busy:
                    return self.answered.total()
            time.sleep(0.01)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CountingServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.busy += 1
        try:
            time.sleep(self.server.seconds or random.uniform(0.01, 0.05))
            self._answer(json.loads(body)["messages"][-1]["content"])
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def _answer(self, asked: str) -> None:
        weights = [1 + byte for byte in hashlib.sha256(asked.encode()).digest()[:5]]
        top = [{"token": str(level), "logprob": math.log(w / sum(weights))} for level, w in enumerate(weights)]
        choice = {
            "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "0"},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }  # fmt: skip
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        with self.server.lock:
            self.server.answered[asked] += 1


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def start(server: CountingServer, documents: Path, output: Path) -> subprocess.Popen[str]:
    config, rubric = documents.with_name("oracle.toml"), ROOT / "pipelines" / "rubrics" / "general.toml"
    config.write_text(f'concurrency = {THREADS}\nserver = "other"\n')
    url = f"http://127.0.0.1:{server.server_port}/v1"
    command = [
        SCRIPTS / "scorer", "label", "--input", documents, "--rubric", rubric, "--output", output, "--model", "m",
        "--engine", "endpoint", "--url", url, "--config", config,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def grades(path: Path) -> pa.Table:
    return pq.read_table(path).drop_columns(["seconds"])


def asked_last(out: str) -> int:
    """How many requests a run says that it made."""
    return int(next(line for line in out.splitlines() if " requests" in line).split()[0])


def test_twenty_kills_lose_nothing_and_repeat_nothing(server: CountingServer, tmp_path: Path, faults_seed: int) -> None:
    documents, output = tmp_path / "documents.jsonl", tmp_path / "labels.parquet"
    rows = [{"id": f"d{number}", "text": f"Document {number}. " * (1 + number % 30)} for number in range(DOCUMENTS)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moments, unsaved = random.Random(faults_seed), 0
    for kill in range(KILLS):
        before = server.settled()
        process = start(server, documents, output)
        target = before + moments.randint(1, REQUESTS // (KILLS + 5))
        deadline = time.monotonic() + 60
        while server.answered.total() < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        assert process.poll() is None, f"kill {kill}: it had ended: {process.communicate()}"
        process.kill()
        process.communicate()
        answered, stored = server.settled(), len(Replies(output.with_name("labels.parquet.replies")))
        here = answered - stored - unsaved
        assert 0 <= here <= THREADS, f"kill {kill}: {here} answers of this run are not stored, with {THREADS} threads"
        unsaved += here
    process = start(server, documents, output)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    store = Replies(output.with_name("labels.parquet.replies"))
    assert (len(store), store.damaged) == (REQUESTS, 0), "an answer is lost"
    assert len(server.answered) == REQUESTS
    assert server.answered.total() - REQUESTS == unsaved, "more was repeated than was on its way when a kill came"
    assert f"{REQUESTS - asked_last(out)} answers were in" in out
    again = start(server, documents, tmp_path / "undisturbed.parquet")
    assert again.communicate(timeout=120) and again.returncode == 0
    assert grades(output).equals(grades(tmp_path / "undisturbed.parquet"))
    assert set(grades(output)["status"].to_pylist()) == {"ok"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon_though_requests_are_under_way(tmp_path: Path, number: signal.Signals, code: int) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "one"}\n')
    server = CountingServer()
    server.seconds = 30.0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    process = start(server, documents, tmp_path / "labels.parquet")
    while not server.busy:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == code and "Traceback" not in error
    server.shutdown()
    server.server_close()
