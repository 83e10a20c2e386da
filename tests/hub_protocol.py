"""The public HTTP protocol of a Hub over repositories in memory; `hub_server.py` serves it.

Repositories of models: who may read and write them, commits, branches, tags, pull requests, LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

LFS_ABOVE = 10_000  # bytes; every .safetensors file is in LFS too
TIME = "2026-01-01T00:00:00.000Z"


class Blob(NamedTuple):
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Its id in git, if it is not in LFS."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


Files = dict[str, Blob]


@dataclass
class Repository:
    """Commits by id, and the names of some of them."""

    owner: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, message: str) -> str:
        contents = sorted((name, blob.oid) for name, blob in files.items())
        oid = hashlib.sha1(repr((message, len(self.commits), contents)).encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str:
        """The commit of a branch, tag, pull request or commit."""
        oid = {**self.pulls, **self.tags, **self.branches}.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision: str) -> Files:
        return self.commits[self.resolve(revision)]

    def head(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of a revision's files, for tests."""
        return {name: blob.data for name, blob in self.files(revision).items()}


class Call(NamedTuple):
    """A request; ``path`` is without the query."""

    method: str
    path: str
    query: dict[str, str]
    token: str | None
    range: str | None
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


class Answer(NamedTuple):
    """A response."""

    status: int
    body: bytes
    headers: dict[str, str]


