"""Endpoints stumble, hold back, refuse and lie; documents, keys and grades come through that."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from gristmill.base.errors import GristmillError, PartialError, UsageError
from gristmill.scorer.oracle import rate_limit
from gristmill.scorer.oracle.endpoint import EndpointConfig, EndpointEngine
from gristmill.scorer.oracle.grade import grade_documents
from gristmill.scorer.oracle.prompt import prompts
from gristmill.scorer.oracle.rate_limit import RateLimit
from gristmill.scorer.oracle.replies import Replies, StoredEngine
from gristmill.scorer.rubric import rubric_from_mapping

DIMENSION = {"name": "clarity", "question": "How clear?", "anchors": {"0": "jumbled", "4": "clear"}}
RUBRIC = rubric_from_mapping({"name": "r", "dimensions": [DIMENSION, DIMENSION | {"name": "depth"}]}, "test")
Answer = tuple[int, dict[str, Any], dict[str, str]]


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def graded(body: dict[str, Any]) -> Answer:
    """What an OpenAI-compatible server with log-probabilities answers: 4 at .6, 2 at .2, in two spellings."""
    if "messages" in body:
        top = [{"token": token, "logprob": math.log(p)} for token, p in (("4", 0.5), (" 4", 0.1), ("2", 0.2))]
        content = [{"token": "4", "logprob": math.log(0.5), "top_logprobs": top}]
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": "4"}, "logprobs": {"content": content}}
    else:
        top_map = {" 4": math.log(0.6), " 2": math.log(0.2), " the": math.log(0.1)}
        choice = {"text": " 4", "logprobs": {"tokens": [" 4"], "top_logprobs": [top_map]}}
    choice |= {"index": 0, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41}
    kind = "chat.completion" if "messages" in body else "text_completion"
    return 200, {"id": "1", "object": kind, "created": 0, "model": "stub", "choices": [choice], "usage": usage}, {}


def fails(status: int, message: str = "no", **headers: str) -> Answer:
    return status, {"error": {"message": message}}, headers


@dataclass
class Server:
    """`answer` is given each request's body and how often the same was asked before."""

    answer: Callable[[dict[str, Any], int], Answer] = lambda body, before: graded(body)
    models: list[dict[str, Any]] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""

    def asked(self, text: str) -> int:
        return sum(text in said(body) for body in self.bodies)


