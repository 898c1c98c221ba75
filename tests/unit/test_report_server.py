"""The live page: what it answers, what it refuses, that it follows the run, and that the command line works."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.base.errors import UsageError
from gristmill.report import questions, run_folder, server
from gristmill.report.server import make_server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    (tmp_path / "run.json").write_text(json.dumps({"name": "live", "status": "running", "nodes": []}))
    with serving(tmp_path) as port:
        yield tmp_path, port


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of a server over `folder`, until the block ends."""
    with make_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def raw(port: int, sent: bytes) -> bytes:
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        got = b""
        with suppress(ConnectionError):
            while piece := connection.recv(1 << 16):
                got += piece
        return got


def ask(port: int, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_comes_with_a_policy(served: tuple[Path, int]) -> None:
    status, headers, body = ask(served[1])
    assert status == 200 and b'data-live="5"' in body
    hashed = r"'sha256-[A-Za-z0-9+/]{43}='"
    assert re.fullmatch(
        rf"default-src 'none'; script-src {hashed}; style-src {hashed}; connect-src 'self'; img-src blob:; "
        r"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        headers["Content-Security-Policy"],
    )
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1].evil.example"]
)
def test_a_foreign_host_is_refused(served: tuple[Path, int], host: str) -> None:
    for path in ("/", "/api/data"):
        status, _, body = ask(served[1], path=path, Host=host)
        assert status == 421 and b"live" not in body


def test_other_methods_addresses_and_sites_are_refused(served: tuple[Path, int]) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        status, headers, _ = ask(served[1], method)
        assert status == 405 and headers["Allow"] == "GET"
    assert ask(served[1], path="/run.json")[0] == 404
    assert ask(served[1], path="/../run.json")[0] == 404
    assert ask(served[1], path="/api/data", Sec_Fetch_Site="cross-site")[0] == 403


def test_a_request_is_one_request(served: tuple[Path, int]) -> None:
    """Two hosts, a body, or another method: what follows on the connection is not taken for a request."""
    port = served[1]
    second = b"GET /api/data HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for head, status in (
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(second), b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"404"),
    ):
        reply = raw(port, head + (second if status != b"404" else b""))
        assert reply.startswith(b"HTTP/1.1 " + status) and reply.count(b"HTTP/1.1 ") == 1, head


LINES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda method, path, version: method + b" " + path + b" " + version,
        st.sampled_from([b"GET", b"HEAD", b"get", b"PROPFIND"]),
        st.one_of(
            st.binary(max_size=60),
            st.lists(st.sampled_from([b"..", b"%2e%2e", b"run", b"api", b"data", b"secret.txt", b"", b"%00"])).map(
                lambda parts: b"/" + b"/".join(parts)
            ),
        ),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9.9", b"x"]),
    ),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=LINES, host=st.sampled_from([b"Host: localhost\r\n", b"", b"Host: ::\r\n", b"Nonsense\r\n"]))
def test_no_request_line_gets_a_file_or_a_traceback(
    served: tuple[Path, int], capfd: pytest.CaptureFixture[str], line: bytes, host: bytes
) -> None:
    for folder in (served[0], served[0].parent):
        (folder / "secret.txt").write_text("the secret")
    reply = raw(served[1], line + b"\r\n" + host + b"\r\n")
    assert b"the secret" not in reply and b"Traceback" not in reply and b" 500 " not in reply[:20]
    assert capfd.readouterr().err == ""


