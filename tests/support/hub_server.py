"""A small Hugging Face Hub for tests: what huggingface_hub asks when it publishes and fetches datasets and models, in
memory.

A test sees what happened (`requests`, and each repository's `commits` in order) and says what is to go wrong (`fail`).
Files kept as large files come, as on the real Hub, from another host: "localhost", where no token may be sent.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

REPOSITORY = r"/api/(?:datasets|models)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:datasets/)?(?P<name>[^/]+/[^/]+?)"
Kind = Literal["status", "drop upload", "drop download", "short download"]


@dataclasses.dataclass(frozen=True)
class File:
    """A committed file: its bytes' sha256 and size, and for the small ones the bytes themselves."""

    sha256: str
    size: int
    content: bytes | None

    @property
    def oid(self) -> str:
        """git's name for the blob; of a large file that is the pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        blob = pointer.encode() if self.content is None else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def info(self, path: str) -> dict[str, Any]:
        about: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.content is None:
            about["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return about


def is_large(path: str, sample: bytes) -> bool:
    """Binary files go to the large files' store, whatever their size."""
    return path.endswith(".parquet") or b"\0" in sample


def small(data: bytes) -> File:
    return File(hashlib.sha256(data).hexdigest(), len(data), data)


@dataclasses.dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    changed: tuple[str, ...]
    files: dict[str, File]
    deleted: tuple[str, ...] = ()


@dataclasses.dataclass
class Repository:
    name: str
    private: bool = False
    commits: list[Commit] = dataclasses.field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        """The commit that "main" or the start of a sha names."""
        newest_first = reversed(self.commits)
        return next((commit for commit in newest_first if revision == "main" or commit.sha.startswith(revision)), None)


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    start: int  # the first byte that it asks for

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclasses.dataclass
class Fault:
    pattern: str
    kind: Kind
    status: int
    left: int


@dataclasses.dataclass
class Meanwhile:
    pattern: str
    action: Callable[[], object]
    after: int


