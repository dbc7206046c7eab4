"""Fixtures of the page's tests: a real server that can go away and return, and a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from streamlit import config as streamlit_config

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, Delta, SplitMetrics, TaskSpec, delta_path, write_delta
from deltas.manifest import Reliability
from frontend.state import forget_answers
from tests.factories import RELIABILITY, RUN_HISTORY, training_facts, write_some_predictions

MAIN = Path(__file__).parents[2] / "frontend" / "main.py"
SETTINGS = MAIN.parent / ".streamlit" / "config.toml"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)
WAIT_S = 60
PATHS = {
    "Try": "",
    "Why": "why",
    "Table": "table",
    "Trust": "trust",
    "Benchmark": "benchmark",
    "Deltas": "deltas",
    "Server": "server",
}

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
    "training": training_facts(history=RUN_HISTORY, data="hub"),
    "metrics": {
        "selection": SplitMetrics(rows=10, values={"accuracy": 0.5}),
        "validation": SplitMetrics(
            rows=2000, values={"accuracy": 0.25}, reliability=Reliability(**RELIABILITY)
        ),
    },
}


# Deltas with the predictions of their runs, one of each kind of task.
JUDGED = (RECORDED, ("topics", "bitfit"), ("stsb", "bitfit"))


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_page() -> None:
    """Run scripts as `streamlit run` does. `AppTest` does not read the settings beside the page."""
    settings = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    for section in ("browser", "runner"):
        for name, value in settings[section].items():
            streamlit_config.set_option(f"{section}.{name}", value)


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    """Clear cached answers, so that no test sees the server of another test."""
    forget_answers()
    yield
    forget_answers()


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
            usual = {"training": training_facts(data="hub")}
            facts = RECORDED_FACTS if (task.name, strategy) == RECORDED else usual
            delta = make_delta(tiny_backbone, task, strategy, **facts)
            path = delta_path(root, tiny_backbone.ref.id, task.name, strategy)
            written = write_delta(delta, path)
            if (task.name, strategy) in JUDGED:
                write_some_predictions(written, path, rows=200)
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium with an empty profile."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver here (Debian: chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def api(make_server: Callable[[], Any]) -> Iterator[Any]:
    """The server that the page asks; tests that stop it start it again."""
    made = make_server()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def page_url(api: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`streamlit run frontend/main.py`, as a user starts it, from another folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN)]
    command += ["--server.address", "127.0.0.1", "--server.port", str(port)]
    environment = os.environ | {
        "FRONTEND_API_URL": api.url,
        "HOME": str(folder),
        "PYTHONPATH": str(MAIN.parents[1]),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait(lambda: _answers(f"http://127.0.0.1:{port}/_stcore/health", process))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
    said = (folder / "log").read_text(encoding="utf-8")
    assert "Traceback" not in said, said


def wait(condition: Callable[[], Any]) -> Any:
    """The condition's value as soon as it is true; fails after a minute."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            value = condition()
        except StaleElementReferenceException:  # redrawn between being found and being asked
            value = None
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.1)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the page's process ended"
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


def find(page: Chrome, css: str) -> list[Any]:
    found: list[Any] = page.find_elements(By.CSS_SELECTOR, css)
    return found


def resize(page: Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(page: Chrome, value: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": value}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def follow(page: Chrome, name: str) -> None:
    """Follow a link of the navigation, which is behind a button on narrow screens."""
    css = "[data-testid=stTopNavLink], [data-testid=stSidebarNavLink]"
    if not [link for link in find(page, css) if link.is_displayed()]:
        wait(lambda: find(page, "[data-testid=stExpandSidebarButton]"))[0].click()
    (link,) = wait(lambda: [link for link in find(page, css) if link.text.endswith(name)])
    link.click()
    wait(lambda: page.current_url.partition("?")[0].endswith(f"/{PATHS[name]}"))
