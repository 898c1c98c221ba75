"""A small Hugging Face Hub for tests: what huggingface_hub asks when it publishes and fetches datasets, held in memory.

A test sees what happened (`requests`, and each repository's `commits` in order) and says what is to go wrong (`fail`).
Files kept as large files come, as on the real Hub, from another host: "localhost", where no token may be sent.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
DATASET = r"/api/datasets/(?P<name>[^/]+/[^/]+)"
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
        if self.content is not None:
            return _git_oid(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return _git_oid(pointer.encode())

    def info(self, path: str) -> dict[str, Any]:
        about: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.content is None:
            about["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return about


@dataclasses.dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    changed: tuple[str, ...]
    files: dict[str, File]


@dataclasses.dataclass
class Repository:
    name: str
    private: bool = False
    commits: list[Commit] = dataclasses.field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        """The commit that "main" or the start of a sha names."""
        if revision == "main":
            return self.commits[-1]
        found = [commit for commit in self.commits if len(revision) >= 7 and commit.sha.startswith(revision)]
        return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    host: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclasses.dataclass
class Fault:
    pattern: str
    kind: Kind
    status: int
    left: int


class Hub:
    """`with Hub() as hub:` serves until the block ends; give clients HF_ENDPOINT=hub.endpoint and a token from `tokens`."""

    def __init__(self, token: str = "hf_test") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """The large files' store, by sha256. A test may alter what stands here."""
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def store(self) -> str:
        """Where large files are; another host than `endpoint`, as the Hub's CDN is."""
        return f"http://localhost:{self._server.server_port}/store"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, pattern: str, kind: Kind = "status", *, status: int = 500, times: int = 1) -> None:
        """The next `times` requests whose "METHOD path" matches `pattern` go wrong.

        "status": answered with `status` (429 with Retry-After: 0). "drop upload": the connection ends after the first
        bytes of the request's body. "drop download": it ends after half of the answer's body. "short download": the
        answer looks whole, but is half the file.
        """
        with self.lock:
            self._faults.append(Fault(pattern, kind, status, times))

    @property
    def faults_left(self) -> int:
        with self.lock:
            return sum(fault.left for fault in self._faults)

    def seen(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD path" matches."""
        with self.lock:
            return [request for request in self.requests if re.search(pattern, str(request))]

    def create(self, name: str, private: bool = False) -> Repository:
        with self.lock:
            if name not in self.repositories:
                self.repositories[name] = Repository(name, private)
                self.commit(name, "initial commit", {".gitattributes": self.small(b"*.parquet filter=lfs\n")})
            return self.repositories[name]

    def put(self, name: str, contents: dict[str, bytes], private: bool = False) -> str:
        """Commit small files as somebody else would; the commit's sha."""
        self.create(name, private)
        return self.commit(name, "somebody else", {path: self.small(data) for path, data in contents.items()}).sha

    def commit(self, name: str, title: str, files: dict[str, File]) -> Commit:
        with self.lock:
            commits = self.repositories[name].commits
            parent = commits[-1].files if commits else {}
            sha = hashlib.sha1(f"{name} {len(commits)} {title} {sorted(files)}".encode()).hexdigest()
            commits.append(Commit(sha, title, tuple(files), {**parent, **files}))
            return commits[-1]

    @staticmethod
    def small(data: bytes) -> File:
        return File(hashlib.sha256(data).hexdigest(), len(data), data)

    def take_request(self, request: Request) -> Fault | None:
        """Note a request down; the fault that it is to meet, if any."""
        with self.lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.left and re.search(fault.pattern, str(request)):
                    fault.left -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Dropped connections are part of the play: nothing goes to stderr."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for the client's acknowledgement
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    body: bytes
    fault: Fault | None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        self.hub = self.server.hub
        url = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = Request(self.command, url.path, token, self.headers["Host"].partition(":")[0])
        self.fault = self.hub.take_request(request)
        if self.fault and self.fault.kind == "drop upload":
            self.rfile.read(100)
            self.close_connection = True
            return
        self.body = self._read_body()
        if self.fault and self.fault.kind == "status":
            retry = {"Retry-After": "0"} if self.fault.status == 429 else {}
            return self.refuse(self.fault.status, message="as the test asked", headers=retry)
        for methods, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in methods:
                repository = None
                if "name" in match.groupdict():
                    repository = self.hub.repositories.get(match["name"])
                    if repository is None:
                        return self.refuse(404, "RepoNotFound", "Repository not found")
                may_write = token == self.hub.token
                reads = self.command in ("GET", "HEAD") or pattern.endswith("paths-info/(?P<revision>[^/]+)")
                on_store = url.path.startswith("/store/")  # its addresses are signed: no token
                if not (may_write or on_store or (reads and not (repository and repository.private))):
                    return self.refuse(401, message="Invalid username or password.")
                return answer(self, repository, match)
        self.refuse(404, message="no such page")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._send(status, body, {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply({"error": message}, status, about | (headers or {}))

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        """All of `data` or the range that was asked for, as far as the request's fault lets it."""
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if span:
            start, end = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            data = data[start : end + 1]
        self._send(status, data, {"Accept-Ranges": "bytes", **headers})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        kind = self.fault.kind if self.fault else None
        if kind == "short download":
            body = body[: len(body) // 2]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "drop download" else body)
        self.close_connection = self.close_connection or kind == "drop download"

    def commit_of(self, repository: Repository, match: re.Match[str]) -> Commit | None:
        revision = unquote(match.groupdict().get("revision") or "main")
        commit = repository.at(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # The routes' answers, in the order in which a publisher and then a reader meets them.

    def whoami(self, _repository: None, _match: re.Match[str]) -> None:
        self.reply({"type": "user", "name": "tester", "orgs": [{"name": "org", "type": "org"}]})

    def create_repository(self, _repository: None, _match: re.Match[str]) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        known = name in self.hub.repositories
        self.hub.create(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        self.reply({"url": f"{self.hub.endpoint}/datasets/{name}", "id": name}, 409 if known else 200)

    def validate_card(self, _repository: None, _match: re.Match[str]) -> None:
        self.reply({"errors": [], "warnings": []})

    def paths_info(self, repository: Repository, match: re.Match[str]) -> None:
        if commit := self.commit_of(repository, match):
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.reply([commit.files[path].info(path) for path in asked if path in commit.files])

    def preupload(self, repository: Repository, match: re.Match[str]) -> None:
        """Binary files are kept as large ones; `oid` tells the client which files have not changed."""
        if commit := self.commit_of(repository, match):
            answers = []
            for asked in json.loads(self.body)["files"]:
                binary = b"\0" in base64.b64decode(asked["sample"]) or asked["path"].endswith(".parquet")
                old = commit.files.get(asked["path"])
                oid = old and (old.oid if old.content is not None else old.sha256)
                mode = "lfs" if binary else "regular"
                answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.reply({"files": answers})

    def lfs_batch(self, _repository: Repository, _match: re.Match[str]) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            verify = {"href": f"{self.hub.endpoint}/api/verify", "header": {}}
            actions = {"upload": {"href": f"{self.hub.store}/{asked['oid']}", "header": {}}, "verify": verify}
            objects.append(asked if asked["oid"] in self.hub.objects else {**asked, "actions": actions})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, _repository: None, match: re.Match[str]) -> None:
        if hashlib.sha256(self.body).hexdigest() != match["oid"]:
            return self.refuse(400, message="the content does not have this sha256")
        self.hub.objects[match["oid"]] = self.body
        self.reply({})

    def lfs_verify(self, _repository: None, _match: re.Match[str]) -> None:
        asked = json.loads(self.body)
        there = self.hub.objects.get(asked["oid"])
        self.reply({}, 200 if there is not None and len(there) == asked["size"] else 404)

    def make_commit(self, repository: Repository, match: re.Match[str]) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files: dict[str, File] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Hub.small(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = File(value["oid"], len(self.hub.objects[value["oid"]]), None)
            else:
                return self.refuse(400, message=f"{line['key']} {value.get('path')}: no such object, or not served here")
        commit = self.hub.commit(repository.name, lines[0]["value"]["summary"], files)
        self.reply({"commitOid": commit.sha, "commitUrl": f"{self.hub.endpoint}/datasets/{repository.name}/commit/x"})

    def dataset_info(self, repository: Repository, match: re.Match[str]) -> None:
        if commit := self.commit_of(repository, match):
            files = [{"rfilename": path} for path in sorted(commit.files)]
            about = {"id": repository.name, "sha": commit.sha, "private": repository.private, "lastModified": DATE}
            self.reply({**about, "tags": [], "downloads": 0, "likes": 0, "siblings": files})

    def tree(self, repository: Repository, match: re.Match[str]) -> None:
        if commit := self.commit_of(repository, match):
            self.reply([file.info(path) for path, file in sorted(commit.files.items())])

    def resolve(self, repository: Repository, match: re.Match[str]) -> None:
        commit = self.commit_of(repository, match)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(unquote(match["path"]))
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        elif file.content is not None:
            self.send_file(file.content, {**headers, "ETag": f'"{file.oid}"'})
        else:
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.store}/{file.sha256}"})

    def lfs_get(self, _repository: None, match: re.Match[str]) -> None:
        if match["oid"] not in self.hub.objects:
            return self.refuse(404, message="no such object")
        self.send_file(self.hub.objects[match["oid"]], {"ETag": f'"{match["oid"]}"'})


ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create_repository),
    (("POST",), r"/api/validate-yaml", _Handler.validate_card),
    (("POST",), DATASET + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("POST",), DATASET + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), r"/datasets/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/store/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (("POST",), r"/api/verify", _Handler.lfs_verify),
    (("POST",), DATASET + r"/commit/(?P<revision>[^/]+)", _Handler.make_commit),
    (("GET",), DATASET + r"(/revision/(?P<revision>[^/]+))?", _Handler.dataset_info),
    (("GET",), DATASET + r"/tree/(?P<revision>[^/]+)", _Handler.tree),
    (
        ("GET", "HEAD"),
        r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
    (("GET", "HEAD"), r"/store/(?P<oid>[0-9a-f]{64})", _Handler.lfs_get),
]


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
