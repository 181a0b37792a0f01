"""A small Hub on this machine: the HTTP calls the real client makes to push and pull models, and ways to fail.

Only what tpssl_hf needs: models, Spaces, data sets, branches, pull requests, LFS in single parts, collections, who one
is. Nothing is persistent.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from loopback_transport import Fault, Transport

Files = dict[str, bytes]
TOKEN = "hf_" + "CANARY" * 6
LARGE = (".safetensors", ".png")  # what the Hub keeps outside git


@dataclass
class Repository:
    private: bool = False
    sdk: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: Files, message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class LoopbackHub(ThreadingHTTPServer):
    """The server; ``token`` is the only one that may write, and only below the owners ``me`` and ``team``.

    ``repositories`` holds models by their id, Spaces as ``spaces/owner/name`` and data sets as
    ``datasets/owner/name``; ``role`` is what the token is said to be for.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.role = token, "write"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.collected: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, pattern: str, what: str, times: int = 1000) -> Fault:
        self.faults.append(Fault(pattern, what, times))
        return self.faults[-1]

    def head(self, repo: str, branch: str = "main") -> Files:
        found = self.repositories[repo]
        return found.commits[found.branches[branch]]

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is part of the tests."""


@contextlib.contextmanager
def running(token: str) -> Iterator[LoopbackHub]:
    with LoopbackHub(token) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            for fault in hub.faults:
                fault.go_on.set()
            hub.shutdown()
            thread.join()


class Handler(Transport):
    server: LoopbackHub

    def _repository(self, repo: str, *, write: bool = False) -> Repository | None:
        """Return a repository, or answer as the Hub does where it is missing or not for this client."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.authorized):
            self._json(
                404 if self.authorized else 401, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"}
            )
            return None
        if write and not self._may_write(repo.split("/")[-2]):
            return None
        return found

    def _may_write(self, owner: str) -> bool:
        if not self.authorized:
            self._json(401, {"error": "Invalid username or password."})
        elif owner not in ("me", "team"):
            self._json(403, {"error": "You don't have the rights to create a model under this namespace"})
        else:
            return True
        return False

    def _sha(self, repository: Repository, revision: str) -> str | None:
        sha = repository.at(revision)
        if sha is None:
            self._json(404, {"error": f"Invalid rev id: {revision}"}, **{"X-Error-Code": "RevisionNotFound"})
        return sha

    def create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or "me"
        if not self._may_write(owner):
            return
        place = {"space": "spaces/", "dataset": "datasets/"}.get(wanted.get("type"), "")
        repo = f"{place}{owner}/{wanted['name']}"
        with self.server.lock:
            there = repo in self.server.repositories
            if not there:
                made = self.server.repositories[repo] = Repository(
                    wanted.get("visibility") == "private", wanted.get("sdk")
                )
                made.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json(409 if there else 200, {"url": f"{self.server.url}/{repo}"})

    def branch(self, repo: str, name: str) -> None:
        found = self._repository(repo, write=True)
        if found is not None:
            there = name in found.branches
            found.branches.setdefault(name, found.branches["main"])
            self._json(409 if there else 200, {})

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self._repository(repo)
        sha = found and self._sha(found, revision or "main")
        if found is not None and sha:
            names = [{"rfilename": name} for name in found.commits[sha]]
            name = repo.removeprefix("spaces/").removeprefix("datasets/")
            self._json(200, {"id": name, "modelId": name, "sha": sha, "private": found.private, "siblings": names})

    def tree(self, repo: str, revision: str) -> None:
        found = self._repository(repo)
        sha = found and self._sha(found, revision)
        if found is not None and sha:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
                for name, content in found.commits[sha].items()
            ]
            self._json(200, entries)

    def preupload(self, repo: str, revision: str) -> None:
        found = self._repository(repo, write=True)
        sha = found and self._sha(found, revision)
        if found is not None and sha:
            there = found.commits[sha]
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _remote_oid(entry["path"], there.get(entry["path"])),
                }
                for entry in json.loads(self.body)["files"]
            ]
            self._json(200, {"files": files})

    def batch(self, repo: str) -> None:
        if self._repository(repo, write=True) is not None:
            objects = []
            for entry in json.loads(self.body)["objects"]:
                actions = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}", "header": {}}}
                objects.append({**entry, **({} if entry["oid"] in self.server.blobs else {"actions": actions})})
            self._json(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() == oid:
            self.server.blobs[oid] = self.body
        self._json(200 if oid in self.server.blobs else 400, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self._repository(repo, write=True)
        sha = found and self._sha(found, revision)
        if found is None or not sha:
            return
        files, summary = dict(found.commits[sha]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                summary = value["summary"]
                if value.get("parentCommit", sha) != sha and "create_pr" not in self.query:
                    self._json(412, {"error": "A commit has happened since. Please refresh and try again."})
                    return
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                large = entry["key"] == "lfsFile"
                files[value["path"]] = self.server.blobs[value["oid"]] if large else base64.b64decode(value["content"])
        pull = "create_pr" in self.query
        number = sum(name.startswith("refs/pr/") for name in found.branches) + 1
        made = found.add(f"refs/pr/{number}" if pull else revision, files, summary)
        if self.held is not None:
            self.held.reached.set()
            self.held.go_on.wait(30)
        answer = {"commitUrl": f"{self.server.url}/{repo}/commit/{made}", "commitOid": made}
        self._json(
            200, answer | ({"pullRequestUrl": f"{self.server.url}/{repo}/discussions/{number}"} if pull else {})
        )

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._repository(repo)
        sha = found and self._sha(found, revision)
        if found is None or not sha:
            return
        content = found.commits[sha].get(name)
        headers = {"X-Repo-Commit": sha}
        if content is None:
            self._json(404, {"error": "Entry not found"}, **headers, **{"X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, content, {**headers, "ETag": f'"{_remote_oid(name, content)}"'})

    def collect(self, slug: str) -> None:
        if self._may_write(slug.partition("/")[0]):
            item = json.loads(self.body)["item"]
            self.server.collected.append((slug, item["id"]))
            times = {"lastUpdated": "2025-01-01T00:00:00.000Z", "position": 0, "theme": "green", "upvotes": 0}
            self._json(
                200, {"slug": slug, "title": "t", "owner": {"name": "me"}, "private": False, "items": [], **times}
            )

    def whoami(self) -> None:
        if not self.authorized:
            self._json(401, {"error": "Invalid username or password."})
            return
        rights = {"accessToken": {"displayName": "t", "role": self.server.role}, "type": "access_token"}
        orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]
        self._json(200, {"type": "user", "name": "me", "orgs": orgs, "auth": rights})

    def yaml(self) -> None:
        self._json(200, {"errors": [], "warnings": []})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _remote_oid(name: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_oid(content)


NAME = r"[\w.\-]+/[\w.\-]+"
API, FILE = rf"(?:models/({NAME})|((?:spaces|datasets)/{NAME}))", rf"((?:(?:spaces|datasets)/)?{NAME})"
Handler.routes = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.yaml),
    ("POST /api/collections/(.+)/items", Handler.collect),
    (f"POST /api/{API}/branch/(.+)", Handler.branch),
    (f"GET /api/{API}", Handler.info),
    (f"GET /api/{API}/revision/(.+)", Handler.info),
    (f"GET /api/{API}/tree/([^/]+|refs/pr/\\d+)", Handler.tree),
    (f"POST /api/{API}/preupload/(.+)", Handler.preupload),
    (f"POST /{FILE}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT /lfs/(.+)", Handler.put),
    (f"POST /api/{API}/commit/(.+)", Handler.commit),
    (f"(?:GET|HEAD) /{FILE}/resolve/([^/]+|refs/pr/\\d+)/(.+)", Handler.resolve),
]


def ask(hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of this process ask ``hub``, and keep what it downloads in ``cache``."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
