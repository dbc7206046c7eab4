"""A server on this machine that answers like the Hugging Face hub, for one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

# A function (script, endpoint, **settings) -> the JSON that a new process prints last.
Ask = Callable[..., dict[str, Any]]
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository and counts requests."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], repository: str, kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.kind = kind
        self.num_requests = 0
        self.repository = repository
        self.commit = COMMIT
        self.files = files

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def api(self) -> str:
        return f"/api/{self.kind}/{self.repository}"

    @property
    def resolve(self) -> str:
        return f"/{'' if self.kind == 'models' else f'{self.kind}/'}{self.repository}/resolve/"


class HubHandler(BaseHTTPRequestHandler):
    """Answers requests for files, folders and the repository."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        self.server.num_requests += 1

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        files, repository, commit = self.server.files, self.server.repository, self.server.commit
        if path.startswith(self.server.resolve):
            name = unquote(path.removeprefix(self.server.resolve)).split("/", 1)[1]
            if name in files:
                tag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                self._send(200, files[name], {"ETag": tag, "X-Repo-Commit": commit})
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif not path.startswith(self.server.api):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            folder = path.partition(f"/tree/{commit}")[2].strip("/")
            found = self._listing(folder, is_recursive="recursive=true" in query.lower())
            self._send(200, json.dumps(found).encode(), {})
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": commit, "tags": [], "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {})

    def _listing(self, folder: str, is_recursive: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, content in self.server.files.items():
            path = PurePosixPath(name)
            is_below = not folder or name.startswith(f"{folder}/")
            if (is_recursive and is_below) or str(path.parent) == (folder or "."):
                oid = hashlib.sha256(content).hexdigest()[:40]
                found.append({"type": "file", "path": name, "size": len(content), "oid": oid})
            elif not folder:
                parent = str(path.parent)
                found.append({"type": "directory", "path": parent, "size": 0, "oid": "0" * 40})
        return found

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(hub: Hub) -> Iterator[Hub]:
    """Run a hub until the generator is closed."""
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()
