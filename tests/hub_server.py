# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine: the part of its HTTP protocol that pushing and loading a model uses.

A repository has branches of commits, a commit maps paths to files, and a file is kept once by its sha256.
`Hub.fail` makes the next requests of one kind fail with a status; `Hub.seen` lists what was asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKEN = "hf_test"  # the one account, "me"


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # commit -> path -> sha256
    refs: dict[str, str] = field(default_factory=dict)  # branch -> commit

    def commit(self, branch: str, files: dict[str, str], onto: str | None = None) -> str:
        before = self.refs.get(onto or branch, "")
        oid = hashlib.sha1(f"{before} {len(self.commits)} {sorted(files.items())}".encode()).hexdigest()
        self.commits[oid] = files
        self.refs[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Failure:
    kind: str
    status: int
    times: int
    headers: dict[str, str]


class Hub:
    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.seen: list[str] = []
        self.url = ""
        self.cut = 0  # bytes after which the next download breaks off
        self.stall = ("", 0)  # a kind of request, and how many are answered before none is
        self.stalled, self.gone = threading.Event(), threading.Event()
        self.moves: list[Callable[[], None]] = []  # called one by one, after each file that is resolved

    def fail(self, kind: str, status: int, times: int = 1000, **headers: str) -> None:
        """Answer the next `times` requests of `kind` by `status`; status 0 drops the connection."""
        self.failures.append(Failure(kind, status, times, headers))

    def count(self, kind: str) -> int:
        return sum(line.startswith(f"{kind} ") for line in self.seen)

    def file(self, repo: str, path: str, revision: str = "main") -> bytes:
        held = self.repos[repo]
        return self.blobs[held.commits[held.find(revision)][path]]

    def files(self, repo: str, revision: str = "main") -> set[str]:
        held = self.repos[repo]
        return set(held.commits[held.find(revision)])


@contextmanager
def serve():
    """A running `Hub`; its `url` is an `HF_ENDPOINT`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
# method, path, what is done; the first that fits
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", rf"/api/models/{NAME}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/models/{NAME}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{NAME}", "info"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
    ("POST", r"/lfs/verify", "verify"),
    ("HEAD", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
WRITES = ("create", "branch", "preupload", "commit", "batch")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        raw = urlsplit(self.path).path
        body = self._body()
        for method, pattern, kind in ROUTES:
            match = re.fullmatch(pattern, raw)
            if method == self.command and match:
                self.hub.seen.append(f"{kind} {self.command} {path}")
                given = {key: unquote(value) for key, value in match.groupdict().items() if value}
                if not self._fails(kind) and self._allowed(kind, given):
                    getattr(self, f"_{kind}")(body, **given)
                return
        self.hub.seen.append(f"unknown {self.command} {path}")
        self._json({"error": "not found"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def _fails(self, kind: str) -> bool:
        if kind == self.hub.stall[0] and self.hub.count(kind) > self.hub.stall[1]:
            self.hub.stalled.set()
            self.close_connection = True
            return self.hub.gone.wait(60)
        for failure in self.hub.failures:
            if failure.kind == kind and failure.times:
                failure.times -= 1
                if failure.status:
                    said = {"error": f"told to fail with {failure.status}"}
                    self._json(said, failure.status, failure.headers)
                else:
                    self.close_connection = True
                    self.connection.close()
                return True
        return False

    def _allowed(self, kind: str, given: dict[str, str]) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.hub.repos.get(given.get("repo", ""))
        hidden = "repo" in given and (repo is None or (repo.private and not known))
        if hidden:
            status, code = (404, "RepoNotFound") if known else (401, "RepoNotFound")
            self._json({"error": "Repository not found"}, status, {"X-Error-Code": code})
        elif kind in (*WRITES, "whoami") and not known:
            self._json({"error": "Invalid credentials in Authorization header"}, 401)
        elif kind in WRITES and "repo" in given and not given["repo"].startswith("me/"):
            self._json({"error": "you have no write access"}, 403)
        else:
            return True
        return False

    def _json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(json.dumps(value).encode(), status, {**kind, **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # what each route does

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not name.startswith("me/"):
            self._json({"error": "you have no write access"}, 403)
            return
        there = name in self.hub.repos
        if not there:
            self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
            self.hub.repos[name].commit("main", {})
        self._json({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def _validate(self, body: bytes) -> None:
        metadata = json.loads(body)["content"].startswith("---\n")
        self._json({"errors": [], "warnings": [] if metadata else [{"message": "empty metadata"}]})

    def _whoami(self, body: bytes) -> None:
        self._json({"name": "me", "type": "user", "orgs": []})

    def _branch(self, body: bytes, repo: str, revision: str) -> None:
        held = self.hub.repos[repo]
        there = revision in held.refs
        held.refs.setdefault(revision, held.refs["main"])
        self._json({}, 409 if there else 200)

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self.hub.repos[repo].find(revision) is None:
            self._missing("RevisionNotFound")
            return
        files = [
            {"path": f["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".bin")) else "regular"}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self._json({"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/lfs/{asked['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> None:
        right = hashlib.sha256(body).hexdigest() == oid
        if right:
            self.hub.blobs[oid] = body
        self._json({}, 200 if right else 400)

    def _verify(self, body: bytes) -> None:
        asked = json.loads(body)
        held = self.hub.blobs.get(asked["oid"], b"")
        self._json({}, 200 if len(held) == asked["size"] else 404)

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        held = self.hub.repos[repo]
        files = dict(held.commits[held.refs[revision]])
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = hashlib.sha256(content).hexdigest()
                self.hub.blobs[files[value["path"]]] = content
            elif step["key"] == "lfsFile":
                assert value["oid"] in self.hub.blobs, "committed before it was uploaded"
                files[value["path"]] = value["oid"]
        asked = f"{self.hub.url}/{repo}/discussions/{len(held.refs)}"
        proposed = "create_pr=1" in urlsplit(self.path).query
        oid = held.commit(f"refs/pr/{len(held.refs)}" if proposed else revision, files, revision)
        url = {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid}
        self._json({**url, **({"pullRequestUrl": asked} if proposed else {})})

    def _info(self, body: bytes, repo: str, revision: str = "main") -> None:
        held = self.hub.repos[repo]
        commit = held.find(revision)
        if commit is None:
            self._missing("RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in held.commits[commit]]
        self._json({"id": repo, "sha": commit, "private": held.private, "siblings": siblings})

    def _tree(self, body: bytes, repo: str, revision: str, path: str = "") -> None:
        held = self.hub.repos[repo]
        commit = held.find(revision)
        if commit is None:
            self._missing("RevisionNotFound")
            return
        under = {p: o for p, o in held.commits[commit].items() if not path or p.startswith(f"{path}/")}
        if path and not under:
            self._missing("EntryNotFound")
            return
        sizes = {p: len(self.hub.blobs[o]) for p, o in under.items()}
        self._json([{"type": "file", "path": p, "size": sizes[p], "oid": o} for p, o in under.items()])

    def _missing(self, code: str, **headers: str) -> None:
        self._json({"error": code}, 404, {"X-Error-Code": code, **headers})

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        held = self.hub.repos[repo]
        commit = held.find(revision)
        if commit is None:
            self._missing("RevisionNotFound")
        elif path not in held.commits[commit]:
            self._missing("EntryNotFound", **{"X-Repo-Commit": commit})
        else:
            self._content(commit, held.commits[commit][path])
            if self.hub.moves:
                self.hub.moves.pop(0)()

    def _content(self, commit: str, oid: str) -> None:
        content, status = self.hub.blobs[oid], 200
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self.hub.seen.append(f"range {start}")
            content, status = content[start : end + 1], 206
        if self.command == "GET" and self.hub.cut and len(content) > self.hub.cut:
            self._break_off(content, status, headers)
        else:
            self._send(content, status, headers)

    def _break_off(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        cut, self.hub.cut = self.hub.cut, 0
        self._send(content[:cut], status, {**headers, "Content-Length": str(len(content))})
        self.wfile.flush()
        self.close_connection = True
