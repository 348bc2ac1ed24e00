"""A Hub on this machine: repositories with commits, served over HTTP, with what loading and uploading need."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

#: The Hub's error code for a status.
CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class Request(NamedTuple):
    """One request: the path with its query, the headers, the body."""

    path: str
    headers: dict[str, str]
    body: bytes


class Hub:
    """Repositories by name: commits by their hash, the branch `main`, and every request received.

    `failures` maps the beginning of a path to what happens instead of an answer: a status, or None to cut the connection. If
    `storage` is an address, requests for weights are redirected there.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.main: dict[str, str] = {}
        self.requests: list[Request] = []
        self.failures: dict[str, int | None] = {}
        self.storage = ""
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes], without: Sequence[str] = ()) -> str:
        """Add files to `main` and remove some; return the new commit's hash."""
        merged = {name: data for name, data in {**self.files(repo, "main"), **files}.items() if name not in without}
        sha = hashlib.sha1(
            repr(sorted((name, hashlib.sha1(data).digest()) for name, data in merged.items())).encode()
        ).hexdigest()
        self.commits.setdefault(repo, {})[sha] = merged
        self.main[repo] = sha
        return sha

    def commit_folder(self, repo: str, folder: Path) -> str:
        return self.commit(
            repo, {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        )

    def sha(self, repo: str, revision: str) -> str | None:
        if revision == "main":
            return self.main.get(repo)
        return revision if revision in self.commits.get(repo, {}) else None

    def files(self, repo: str, revision: str) -> dict[str, bytes]:
        sha = self.sha(repo, revision)
        return self.commits[repo][sha] if sha else {}


@contextmanager
def running():
    """Serve a hub on a local port for the length of a block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        if not self._fails():
            self._resolve(body=False)

    def do_GET(self):
        if self._fails():
            return None
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] != ["api", "models"]:
            return self._resolve(body=True)
        repo, rest = "/".join(parts[2:4]), parts[4:]
        revision = rest[1] if rest[:1] in (["revision"], ["tree"]) else "main"
        sha = self.hub.sha(repo, revision)
        if sha is None:
            return self._missing(repo, revision)
        files = self.hub.files(repo, revision)
        if rest[:1] == ["tree"]:
            return self._answer(200, [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self._answer(200, {"id": repo, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._fails(data):
            return None
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[-1] == "create":
            request = json.loads(data)
            repo = f"{request.get('organization') or 'me'}/{request['name']}"
            self.hub.commit(repo, {})
            return self._answer(200, {"url": f"{self.hub.url}/{repo}"})
        if parts[1:2] == ["validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        repo = "/".join(parts[2:4])
        if parts[4] == "preupload":
            request = json.loads(data)
            return self._answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in request["files"]]}
            )
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        sha = self.hub.commit(repo, files, deleted)
        return self._answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def _resolve(self, body: bool):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if len(parts) < 5 or parts[2] != "resolve":
            return self._answer(404, {"error": "no such page"})
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        sha = self.hub.sha(repo, revision)
        if sha is None:
            return self._missing(repo, revision, body)
        data = self.hub.files(repo, revision).get(name)
        if data is None:
            return self._answer(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, body)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"', "X-Linked-Size": str(len(data))}
        if self.hub.storage and name.endswith(".safetensors"):
            return self._answer(302, "", {**headers, "Location": f"{self.hub.storage}/{'/'.join(parts)}"}, body)
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
        return None

    def _fails(self, data: bytes = b"") -> bool:
        """Record a request; if it is to fail, fail it and return True."""
        self.hub.requests.append(Request(unquote(self.path), dict(self.headers), data))
        path = unquote(self.path).lstrip("/") + "/"
        for beginning, status in self.hub.failures.items():
            if path.startswith(beginning):
                if status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    code = {"X-Error-Code": CODES[status]} if status in CODES else {}
                    self._answer(status, {"error": f"status {status}"}, code, self.command != "HEAD")
                return True
        return False

    def _missing(self, repo: str, revision: str, body: bool = True):
        code = "RevisionNotFound" if repo in self.hub.commits else "RepoNotFound"
        return self._answer(404, {"error": f"no {revision} of {repo}"}, {"X-Error-Code": code}, body)

    def _answer(self, status: int, value, headers=None, body: bool = True):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
