"""Fixtures of the HTTP tests: real apps over the tiny backbone, in process, with their lifespan."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from app.engine.engine import Engine, EngineRow, Outcome
from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone
from tests.http.server_process import Server

Start = Callable[..., TestClient]
CheckError = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Settings of the one who runs the tests must not reach the servers under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("DELTABERT_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def make_app(tiny_backbone: Backbone, tiny_deltas: Path) -> Callable[..., FastAPI]:
    """A function (**settings) -> app that serves the tiny deltas."""

    def make(**changes: Any) -> FastAPI:
        given: dict[str, Any] = {"deltas": (tiny_deltas,), "zoo": False, "device": "cpu"}
        given |= {"precision": "fp32", "warm_up": False} | changes
        return create_app(Settings(**given), backbone=tiny_backbone)

    return make


@pytest.fixture
def start(make_app: Callable[..., FastAPI]) -> Iterator[Start]:
    """A function (**settings) -> client of a started app; stopped after the test."""
    with ExitStack() as stack:

        def start_one(**changes: Any) -> TestClient:
            client = TestClient(make_app(**changes), raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start_one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder that takes deltas."""
    folder = tmp_path / "managed"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """A client of an app with default settings, shared by tests that leave no trace."""
    with TestClient(make_app(), raise_server_exceptions=False) as started:
        yield started


@pytest.fixture(scope="session")
def check_error() -> CheckError:
    """A function (response, status, code) -> the error, after checking the one shape of all."""

    def check(response: Any, status: int, code: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        body = response.json()
        assert set(body) == {"error"}
        error: dict[str, Any] = body["error"]
        assert set(error) == {"code", "message", "details", "request_id"}
        assert error["code"] == code
        assert error["message"]
        assert error["request_id"] == response.headers["x-request-id"]
        return error

    return check


class Gate:
    """Holds the real engine: each batch waits until the gate is open."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.entered = threading.Event()
        self.batches: list[list[EngineRow]] = []

    def close(self) -> None:
        self.entered.clear()
        self.is_open.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate in front of every engine; open at first."""
    gate, run = Gate(), Engine.predict

    def run_gated(engine: Engine, rows: Sequence[EngineRow], threads: int = 0) -> list[Outcome]:
        gate.batches.append(list(rows))
        gate.entered.set()
        assert gate.is_open.wait(30)
        return run(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", run_gated)
    yield gate
    gate.is_open.set()


@pytest.fixture(scope="session")
def speak_asgi() -> Callable[..., Coroutine[Any, Any, int]]:
    """A function (app, rows, hang_up) -> status; for what test clients can't do: hanging up."""

    async def predict(app: FastAPI, rows: int, hang_up: asyncio.Event | None = None) -> int:
        body = json.dumps({"inputs": ["a film"] * rows}).encode()
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        statuses: list[int] = []

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await (hang_up or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict/toy2",
            "raw_path": b"/predict/toy2",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
        }
        await app(scope, receive, send)
        (status,) = statuses
        return status

    return predict


@pytest.fixture(scope="session")
def wait_for_queue() -> Callable[[TestClient, int], None]:
    """A function (client, rows) that returns once this number of rows waits in the client's app."""

    def wait(client: TestClient, num_rows: int) -> None:
        for _ in range(1000):
            if f"deltabert_queue_rows {num_rows}.0" in client.get("/metrics").text:
                return
            time.sleep(0.01)
        pytest.fail(f"there never were {num_rows} rows in the queue")

    return wait


@pytest.fixture
def run_server(tiny_backbone_dir: Path, tiny_deltas: Path) -> Callable[..., Any]:
    """A function (**environment) -> context of a server process over the tiny backbone."""

    @contextmanager
    def run(
        arguments: tuple[str, ...] = ("-m", "app"), stderr: int = STDOUT, **changes: str
    ) -> Iterator[Server]:
        environment = {
            "DELTABERT_BACKBONE": str(tiny_backbone_dir),
            "DELTABERT_DELTAS": str(tiny_deltas),
            "DELTABERT_ZOO": "false",
            "DELTABERT_PORT": "0",
            "DELTABERT_WARM_UP": "false",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        server = Server(arguments, environment | changes, stderr=stderr)
        try:
            yield server
        finally:
            server.end()

    return run