def test_what_goes_wrong_in_a_question_is_told_where_the_server_was_started(
    served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(questions.QUESTIONS, "halves", lambda run, asked: {"half": 1 // len(asked.text("none"))})
    status, headers, body = ask(served[1], path="/api/halves")
    assert status == 500 and headers["Content-Type"] == "application/json"
    assert "ZeroDivisionError" in json.loads(body)["error"] and b"Traceback" not in body and b"\n" not in body
    assert "integer division or modulo by zero" in capfd.readouterr().err
    monkeypatch.setitem(questions.QUESTIONS, "gone", lambda run, asked: {}["gone"])  # as of a file of another version
    assert ask(served[1], path="/api/gone")[0] == 200 and "Traceback" in capfd.readouterr().err


def test_an_answer_has_a_size(served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LARGEST", 100_000)
    monkeypatch.setitem(questions.QUESTIONS, "long", lambda run, asked: {"text": "x" * 100_000})
    status, _, body = ask(served[1], path="/api/long")
    assert status == 500 and b"at most" in body
    assert ask(served[1], path="/api/workflow")[0] == 200


def test_a_run_that_vanishes_is_missed_and_may_come_back(
    served: tuple[Path, int], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, port = served
    shutil.rmtree(folder)
    for path in ("/", "/api/data", "/api/workflow", "/api/runs", "/run/x"):
        status, _, body = ask(port, path=path)
        assert status in (200, 404) and b"no such run" in body, path
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"name": "back", "status": "done", "nodes": []}))
    assert json.loads(ask(port, path="/api/data")[2])["overview"]["name"] == "back"
    assert capfd.readouterr().err == ""


def test_who_sends_nothing_or_a_byte_now_and_then_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    (tmp_path / "run.json").write_text("{}")
    with serving(tmp_path) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        for connection in slow:
            with suppress(ConnectionError):
                connection.sendall(b"GET / HT")
        for connection in slow:  # refused at once, or dropped soon
            with suppress(ConnectionError):
                assert connection.recv(100) == b""
            connection.close()
        for _ in range(100):
            with suppress(OSError, http.client.HTTPException):
                if ask(port)[0] == 200:
                    break
        else:
            pytest.fail("no answer any more")
    assert capfd.readouterr().err == ""


def test_the_data_follows_the_run(served: tuple[Path, int]) -> None:
    folder, port = served
    status, headers, body = ask(port, path="/api/data", Host=f"localhost:{port}")
    assert status == 200 and json.loads(body)["overview"]["status"] == "running"
    assert ask(port, path="/api/data", If_None_Match=headers["ETag"])[0] == 304
    (folder / "run.json").write_text(json.dumps({"name": "live", "status": "finished", "nodes": []}))
    status, _, body = ask(port, path="/api/data", If_None_Match=headers["ETag"])
    assert status == 200 and json.loads(body)["overview"]["status"] == "finished"


def test_documents_are_not_read_again_while_only_the_runner_writes(
    served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = served
    asked: list[int] = []
    real = run_folder._row_panels
    monkeypatch.setattr(run_folder, "_row_panels", lambda run, seed: asked.append(seed) or real(run, seed))
    for number in range(3):
        (folder / "run.json").write_text(json.dumps({"name": f"live {number}", "status": "running", "nodes": []}))
        assert json.loads(ask(port, path="/api/data")[2])["overview"]["name"] == f"live {number}"
    assert asked == []
    (folder / "documents").mkdir()
    (folder / "documents" / "part-00000.parquet").write_bytes(b"no parquet yet")
    assert "error" in json.loads(ask(port, path="/api/data")[2])["measures"] and asked == [0]


def test_wrong_folders_and_ports_are_usage_errors(tmp_path: Path, served: tuple[Path, int]) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        make_server(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--port"):
        make_server(tmp_path, served[1])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from gristmill.report.cli import main; main()", *arguments]


def test_open_prints_its_address_and_stops_on_interrupt(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with subprocess.Popen(
        command("open", str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        address = process.stdout.readline().strip()
        assert ask(int(address.rsplit(":", 1)[1].strip("/")))[0] == 200
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert "Traceback" not in process.stderr.read()


def test_open_ends_on_sigterm_and_names_a_port_that_is_taken(tmp_path: Path, served: tuple[Path, int]) -> None:
    taken = subprocess.run(command("open", str(tmp_path), "--port", str(served[1])), capture_output=True, text=True)
    assert taken.returncode == 2 and "--port 0 takes a free one" in taken.stderr and "Traceback" not in taken.stderr
    with subprocess.Popen(
        command("open", str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr and process.stdout.readline().startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait(timeout=10) == 143
        assert process.stderr.read() == ""


def test_build_prints_where_the_page_is(tmp_path: Path) -> None:
    done = subprocess.run(command("export", str(tmp_path)), capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "report/index.html"
    wrong = subprocess.run(command("export", str(tmp_path / "nowhere")), capture_output=True, text=True)
    assert wrong.returncode == 2 and "no such run folder" in wrong.stderr and "Traceback" not in wrong.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['report', 'export', '--help']\n"
        "from gristmill.report.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'pyarrow', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--html" in done.stdout and done.stderr.strip() == "[]"
