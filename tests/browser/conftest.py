"""Fixtures of the page's tests: a real server that can go away and return."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, Delta, SplitMetrics, TaskSpec, delta_path, write_delta
from deltas.manifest import Reliability
from tests.factories import RELIABILITY, RUN_HISTORY, training_facts

# Real names, so that the page's words and examples are used; one of each kind of task.
PAGE_TASKS = (
    TaskSpec(
        name="cola",
        kind="single_label",
        labels=("unacceptable", "acceptable"),
        text_fields=("sentence",),
        max_length=32,
    ),
    TaskSpec(
        name="mnli",
        kind="single_label",
        labels=("entailment", "neutral", "contradiction"),
        text_fields=("premise", "hypothesis"),
        max_length=60,
    ),
    TaskSpec(
        name="stsb",
        kind="regression",
        labels=(),
        text_fields=("sentence1", "sentence2"),
        max_length=60,
    ),
    TaskSpec(
        name="topics",
        kind="multi_label",
        labels=("sport", "<b>art</b>", "science"),
        text_fields=("text",),
        max_length=32,
    ),
)
PAGE_STRATEGIES = {
    "cola": ("bitfit", "layernorm", "random:0.05", "head"),
    "mnli": ("bitfit", "head"),
    "stsb": ("bitfit", "top:1"),
    "topics": ("bitfit",),
}


class Server:
    """A real server on one address; `start` and `stop` may be called again and again."""

    def __init__(self, make_app: Callable[..., Any]) -> None:
        self._make_app = make_app
        self._running: tuple[uvicorn.Server, threading.Thread] | None = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, *, lifespan: Any = "on", **settings: Any) -> None:
        """Serve, with these settings changed from the usual ones."""
        self.stop()
        config = uvicorn.Config(
            self._make_app(**settings), port=self.port, log_level="warning", lifespan=lifespan
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        self._running = server, thread
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server took more than 60 s to start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Go away, if running."""
        if self._running is not None:
            server, thread = self._running
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"
            self._running = None


# The delta of the page's tests that was made by a run of today; the others are older.
RECORDED = ("cola", "layernorm")
RECORDED_FACTS: dict[str, Any] = {
    "training": training_facts(history=RUN_HISTORY),
    "metrics": {
        "selection": SplitMetrics(rows=10, values={"accuracy": 0.5}),
        "validation": SplitMetrics(
            rows=2000, values={"accuracy": 0.25}, reliability=Reliability(**RELIABILITY)
        ),
    },
}


@pytest.fixture(scope="session")
def page_deltas(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: Backbone,
    make_delta: Callable[..., Delta],
) -> Path:
    """A folder of deltas for `PAGE_TASKS`."""
    root = tmp_path_factory.mktemp("page-deltas")
    for task in PAGE_TASKS:
        for strategy in PAGE_STRATEGIES[task.name]:
            facts = RECORDED_FACTS if (task.name, strategy) == RECORDED else {}
            delta = make_delta(tiny_backbone, task, strategy, **facts)
            write_delta(delta, delta_path(root, tiny_backbone.ref.id, task.name, strategy))
    return root


@pytest.fixture(scope="session")
def strategies() -> dict[str, tuple[str, ...]]:
    """The strategies of each task in `page_deltas`."""
    return PAGE_STRATEGIES


@pytest.fixture(scope="session")
def make_server(tiny_backbone: Backbone, page_deltas: Path) -> Callable[[], Server]:
    """A function () -> stopped server of `page_deltas`."""

    def make_app(**changes: Any) -> Any:
        given: dict[str, Any] = {"deltas": (page_deltas,), "zoo": False, "warm_up": False}
        return create_app(Settings(**(given | changes)), backbone=tiny_backbone)

    return lambda: Server(make_app)


@pytest.fixture
def server(make_server: Callable[[], Server]) -> Iterator[Server]:
    """A server that the test starts, stopped after it."""
    made = make_server()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def url(make_server: Callable[[], Server]) -> Iterator[str]:
    """The address of a running server, for tests that leave it as it is."""
    made = make_server()
    made.start()
    yield made.url
    made.stop()
