"""A hub of one dataset repository on this machine, for the clients that read ``HF_ENDPOINT``."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = Mapping[str, bytes]


class HubServer:
    """Serves ``commits`` of ``repository`` until the context ends.

    Args:
        repository: ``owner/name``.
        commits: commit → files by path.
        branches: branch or tag → commit; may be changed while it serves.
    """

    def __init__(self, repository: str, commits: Mapping[str, Files], branches: dict[str, str]) -> None:
        self.repository, self.commits, self.branches = repository, commits, branches
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the tests' output is for their failures."""

    def _answer(self, body: bytes) -> None:
        path = self.path.split("?")[0].replace("%2F", "/")
        name = re.escape(self.hub.repository)
        if path == f"/api/datasets/{self.hub.repository}":
            path += "/revision/main"
        found = re.fullmatch(rf"(?:/api)?/datasets/{name}/(resolve|revision|tree|paths-info)/([^/]+)/?(.*)", path)
        if found is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        kind, revision, rest = found.groups()
        commit = self.hub.commit(revision)
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.commits[commit]
        if kind == "resolve":
            return self._file(commit, files.get(rest))
        if kind == "revision":
            siblings = [{"rfilename": each} for each in files]
            return self._json({"id": self.hub.repository, "sha": commit, "siblings": siblings, "tags": []})
        wanted = files if kind == "tree" else [each for each in files if each in _paths(body)]
        return self._json([_entry(each, files[each]) for each in wanted])

    def _file(self, commit: str, content: bytes | None) -> None:
        if content is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{_object_id(content)}"'})

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _paths(body: bytes) -> list[str]:
    text = body.decode()
    if text.startswith("{"):
        return list(json.loads(text)["paths"])
    from urllib.parse import parse_qs

    return parse_qs(text).get("paths", [])


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _object_id(content)}


def _object_id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