class Hub:
    """`with Hub() as hub:` serves until the block ends."""

    token = "hf_TopSecretTokenOfTheTests"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """The large files' store, by sha256; a test may alter it."""
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._meanwhile: list[Meanwhile] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.store = f"http://localhost:{self._server.server_port}/store"
        """Where large files are; another host than `endpoint`, as the Hub's CDN is."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that knows this Hub alone, with a token for it and an empty cache in `home`."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return {name: value for name, value in own.items() if not name.lower().endswith("_proxy")} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fail(self, pattern: str, kind: Kind = "status", *, status: int = 500, times: int = 1) -> None:
        """The next `times` requests whose "METHOD path" matches `pattern` go wrong.

        "status": answered with `status` and Retry-After: 0. "drop upload": the connection ends after the first
        bytes of the request's body. "drop download": it ends after half of the answer's body. "short download": the
        answer looks whole, but is half the file.
        """
        self._faults.append(Fault(pattern, kind, status, times))

    def meanwhile(self, pattern: str, action: Callable[[], object], *, after: int = 0) -> None:
        """What somebody else does, once, before the next request whose "METHOD path" matches is answered; or a later
        one, `after` so many."""
        self._meanwhile.append(Meanwhile(pattern, action, after))

    @property
    def faults_left(self) -> int:
        return sum(fault.left for fault in self._faults)

    def seen(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD path" matches."""
        return [request for request in list(self.requests) if re.search(pattern, str(request))]

    def create(self, name: str, private: bool = False) -> None:
        if name not in self.repositories:
            self.repositories[name] = Repository(name, private)
            self.commit(name, "initial commit", {".gitattributes": small(b"*.parquet filter=lfs\n")})

    def put(self, name: str, contents: dict[str, bytes], private: bool = False) -> str:
        """Commit files as somebody else would; the commit's sha."""
        self.create(name, private)
        files = {path: small(data) for path, data in contents.items()}
        for path in filter(lambda path: is_large(path, contents[path]), files):
            self.objects[files[path].sha256] = contents[path]
            files[path] = dataclasses.replace(files[path], content=None)
        return self.commit(name, "somebody else", files).sha

    def commit(self, name: str, title: str, files: dict[str, File], deleted: tuple[str, ...] = ()) -> Commit:
        with self.lock:
            commits = self.repositories[name].commits
            parent = commits[-1].files if commits else {}
            sha = hashlib.sha1(f"{name} {len(commits)} {title} {sorted(files)}".encode()).hexdigest()
            held = {path: file for path, file in {**parent, **files}.items() if path not in deleted}
            commits.append(Commit(sha, title, tuple(files), held, deleted))
            return commits[-1]

    def take_request(self, request: Request) -> Fault | None:
        """Note a request down; the fault that it is to meet, if any."""
        with self.lock:
            self.requests.append(request)
            meant = [one for one in self._meanwhile if re.search(one.pattern, str(request))]
            now = [one for one in meant if not one.after]
            for one in meant:
                one.after -= 1
            self._meanwhile = [one for one in self._meanwhile if one.after >= 0]
        for one in now:
            one.action()
        with self.lock:
            due = (fault for fault in self._faults if fault.left and re.search(fault.pattern, str(request)))
            if fault := next(due, None):
                fault.left -= 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # those are part of the play
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for the client's acknowledgement
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    hub: Hub
    fault: Fault | None
    body: bytes
    repository: Repository
    commit: Commit

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        self.hub = self.server.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        span = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        self.start = int(span[1]) if span else 0
        request = Request(self.command, urlsplit(self.path).path, token, self.start)
        self.fault = self.hub.take_request(request)
        if self.fault and self.fault.kind == "drop upload":
            self.rfile.read1(100)
            self.close_connection = True
            return None
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.fault and self.fault.kind == "status":
            return self.refuse(self.fault.status, message="as the test asked", headers={"Retry-After": "0"})
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, str(request)):
                return answer(self, match) if self._may(request, match.groupdict()) else None
        return self.refuse(404, message="no such page")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _may(self, request: Request, parts: dict[str, str]) -> bool:
        """Find the repository and the commit that the address names; refused if they are not there, or not for all."""
        known = request.token == self.hub.token
        if request.method == "POST" and not known and "paths-info" not in request.path:
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif "name" not in parts:
            return True
        elif (found := self.hub.repositories.get(parts["name"])) is None or (found.private and not known):
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif (commit := found.at(unquote(parts.get("revision") or "main"))) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {parts['revision']}")
        else:
            self.repository, self.commit = found, commit
            return True
        return False

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply({"error": message}, status, about | (headers or {}))

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        """All of `data`, or from the byte on that was asked for."""
        last = len(data) - 1
        span = {"Content-Range": f"bytes {self.start}-{last}/{last + 1}"} if self.start else {}
        self.send(206 if self.start else 200, data[self.start :], headers | span)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """One answer, as far as the request's fault lets it."""
        kind = self.fault.kind if self.fault else None
        body = body[: len(body) // 2] if kind == "short download" else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "drop download" else body)
        self.close_connection = self.close_connection or kind == "drop download"

    # The answers, in the order in which a publisher and then a reader meets them.

    def create_repository(self, _match: re.Match[str]) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.hub.repositories
        self.hub.create(name, asked.get("visibility") == "private")
        self.reply({"url": f"{self.hub.endpoint}/datasets/{name}", "id": name}, 409 if known else 200)

    def paths_info(self, _match: re.Match[str]) -> None:
        asked = parse_qs(self.body.decode()).get("paths", [])
        self.reply([self.commit.files[path].info(path) for path in asked if path in self.commit.files])

    def preupload(self, _match: re.Match[str]) -> None:
        """How to send each file; `oid` tells the client which of them have not changed."""
        answers = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if is_large(asked["path"], base64.b64decode(asked["sample"])) else "regular"
            old = self.commit.files.get(asked["path"])
            oid = old and (old.oid if old.content is not None else old.sha256)
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answers})

    def lfs_batch(self, _match: re.Match[str]) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            verify = {"href": f"{self.hub.endpoint}/api/verify", "header": {}}
            actions = {"upload": {"href": f"{self.hub.store}/{asked['oid']}", "header": {}}, "verify": verify}
            objects.append(asked if asked["oid"] in self.hub.objects else {**asked, "actions": actions})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, match: re.Match[str]) -> None:
        if hashlib.sha256(self.body).hexdigest() != match["oid"]:
            return self.refuse(400, message="the content does not have this sha256")
        self.hub.objects[match["oid"]] = self.body
        return self.reply({})

    def lfs_verify(self, _match: re.Match[str]) -> None:
        asked = json.loads(self.body)
        there = self.hub.objects.get(asked["oid"])
        self.reply({}, 200 if there is not None and len(there) == asked["size"] else 404)

    def make_commit(self, _match: re.Match[str]) -> None:
        header, *changes = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files: dict[str, File] = {}
        deleted: list[str] = []
        if header["value"].get("parentCommit", self.commit.sha) != self.commit.sha:
            return self.refuse(412, message="A commit has happened since. Please refresh and try again.")
        for kind, value in ((line["key"], line["value"]) for line in changes):
            if kind == "deletedFile" and value["path"] in self.commit.files:
                deleted.append(value["path"])
            elif kind == "file":
                files[value["path"]] = small(base64.b64decode(value["content"]))
            elif kind == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = File(value["oid"], len(self.hub.objects[value["oid"]]), None)
            else:
                return self.refuse(400, message=f"{kind} {value['path']}: not uploaded, or no such file")
        commit = self.hub.commit(self.repository.name, header["value"]["summary"], files, tuple(deleted))
        url = f"{self.hub.endpoint}/datasets/{self.repository.name}/commit/{commit.sha}"
        return self.reply({"commitOid": commit.sha, "commitUrl": url})

    def repository_info(self, _match: re.Match[str]) -> None:
        files = [{"rfilename": path, "size": self.commit.files[path].size} for path in sorted(self.commit.files)]
        about = {"id": self.repository.name, "sha": self.commit.sha, "tags": [], "downloads": 0, "likes": 0}
        self.reply({**about, "private": self.repository.private, "siblings": files})

    def resolve(self, match: re.Match[str]) -> None:
        headers = {"X-Repo-Commit": self.commit.sha}
        file = self.commit.files.get(unquote(match["path"]))
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        elif file.content is not None:
            self.send_file(file.content, {**headers, "ETag": f'"{file.oid}"'})
        else:
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            self.send(302, b"", {**headers, **linked, "Location": f"{self.hub.store}/{file.sha256}"})


REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, Any]] = [  # "METHOD path" in full
    (r"GET /api/whoami-v2", lambda self, _: self.reply({"name": "tester", "type": "user", "orgs": []})),
    (r"POST /api/repos/create", _Handler.create_repository),
    (r"POST /api/validate-yaml", lambda self, _: self.reply({"errors": [], "warnings": []})),
    (rf"POST {REPOSITORY}/paths-info/{REVISION}", _Handler.paths_info),
    (
        rf"GET {REPOSITORY}/tree/{REVISION}",
        lambda self, _: self.reply([f.info(path) for path, f in self.commit.files.items()]),
    ),
    (rf"POST {REPOSITORY}/preupload/{REVISION}", _Handler.preupload),
    (rf"POST {PAGE}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /store/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (r"POST /api/verify", _Handler.lfs_verify),
    (rf"POST {REPOSITORY}/commit/{REVISION}", _Handler.make_commit),
    (rf"GET {REPOSITORY}(/revision/{REVISION})?", _Handler.repository_info),
    (rf"(GET|HEAD) {PAGE}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
    (
        r"(GET|HEAD) /store/(?P<oid>[0-9a-f]{64})",
        lambda self, match: self.send_file(self.hub.objects[match["oid"]], {}),
    ),
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server
