"""The live page: what it answers, what it refuses, that it follows the run, and that the command line works."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.base.errors import UsageError
from gristmill.report.server import make_server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    (tmp_path / "run.json").write_text(json.dumps({"name": "live", "status": "running", "nodes": []}))
    with make_server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield tmp_path, server.server_port
        server.shutdown()
        thread.join()


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
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src 'self'" in policy
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


def test_the_data_follows_the_run(served: tuple[Path, int]) -> None:
    folder, port = served
    status, headers, body = ask(port, path="/api/data", Host=f"localhost:{port}")
    assert status == 200 and json.loads(body)["overview"]["status"] == "running"
    assert ask(port, path="/api/data", If_None_Match=headers["ETag"])[0] == 304
    (folder / "run.json").write_text(json.dumps({"name": "live", "status": "finished", "nodes": []}))
    status, _, body = ask(port, path="/api/data", If_None_Match=headers["ETag"])
    assert status == 200 and json.loads(body)["overview"]["status"] == "finished"


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