class Refused(Exception):
    """The Hub's answer to what it does not do."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


class Hub:
    """Repositories, and answers to requests about them.

    Attributes:
        accounts: names by token. The token "read-token" may not write.
        objects: contents of LFS files that were uploaded, by sha256.
        elsewhere: contents of LFS files on the other host, by sha256.
    """

    endpoint: str

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts = {"user-token": "user", "read-token": "user", "other-token": "other"}
        self.objects: dict[str, bytes] = {}
        self.elsewhere: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def add(
        self, name: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False
    ) -> Repository:
        """Commit files to main; the repository is made if there is none."""
        repo = self.repositories.setdefault(name, Repository(name.split("/")[0], private, gated))
        blobs = {path: Blob(data, is_lfs(path, len(data))) for path, data in files.items()}
        repo.branches["main"] = repo.commit(blobs, "Planted by a test")
        return repo

    def answer(self, call: Call) -> Answer:
        try:
            with self.lock:
                for methods, pattern, respond in ROUTES:
                    found = re.fullmatch(pattern, call.path)
                    if found and call.method in methods.split():
                        return respond(self, call, *map(unquote, found.groups("")))
            raise Refused(404, f"no such page: {call.method} {call.path}")
        except Refused as refused:
            return refused.answer

    # -- who asks -------------------------------------------------------------------------------

    def account(self, call: Call, *, needed: bool = False) -> str | None:
        if call.token is None and needed:
            raise Refused(401, "Invalid username or password.")
        if call.token is not None and call.token not in self.accounts:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.accounts[call.token] if call.token else None

    def readable(self, call: Call, name: str) -> Repository:
        account = self.account(call)
        repo = self.repositories.get(name)
        if repo is None or (repo.private and account != repo.owner):
            self.account(
                call, needed=True
            )  # the Hub does not tell strangers which of the two it is
            raise Refused(404, "Repository not found", "RepoNotFound")
        if repo.gated and account != repo.owner and "/resolve/" in call.path:
            raise Refused(403, f"Access to model {name} is restricted", "GatedRepo")
        return repo

    def writable(self, call: Call, name: str) -> Repository:
        repo = self.readable(call, name)
        account = self.account(call, needed=True)
        opening = call.query.get("create_pr") or "/lfs/" in call.path
        if call.token == "read-token" or (account != repo.owner and not opening):
            raise Refused(403, "Forbidden: pass a token with the right to write")
        return repo

    # -- what is asked --------------------------------------------------------------------------

    def create(self, call: Call) -> Answer:
        asked, account = call.json, self.account(call, needed=True)
        owner = asked.get("organization") or account
        name = f"{owner}/{asked['name']}"
        if call.token == "read-token" or owner != account:
            raise Refused(403, f"You don't have the rights to create a model under {owner}")
        url = f"{self.endpoint}/{name}"
        if name in self.repositories:
            return json_answer({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        repo = self.repositories[name] = Repository(str(owner), bool(private))
        first = {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs\n", False)}
        repo.branches["main"] = repo.commit(first, "initial commit")
        return json_answer({"url": url, "name": name})

    def validate_yaml(self, call: Call) -> Answer:
        content = call.json["content"]
        if content.startswith("---") and "\n---" not in content[3:]:
            return json_answer({"errors": [{"message": "unclosed front matter"}]}, 400)
        return json_answer({"errors": [], "warnings": []})

    def info(self, call: Call, name: str, revision: str) -> Answer:
        repo = self.readable(call, name)
        oid = repo.resolve(revision or "main")
        siblings = [
            {"rfilename": path}
            | ({"size": len(blob.data), "blobId": blob.oid} if "blobs" in call.query else {})
            for path, blob in sorted(repo.commits[oid].items())
        ]
        facts = {"_id": "0" * 24, "id": name, "modelId": name, "author": repo.owner, "sha": oid}
        facts |= {"private": repo.private, "gated": "auto" if repo.gated else False}
        facts |= {"disabled": False, "lastModified": TIME, "createdAt": TIME, "tags": []}
        return json_answer({**facts, "siblings": siblings})

    def tree(self, call: Call, name: str, revision: str, folder: str) -> Answer:
        files = self.readable(call, name).files(revision)
        entries = []
        for path, blob in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid}
            entry["size"] = len(blob.data)
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "pointerSize": 134, "size": len(blob.data)}
            if path.startswith(folder):
                entries.append(entry)
        return json_answer(entries)

    def refs(self, call: Call, name: str) -> Answer:
        repo = self.readable(call, name)

        def listed(names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": k, "ref": f"refs/{k}", "targetCommit": v} for k, v in names.items()]

        refs = {"branches": listed(repo.branches), "tags": listed(repo.tags), "converts": []}
        return json_answer(refs)

    def make_branch(self, call: Call, name: str, branch: str) -> Answer:
        repo = self.writable(call, name)
        if call.method == "DELETE":
            del repo.branches[branch]
        else:
            repo.branches[branch] = repo.resolve(call.json.get("startingPoint", "main"))
        return json_answer({})

    def preupload(self, call: Call, name: str, revision: str) -> Answer:
        files = self.writable(call, name).files(revision)
        asked = []
        for file in call.json["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            oid = files[file["path"]].etag if file["path"] in files else None
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            asked.append(entry)
        return json_answer({"files": asked})

    def lfs_batch(self, call: Call, name: str) -> Answer:
        self.writable(call, name)
        base = f"{self.endpoint}/lfs/{name}"
        objects = []
        for asked in call.json["objects"]:
            oid = asked["oid"]
            links = {"upload": {"href": f"{base}/put/{oid}"}, "verify": {"href": f"{base}/verify"}}
            objects.append(asked if oid in self.objects else {**asked, "actions": links})
        return json_answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, call: Call, name: str, oid: str) -> Answer:
        if hashlib.sha256(call.body).hexdigest() != oid:
            raise Refused(400, "the content is not that of its name")
        self.objects[oid] = call.body
        return Answer(200, b"", {})

    def lfs_verify(self, call: Call, name: str) -> Answer:
        self.writable(call, name)
        if len(self.objects.get(call.json["oid"], b"")) != call.json["size"]:
            raise Refused(404, "no such object")
        return json_answer({})

    def commit(self, call: Call, name: str, revision: str) -> Answer:
        repo = self.writable(call, name)
        opening = bool(call.query.get("create_pr"))
        files, summary = dict(repo.files(revision)), ""
        names = repo.pulls if revision in repo.pulls else repo.branches
        if not opening and revision not in names:
            raise Refused(400, f"{revision} is not a branch")
        for line in call.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = Blob(self.objects[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, summary)
        made = {"success": True, "commitUrl": f"{self.endpoint}/{name}/commit/{oid}"}
        made |= {"commitOid": oid, "hookOutput": ""}
        if opening:
            number = len(repo.pulls) + 1
            names, revision = repo.pulls, f"refs/pr/{number}"
            made["pullRequestUrl"] = f"{self.endpoint}/{name}/discussions/{number}"
        names[revision] = oid
        return json_answer(made)

    def resolve(self, call: Call, name: str, revision: str, path: str) -> Answer:
        repo = self.readable(call, name)
        oid = repo.resolve(revision)
        if path not in repo.commits[oid]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        blob = repo.commits[oid][path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return ranged(call, blob.data, headers)
        self.elsewhere[blob.sha256] = blob.data  # on another host, as on the Hub
        host = self.endpoint.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.etag}"'}
        return Answer(302, b"", {**headers, "Location": f"{host}/cdn/{blob.sha256}"})

    def cdn(self, call: Call, oid: str) -> Answer:
        return ranged(call, self.elsewhere[oid], {"ETag": f'"{oid}"'})


def is_lfs(path: str, size: int) -> bool:
    return size > LFS_ABOVE or (path.endswith(".safetensors") and size > 0)


def json_answer(content: object, status: int = 200, **headers: str) -> Answer:
    body = json.dumps(content).encode()
    return Answer(status, body, {"Content-Type": "application/json", **headers})


def ranged(call: Call, data: bytes, headers: dict[str, str]) -> Answer:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", call.range or "")
    if not found:
        return Answer(200, data, headers)
    first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Answer(206, data[first : last + 1], headers)


_NAME, _PART = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("GET", rf"/api/models/{_NAME}(?:/revision/{_PART})?", Hub.info),
    ("GET", rf"/api/models/{_NAME}/tree/{_PART}/?(.*)", Hub.tree),
    ("GET", rf"/api/models/{_NAME}/refs", Hub.refs),
    ("POST DELETE", rf"/api/models/{_NAME}/branch/{_PART}", Hub.make_branch),
    ("POST", rf"/api/models/{_NAME}/preupload/{_PART}", Hub.preupload),
    ("POST", rf"/api/models/{_NAME}/commit/{_PART}", Hub.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Hub.lfs_batch),
    ("PUT", rf"/lfs/{_NAME}/put/{_PART}", Hub.lfs_put),
    ("POST", rf"/lfs/{_NAME}/verify", Hub.lfs_verify),
    ("GET HEAD", rf"/{_NAME}/resolve/{_PART}/(.+)", Hub.resolve),
    ("GET HEAD", rf"/cdn/{_PART}", Hub.cdn),
]
