"""A small Hub on loopback: the public HTTP protocol over repositories in memory, and its faults.

Repositories of models: who may read and write them, commits, branches, tags, pull requests, LFS. What
a client asks is kept in `HubServer.log`; `HubServer.faults` makes it answer badly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ABOVE = 10_000  # bytes; also all .safetensors
PAGE = 3  # entries on a page of a listing, so that there are pages
TIME = "2026-01-01T00:00:00.000Z"


class Blob(NamedTuple):
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return f"{text}size {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        """The id git gives it."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


Files = dict[str, Blob]


@dataclass
class Repository:
    """Commits by id, and the names that stand for them."""

    owner: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, message: str) -> str:
        seed = json.dumps(
            [message, len(self.commits), sorted((n, b.oid) for n, b in files.items())]
        )
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def head(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, as a test wants them."""
        return {
            name: blob.data for name, blob in self.commits[self.resolve(revision) or ""].items()
        }


class Request(NamedTuple):
    """One line of the log."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int


@dataclass
class Fault:
    """What goes wrong with requests whose ``"METHOD path?query"`` the pattern finds.

    Args:
        pattern: regular expression.
        times: for how many requests.
        status: answer with this status …
        headers: … and these headers.
        cut: end the connection after this many bytes of the body …
        reset: … with a reset in place of a clean end.
        delay: wait this many seconds first.
        act: do this first.
    """

    pattern: str
    times: int = 1_000_000
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    delay: float = 0.0
    act: Callable[[], object] | None = None


class HubServer:
    """Serves from a thread of its own until `close`.

    Attributes:
        endpoint: for ``HF_ENDPOINT``.
        accounts: names by token; "read…" tokens may not write.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts = {"user-token": "user", "read-token": "user", "other-token": "other"}
        self.objects: dict[str, bytes] = {}  # what was uploaded by LFS, by sha256
        self.elsewhere: dict[str, bytes] = {}  # what the other host gives
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.handler = Handler
        self.connections: set[socket.socket] = set()
        self._open(0)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _open(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self.handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # closed by its client meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens at the address for the length of a block."""
        port = self._server.server_address[1]
        self.close()
        try:
            yield
        finally:
            self._open(port)

    def add(
        self, name: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False
    ) -> Repository:
        """A repository with one commit on main; one that is there gets another commit."""
        repo = self.repositories.setdefault(name, Repository(name.split("/")[0], private, gated))
        blobs = {path: Blob(data, _is_lfs(path, len(data))) for path, data in files.items()}
        repo.branches["main"] = repo.commit(blobs, "Planted by a test")
        return repo

    @contextmanager
    def fault(self, pattern: str, **kinds: Any) -> Iterator[Fault]:
        """A fault for the length of a block."""
        fault = Fault(pattern, **kinds)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    @contextmanager
    def recorded(self) -> Iterator[list[Request]]:
        """The requests of a block, complete once it has ended."""
        first = len(self.log)
        requests: list[Request] = []
        yield requests
        requests += self.log[first:]

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


def _is_lfs(path: str, size: int) -> bool:
    return size > LFS_ABOVE or (path.endswith(".safetensors") and size > 0)


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server_hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server_hub.connections.discard(self.connection)
        with suppress(OSError):  # the client went away
            super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client went away
            self.close_connection = True

    # -- one request ----------------------------------------------------------------------------

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._read_chunks()
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.fault = self.server_hub.take_fault(f"{self.command} {self.path}")
        if self.fault:
            time.sleep(self.fault.delay)
            if self.fault.act:
                self.fault.act()
        try:
            if self.fault and self.fault.status:
                headers = self.fault.headers
                self._send(self.fault.status, b'{"error": "planted"}', headers)
                return
            with self.server_hub.lock:
                answer = self._route(parts.path)
            self._send(*answer)
        except _Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.server_hub.log.append(
            Request(self.command, self.path, self.headers.get("Range"), self._token(), status)
        )
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault.cut if self.fault else None
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and self.fault:
            self.wfile.flush()
            if self.fault.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                time.sleep(0.1)  # or the reset overtakes what was sent
                self.connection.close()
            self.close_connection = True

    def _json(self, content: object, status: int = 200, **headers: str) -> tuple[int, bytes, Any]:
        return status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}

    # -- who asks -------------------------------------------------------------------------------

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _account(self) -> str | None:
        token = self._token()
        if token is None:
            return None
        if token not in self.server_hub.accounts:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.server_hub.accounts[token]

    def _readable(self, name: str) -> Repository:
        account = self._account()
        repo = self.server_hub.repositories.get(name)
        if repo is None or (repo.private and account != repo.owner):
            if account is None:  # the Hub does not tell strangers which of the two it is
                raise _Refused(401, "Invalid username or password.")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if repo.gated and account != repo.owner and "/resolve/" in self.path:
            raise _Refused(403, f"Access to model {name} is restricted", "GatedRepo")
        return repo

    def _writable(self, name: str) -> Repository:
        repo = self._readable(name)
        if self._account() is None:
            raise _Refused(401, "Invalid username or password.")
        opening = self.query.get("create_pr") or "/lfs/" in self.path
        if self._token() == "read-token" or (self._account() != repo.owner and not opening):
            raise _Refused(403, "Forbidden: pass a token with the right to write")
        return repo

    # -- what is asked --------------------------------------------------------------------------

    def _route(self, path: str) -> tuple[int, bytes, Any]:
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return answer(self, *map(unquote, found.groups("")))
        raise _Refused(404, f"no such page: {self.command} {path}")

    def whoami(self) -> tuple[int, bytes, Any]:
        account = self._account()
        if account is None:
            raise _Refused(401, "Invalid username or password.")
        return self._json({"type": "user", "name": account, "orgs": [], "auth": {}})

    def create(self) -> tuple[int, bytes, Any]:
        asked, account = json.loads(self.body), self._account()
        if account is None:
            raise _Refused(401, "Invalid username or password.")
        owner = asked.get("organization") or account
        name = f"{owner}/{asked['name']}"
        if self._token() == "read-token" or owner != account:
            raise _Refused(403, f"You don't have the rights to create a model under {owner}")
        url = f"{self.server_hub.endpoint}/{name}"
        if name in self.server_hub.repositories:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        repo = self.server_hub.repositories[name] = Repository(owner, bool(private))
        first = {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs\n", False)}
        repo.branches["main"] = repo.commit(first, "initial commit")
        return self._json({"url": url, "name": name})

    def validate_yaml(self) -> tuple[int, bytes, Any]:
        content = json.loads(self.body)["content"]
        if content.startswith("---") and "\n---" not in content[3:]:
            return self._json({"errors": [{"message": "unclosed front matter"}]}, 400)
        return self._json({"errors": [], "warnings": []})

    def info(self, name: str, revision: str) -> tuple[int, bytes, Any]:
        repo = self._readable(name)
        oid, files = self._files(repo, revision or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(files)]
        if "blobs" in self.query:
            for entry in siblings:
                blob = files[entry["rfilename"]]
                entry |= {"size": len(blob.data), "blobId": blob.oid}
        return self._json(
            {
                "_id": "0" * 24,
                "id": name,
                "modelId": name,
                "author": repo.owner,
                "sha": oid,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "lastModified": TIME,
                "createdAt": TIME,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, name: str, revision: str, folder: str) -> tuple[int, bytes, Any]:
        _, files = self._files(self._readable(name), revision)
        start = int(self.query.get("cursor", 0))
        paths = [path for path in sorted(files) if path.startswith(f"{folder}/" if folder else "")]
        entries = []
        for path in paths[start : start + PAGE]:
            blob = files[path]
            entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
            if blob.lfs:
                size = len(blob.pointer)
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": size}
            entries.append(entry)
        headers = {}
        if start + PAGE < len(paths):
            url = f"{self.server_hub.endpoint}{urlsplit(self.path).path}?recursive=true"
            headers["Link"] = f'<{url}&cursor={start + PAGE}>; rel="next"'
        return self._json(entries, **headers)

    def refs(self, name: str) -> tuple[int, bytes, Any]:
        repo = self._readable(name)

        def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [
                {"name": short, "ref": f"{prefix}{short}", "targetCommit": oid}
                for short, oid in names.items()
            ]

        return self._json(
            {
                "branches": listed(repo.branches, "refs/heads/"),
                "tags": listed(repo.tags, "refs/tags/"),
                "converts": [],
                "pullRequests": listed(repo.pulls, ""),
            }
        )

    def make_branch(self, name: str, branch: str) -> tuple[int, bytes, Any]:
        repo = self._writable(name)
        if self.command == "DELETE":
            del repo.branches[branch]
            return self._json({})
        if branch in repo.branches:
            raise _Refused(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.branches[branch], _ = self._files(repo, start)
        return self._json({})

    def make_tag(self, name: str, revision: str) -> tuple[int, bytes, Any]:
        repo = self._writable(name)
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise _Refused(409, "Tag already exists")
        repo.tags[tag], _ = self._files(repo, revision)
        return self._json({})

    def preupload(self, name: str, revision: str) -> tuple[int, bytes, Any]:
        _, files = self._files(self._writable(name), revision)
        return self._json(
            {
                "files": [
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if _is_lfs(asked["path"], asked["size"]) else "regular",
                        "shouldIgnore": False,
                        "oid": files[asked["path"]].etag if asked["path"] in files else None,
                    }
                    for asked in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, name: str) -> tuple[int, bytes, Any]:
        self._writable(name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_hub.objects:
                base = f"{self.server_hub.endpoint}/lfs/{name}"
                entry["actions"] = {
                    "upload": {"href": f"{base}/put/{asked['oid']}"},
                    "verify": {"href": f"{base}/verify"},
                }
            objects.append(entry)
        return self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, name: str, oid: str) -> tuple[int, bytes, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content is not that of its name")
        self.server_hub.objects[oid] = self.body
        return 200, b"", {}

    def lfs_verify(self, name: str) -> tuple[int, bytes, Any]:
        self._writable(name)
        asked = json.loads(self.body)
        if len(self.server_hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, "no such object")
        return self._json({})

    def commit(self, name: str, revision: str) -> tuple[int, bytes, Any]:
        repo = self._writable(name)
        _, old = self._files(repo, revision)
        opening = bool(self.query.get("create_pr"))
        if not opening and revision not in repo.branches and revision not in repo.pulls:
            raise _Refused(400, f"{revision} is not a branch")
        files, summary = dict(old), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.server_hub.objects:
                    raise _Refused(400, f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(self.server_hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, f"unknown key {key}")
        oid = repo.commit(files, summary)
        answer = {
            "success": True,
            "commitUrl": f"{self.server_hub.endpoint}/{name}/commit/{oid}",
            "commitOid": oid,
            "hookOutput": "",
        }
        if opening:
            number = len(repo.pulls) + 1
            repo.pulls[f"refs/pr/{number}"] = oid
            answer["pullRequestUrl"] = f"{self.server_hub.endpoint}/{name}/discussions/{number}"
        else:
            (repo.pulls if revision in repo.pulls else repo.branches)[revision] = oid
        return self._json(answer)

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, Any]:
        oid, files = self._files(self._readable(name), revision)
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        blob = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:  # lies on another host, as on the Hub
            self.server_hub.elsewhere[blob.sha256] = blob.data
            headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.etag}"'}
            host = self.server_hub.endpoint.replace("127.0.0.1", "localhost")
            headers["Location"] = f"{host}/cdn/{blob.sha256}"
            return 302, b"", headers
        return self._ranged(blob.data, headers)

    def cdn(self, oid: str) -> tuple[int, bytes, Any]:
        return self._ranged(self.server_hub.elsewhere[oid], {"ETag": f'"{oid}"'})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> tuple[int, bytes, Any]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not found:
            return 200, data, headers
        first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        if first > last:
            raise _Refused(416, "Range not satisfiable")
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return 206, data[first : last + 1], headers

    def _files(self, repo: Repository, revision: str) -> tuple[str, Files]:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo.commits[oid]


_NAME, _PART = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., tuple[int, bytes, Any]]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"/api/models/{_NAME}(?:/revision/{_PART})?", _Handler.info),
    ("GET", rf"/api/models/{_NAME}/tree/{_PART}/?(.*)", _Handler.tree),
    ("GET", rf"/api/models/{_NAME}/refs", _Handler.refs),
    ("POST DELETE", rf"/api/models/{_NAME}/branch/{_PART}", _Handler.make_branch),
    ("POST", rf"/api/models/{_NAME}/tag/{_PART}", _Handler.make_tag),
    ("POST", rf"/api/models/{_NAME}/preupload/{_PART}", _Handler.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/{_PART}", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", rf"/lfs/{_NAME}/put/{_PART}", _Handler.lfs_put),
    ("POST", rf"/lfs/{_NAME}/verify", _Handler.lfs_verify),
    ("GET HEAD", rf"/{_NAME}/resolve/{_PART}/(.+)", _Handler.resolve),
    ("GET HEAD", rf"/cdn/{_PART}", _Handler.cdn),
]
