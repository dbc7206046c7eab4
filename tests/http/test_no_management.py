"""No route changes the server without a key, opens a file that a request names, or unpickles.

Other servers load models for anybody who asks (pitfall 25). Every route and method is tried here,
without the key of an admin, under an audit hook of Python that sees each file that is opened and
each object that is unpickled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.engine.engine import Engine
from deltas import Backbone
from deltas.backbone.backbone import weights_fingerprint

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "LOAD")
READING = {"GET", "HEAD"}
TRAFFIC = "/traffic/toy2/bitfit"
CHANGING = ("/deltas/reload", "/deltas/toy2/bitfit/rollback", TRAFFIC)  # not in the document
TRITON_LOAD = "/v2/repository/models/x/load"  # a change here, too
# Routes of other protocols, whose bodies are predictions, or flags of a list of models.
PROTOCOLS = {
    *("/hf/toy2", "/hf/toy2/bitfit", "/tei/toy2/predict", "/classify", "/invocations"),
    *("/v2/models/toy2/infer", "/v2/repository/index"),
}
# What servers of models call the routes by which anybody may change them.
MANAGEMENT = (
    *(
        "/models",
        "/models/x",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/load",
        "/admin",
    ),
    *(
        TRITON_LOAD,
        "/load",
        "/reload",
        "/shutdown",
        "/config",
        "/debug",
        "/deltas",
    ),
    *("/deltas/toy2", "/tasks/toy2", "/deltas/toy2/bitfit/load", "/upload", "/files", "/static/x"),
)
NAMED = "/etc/hostname"
NAMES = (NAMED, f"..{NAMED}", f"%2e%2e{NAMED}", f"....//..{NAMED}", f"file:{NAMED}", "..%00", "~")
EVENTS = {"open", "os.listdir", "os.scandir", "pickle.find_class", "marshal.loads", "exec"}
EVENTS |= {"subprocess.Popen", "os.system", "os.remove", "os.rename", "os.mkdir", "import"}

_seen: list[tuple[str, str]] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in EVENTS:
        _seen.append((event, repr(arguments[:1])))


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Record the events of the block; a hook of Python can't be removed, so it is switched off."""
    global _seen
    if not getattr(watched, "is_installed", False):
        sys.addaudithook(_watch)
        watched.is_installed = True  # type: ignore[attr-defined]
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


@pytest.fixture(scope="module")
def documented(client: TestClient) -> dict[str, set[str]]:
    """The methods of every path of the OpenAPI document, with its parameters filled in."""
    version = client.get("/deltas/toy2/bitfit").json()["version"]
    filled = {"{task}": "toy2", "{strategy}": "bitfit", "{model}": "toy2", "{version}": version}
    known: dict[str, set[str]] = {"/docs": {"GET"}, "/openapi.json": {"GET"}}
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for name, value in filled.items():
            path = path.replace(name, value)
        assert "{" not in path
        known[path] = set(map(str.upper, operations))
    return known


@pytest.fixture(scope="module")
def paths(documented: dict[str, set[str]]) -> list[str]:
    """Every path of the OpenAPI document, and `/docs`."""
    return sorted(documented)


def test_peers_row_25_only_predictions_take_a_body_and_nothing_else_changes_state(
    client: TestClient, documented: dict[str, set[str]]
) -> None:
    answered: dict[str, set[str]] = {}
    refused: dict[str, set[str]] = {}
    for path, method in product([*sorted(documented), *CHANGING, *MANAGEMENT], METHODS):
        response = client.request(method, path, json={"inputs": "a film", "targets": []})
        assert response.status_code != 500, (method, path, response.text)
        if response.status_code == 403:
            refused.setdefault(method, set()).add(path)
        elif response.status_code not in (404, 405):
            answered.setdefault(method, set()).add(path)
    assert refused.pop("POST") == {*CHANGING, TRITON_LOAD} - {TRAFFIC}
    assert refused.pop("GET") == refused.pop("HEAD") == {TRAFFIC}
    assert refused.keys() == {"PUT", "DELETE"}
    assert all(paths >= {"/deltas/toy2/bitfit", TRAFFIC} for paths in refused.values())
    reading = {path for path, methods in documented.items() if "GET" in methods}
    versioned = next(path for path in documented if path.endswith("/infer") and "versions" in path)
    taking = {path for path, methods in documented.items() if "POST" in methods}
    assert taking == {"/predict", "/predict/toy2", "/explain/toy2", *PROTOCOLS, versioned}
    assert answered.pop("POST") == taking
    assert answered.pop("GET") == answered.pop("HEAD") == reading
    assert not answered


def test_peers_row_25_no_request_opens_a_file_or_unpickles(
    start: Callable[..., TestClient], tiny_backbone: Backbone, paths: list[str]
) -> None:
    server = start()
    engine: Engine = server.app.state.serving.engine  # type: ignore[attr-defined]
    before = [server.get(path).json() for path in ("/tasks", "/deltas", "/benchmark")]
    resident = engine.cache.num_used
    for path, method in product(paths, METHODS):  # what is imported or read once
        server.request(method, path, json={"inputs": "a film"})
    with watched() as events:
        for path, method in product(paths, METHODS):
            server.request(method, path, json={"inputs": "a film"})
        for name in NAMES:
            server.get(f"/deltas/toy2/{name}", params={"version": name})
            server.get(f"/deltas/{name}/bitfit")
            server.get(f"/{name}")
            target = {"task": name, "strategy": name, "version": name}
            answer = server.post("/predict", json={"inputs": name, "targets": [target]})
            assert answer.status_code == 404, answer.text
            answer = server.post("/predict/toy2", json={"inputs": name, "strategy": name})
            assert answer.status_code == 404, answer.text
    # `/metrics` reads the process's own numbers from /proc.
    found = [event for event in events if event[0] != "import" and "/proc/" not in event[1]]
    assert not found
    assert [server.get(path).json() for path in ("/tasks", "/deltas", "/benchmark")] == before
    assert engine.cache.num_used == resident
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_the_hook_sees_what_it_looks_for() -> None:
    """A hook that sees nothing would let the test above pass for ever."""
    with watched() as events, open(NAMED, encoding="utf-8"):  # noqa: PTH123
        pass
    assert events == [("open", f"('{NAMED}',)")]