@pytest.fixture
def server() -> Iterator[Server]:
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if state.models is None:
                return self.send(*fails(501))
            self.send(200, {"object": "list", "data": state.models}, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                before = state.bodies.count(body)
                state.bodies.append(body)
                state.times.append(time.monotonic())
            self.send(*state.answer(body, before))

        def send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def engine_of(asked: Server, **settings: Any) -> EndpointEngine:
    return EndpointEngine(EndpointConfig(asked.url, "stub", **{"attempts": 2, "concurrency": 4, **settings}))


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_retries_mend_a_stumble_and_a_refusal_costs_its_own_row(server: Server, style: Any) -> None:
    def answer(body: dict[str, Any], before: int) -> Answer:
        return fails(400) if "refuse" in said(body) else graded(body) if before else fails(503)

    server.answer = answer
    table = grade_documents(engine_of(server, style=style), RUBRIC, ["alpha", "refuse this", "omega"], 50)
    assert table["status"].to_pylist() == ["ok", "clarity: refused: HTTP 400 no", "ok"]
    assert table["clarity"].to_pylist() == [pytest.approx(3.5), None, pytest.approx(3.5)]
    assert table["mass"].to_pylist()[0] == pytest.approx(0.8)
    assert table["prompt_tokens"].to_pylist() == [80, 0, 80] and table["seconds"].to_pylist()[0] > 0
    assert server.asked("refuse") == 2 and server.asked("alpha") == 4, "a refusal is not asked again, a stumble is"


def test_retry_after_is_obeyed(server: Server) -> None:
    server.answer = lambda body, before: graded(body) if before else fails(429, **{"Retry-After": "1"})
    replies = engine_of(server).grade(prompts("text", RUBRIC)[:1])
    assert [reply.status for reply in replies] == ["ok"]
    assert server.times[1] - server.times[0] >= 1.0


def test_wrong_key_ends_it_at_once_and_is_nowhere_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORACLE_API_KEY", "sk-geheim")
    server.answer = lambda body, before: fails(401, "Incorrect API key provided: sk-geheim")
    with pytest.raises(GristmillError, match=r"HTTP 401.*ORACLE_API_KEY") as caught:
        engine_of(server, concurrency=1).grade(prompts("text", RUBRIC))
    assert len(server.bodies) == 1
    server.answer = lambda body, before: fails(400, "bad\x1b[31m header sk-geheim " + "x" * 1000)
    (reply, *_) = engine_of(server).grade(prompts("other", RUBRIC))
    told = capfd.readouterr()
    assert "geheim" not in f"{caught.value} {reply.status} {told.out} {told.err}"
    assert reply.status.startswith(r"refused: HTTP 400 bad\x1b[31m header *** xxx") and len(reply.status) < 300


def test_endpoint_that_stops_answering_ends_it_and_what_was_answered_is_kept(server: Server, tmp_path: Any) -> None:
    server.answer = lambda body, before: graded(body) if len(server.bodies) <= 10 else fails(500)
    replies = Replies(tmp_path / "replies")
    engine = StoredEngine(engine_of(server, attempts=1, concurrency=2), replies)
    texts = [f"text {number}" for number in range(50)]
    with pytest.raises(GristmillError, match=r"4 requests in a row failed, the last: request failed: HTTP 500"):
        grade_documents(engine, RUBRIC, texts, 50)
    assert len(replies) == 10 and len(server.bodies) < 20, "it does not try every row of a server that is gone"
    server.bodies.clear()
    server.answer = lambda body, before: graded(body)
    table = grade_documents(engine, RUBRIC, texts, 50)
    assert set(table["status"].to_pylist()) == {"ok"}
    assert len(server.bodies) - 90 in (0, 1), "at most what was on its way when the first attempt gave up"


def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(GristmillError, match="no answer"):
        EndpointEngine(EndpointConfig("http://127.0.0.1:9/v1", "stub"))
    with pytest.raises(UsageError, match="give a URL"):
        EndpointEngine(EndpointConfig("localhost:8000", "stub"))
    with pytest.raises(UsageError, match="concurrency"):
        EndpointEngine(EndpointConfig("http://127.0.0.1:9/v1", "stub", concurrency=0))


def test_text_on_an_open_line_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://127.0.0.1:9/v1", "http://localhost:9/v1", "https://oracle.example/v1"):
        EndpointEngine(EndpointConfig(url, "stub", server="other"))
    assert not capsys.readouterr().err
    EndpointEngine(EndpointConfig("http://oracle.example/v1", "stub", server="other"))
    assert "not encrypted" in capsys.readouterr().err


def test_vllm_is_recognised_and_constrained_and_others_are_asked_plainly(server: Server) -> None:
    engine_of(server).grade(prompts("plain", RUBRIC))
    assert "structured_outputs" not in server.bodies[0] and server.bodies[0]["temperature"] == 0.0
    server.models = [{"id": "stub", "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 777}]
    engine = engine_of(server)
    assert engine.context == 777
    (reply, _) = engine.grade(prompts("constrained", RUBRIC))
    assert server.bodies[-1]["structured_outputs"] == {"choice": ["0", "1", "2", "3", "4"]}
    assert reply.constrained, "what is left after a constraint is no measure of mass"
    assert engine.name != engine_of(server, server="other").name, "their answers must not be taken for each other's"


def test_json_form_asks_for_a_schema_and_passes_more_fields_on(server: Server) -> None:
    text = '{"reason":"ok","clarity":4,"depth":1}'

    def answer(body: dict[str, Any], before: int) -> Answer:
        pieces = [text[:25], "4", ',"depth":', "1", "}"]
        top = {"4": [{"token": "4", "logprob": math.log(0.75)}, {"token": "2", "logprob": math.log(0.25)}]}
        content = [
            {"token": piece, "logprob": -0.1, "top_logprobs": top.get(piece, [{"token": piece, "logprob": -0.1}])}
            for piece in ("<thinks about 4>", *pieces)
        ]
        status, whole, headers = graded(body)
        whole["choices"][0] |= {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
        return status, whole, headers

    server.answer = answer
    assert text[:25] + '4,"depth":1}' == text
    engine = engine_of(server, thinking_tokens=1000, extra_body={"reasoning_effort": "low"})
    table = grade_documents(engine, RUBRIC, ["text"], 50, form="json", reason=100)
    assert table["clarity"].to_pylist() == [pytest.approx(3.5)] and table["depth"].to_pylist() == [pytest.approx(1.0)]
    assert json.loads(table["reply"][0].as_py()) == {"json": text}
    (body,) = server.bodies
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and list(schema["schema"]["properties"]) == ["reason", "clarity", "depth"]
    assert body["reasoning_effort"] == "low" and body["max_tokens"] > 1000


def test_endpoint_without_probabilities_gives_the_level_said(server: Server) -> None:
    def answer(body: dict[str, Any], before: int) -> Answer:
        status, whole, headers = graded(body)
        del whole["choices"][0]["logprobs"], whole["usage"]
        whole["choices"][0]["message"]["content"] = "3"
        return status, whole, headers

    server.answer = answer
    table = grade_documents(engine_of(server, top_logprobs=0), RUBRIC, ["text"], 50)
    assert table["clarity"].to_pylist() == [3.0] and table["mass"].to_pylist() == [None]
    assert "logprobs" not in server.bodies[0]
    assert table["prompt_tokens"].to_pylist()[0] > 40, "no usage told: our own upper estimate"


def test_half_a_surrogate_pair_in_an_answer_can_be_stored(server: Server, tmp_path: Any) -> None:
    def answer(body: dict[str, Any], before: int) -> Answer:
        status, whole, headers = graded(body)
        whole["choices"][0]["message"]["content"] = "\ud83d"
        del whole["choices"][0]["logprobs"]
        return status, whole, headers

    server.answer = answer
    engine = StoredEngine(engine_of(server), Replies(tmp_path / "replies"))
    assert grade_documents(engine, RUBRIC, ["text"], 50)["status"].to_pylist() == ["clarity: no level in the reply"]
    assert len(Replies(tmp_path / "replies")) == 2, "an answer of no use is an answer"


def test_limits_pace_the_requests_and_their_retries(server: Server) -> None:
    server.answer = lambda body, before: graded(body) if before else fails(500)
    asked = [prompt for text in ("a", "b") for prompt in prompts(text, RUBRIC)]
    engine_of(server, requests_per_minute=600, server="other").grade(asked)
    assert len(server.times) == 8
    gaps = [later - before for before, later in zip(sorted(server.times), sorted(server.times)[1:])]
    assert sum(gaps) >= 7 * 0.1 - 0.05, "eight attempts at ten a second"


def test_tokens_per_minute_pace_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 1000 + sum(slept), sleep=slept.append)
    monkeypatch.setattr(rate_limit, "time", clock)
    limit = RateLimit(tokens_per_minute=60_000)
    for tokens in (100, 200, 1):
        limit.wait(tokens)
    assert slept == pytest.approx([0, 0.1, 0.2])


def test_a_budget_of_all_counts_what_others_asked_and_earlier_runs(server: Server, tmp_path: Any) -> None:
    texts, folder = [f"text {number}" for number in range(12)], tmp_path / "replies"
    first, *others = (StoredEngine(engine_of(server), Replies(folder), 500, of_all=True) for _ in range(9))
    grade_documents(first, RUBRIC, texts[:1], 50)
    for engine in others:
        with pytest.raises(PartialError, match="goes on from there with a greater one"):
            grade_documents(engine, RUBRIC, texts, 50)
    spent = Replies(folder).tokens
    assert first.counts.tokens < spent == len(server.bodies) * 41 <= 500
    grade_documents(StoredEngine(engine_of(server), Replies(folder), 5000, of_all=True), RUBRIC, texts, 50)
    assert len(server.bodies) == 24 and Replies(folder).tokens == 24 * 41, "nothing was paid for twice"


def test_budget_stops_before_it_is_exceeded_and_the_next_run_goes_on(server: Server, tmp_path: Any) -> None:
    texts, spent = [f"text {number}" for number in range(12)], 0
    for _ in range(50):
        engine = StoredEngine(engine_of(server), Replies(tmp_path / "replies"), budget_tokens=500)
        try:
            table = grade_documents(engine, RUBRIC, texts, 50)
            break
        except PartialError as error:
            assert error.exit_code == 4 and "the same command goes on" in str(error)
            assert 0 < engine.counts.tokens <= 500
            spent += engine.counts.tokens
    assert spent > 500 and set(table["status"].to_pylist()) == {"ok"}
    assert len(server.bodies) == 24 and spent + engine.counts.tokens == 24 * 41, "nothing was paid for twice"
    with pytest.raises(PartialError, match="0 requests"):
        grade_documents(
            StoredEngine(engine_of(server), Replies(tmp_path / "new"), budget_tokens=10), RUBRIC, ["text"], 50
        )
