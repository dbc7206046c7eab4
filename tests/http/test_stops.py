"""Signals end a server: before it listens, under load, while something hangs, and twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.http.server_process import Server, call, url_of
from tests.http.test_connections import PREDICT, error_of, read_all

RunServer = Callable[..., Any]
pytestmark = pytest.mark.slow

# Programs that run the server with one function replaced.
SLOW_LOAD = """
import time
from app.server import server
from app.__main__ import main

def load(*_):
    print("loading", flush=True)
    time.sleep(60)

server.load_backbone = load
main([])
"""
SLOW_WARM_UP = """
import torch
from app import main as app_main
from app.__main__ import main

def warm_up(*_, **__):
    print("warming up", flush=True)
    while True:
        torch.ones(500, 500) @ torch.ones(500, 500)

app_main.warm_up = warm_up
main([])
"""
ENDLESS_FORWARD = """
import torch
from app.__main__ import main
from app.engine.engine import Engine

def predict(engine, rows, threads=0):
    print("computing", flush=True)
    while True:
        torch.ones(500, 500) @ torch.ones(500, 500)

Engine.predict = predict
main([])
"""


def end(server: Server, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
    """Send a signal; returns the exit status and the seconds until the end."""
    started = time.monotonic()
    server.process.send_signal(number)
    return server.wait(), time.monotonic() - started


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (("-X", "importtime", "-m", "app"), r"\| +torch\._C"),
        (("-c", SLOW_LOAD), "loading"),
        (("-c", SLOW_WARM_UP), "warming up"),
    ],
    ids=["while torch is imported", "while the backbone is loaded", "during the warm-up"],
)
def test_a_signal_before_the_server_listens_ends_it_at_once(
    run_server: RunServer, arguments: tuple[str, ...], moment: str
) -> None:
    with run_server(arguments, DELTABERT_WARM_UP="true") as server:
        server.wait_for(moment, 120)
        status, seconds = end(server)
        assert (status, server.output.count("stopped at once")) == (0, 1), server.output
        assert seconds < 2
        assert "Traceback" not in server.output


def ask_in_thread(url: str) -> tuple[threading.Thread, list[Any]]:
    """Ask for a prediction; returns the thread and the list that its answer will be in."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(call(url + "/predict/toy2", {"inputs": "a good film"}))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_a_forward_pass_that_never_ends_does_not_keep_the_server(run_server: RunServer) -> None:
    """The interpreter's own ending would abort the process: torch is on the thread's stack."""
    with run_server(("-c", ENDLESS_FORWARD), DELTABERT_SHUTDOWN_TIMEOUT_S="0.5") as server:
        thread, answers = ask_in_thread(url_of(server))
        server.wait_for("computing", 60)
        status, seconds = end(server)
        thread.join(30)
        assert status == 0, server.output
        assert seconds < 4
        ((code, body),) = answers
        assert (code, body["error"]["code"]) == (503, "not_ready")


def test_a_second_signal_ends_the_server_at_once(run_server: RunServer) -> None:
    with run_server(("-c", ENDLESS_FORWARD), DELTABERT_SHUTDOWN_TIMEOUT_S="60") as server:
        thread, answers = ask_in_thread(url_of(server))
        server.wait_for("computing", 60)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)  # as `timeout` of coreutils does
        server.wait_for("SIGTERM: stopping within 60 s", 10)
        time.sleep(1)
        assert server.process.poll() is None, "two signals together are one"
        status, seconds = end(server, signal.SIGINT)
        thread.join(30)
        assert (status, seconds < 2) == (0, True), server.output
        assert server.output.count("SIGINT: stopped at once") == 1
        assert isinstance(answers[0], OSError), "the connection is closed"


def test_requests_that_have_not_arrived_are_refused(
    run_server: RunServer,
) -> None:
    with run_server() as server:
        url = urlsplit(url_of(server))
        half: list[socket.socket] = []
        for sent in (PREDICT[:40], PREDICT + b"\r\n" + b'{"inputs"', b""):
            half.append(socket.create_connection((url.hostname, url.port), timeout=30))
            half[-1].sendall(sent)
        assert call(url.geturl() + "/health/ready")[0] == 200
        status, seconds = end(server)
        assert (status, seconds < 5) == (0, True), server.output
        for opened in half[:2]:
            with opened:
                message = error_of(read_all(opened), 503, "not_ready")["message"]
                assert "shutting down" in message
        with half[2] as opened:
            assert read_all(opened) == b""
        assert server.output.count("SIGTERM: stopping within 10 s") == 1
        assert server.output.count("stopped after ") == 1


@pytest.mark.parametrize("is_ignored", [False, True], ids=["by its terminal", "after nohup"])
def test_a_server_whose_terminal_closes_answers_what_it_has(
    run_server: RunServer, is_ignored: bool
) -> None:
    ignore = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" * is_ignored
    program = f"{ignore}from app.__main__ import main\nmain([])"
    with run_server(("-c", program)) as server:
        url = urlsplit(url_of(server))
        with socket.create_connection((url.hostname, url.port), timeout=30) as half:
            half.sendall(PREDICT + b"\r\n" + b'{"inputs"')
            assert call(url_of(server) + "/health/ready")[0] == 200
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            half.sendall(b': "a good film"}')
            if not is_ignored:
                assert "shutting down" in error_of(read_all(half), 503, "not_ready")["message"]
        if is_ignored:
            assert call(url_of(server) + "/health/ready")[0] == 200
            assert end(server)[0] == 0
        assert server.wait() == 0, server.output
        assert ("SIGHUP: stopping" in server.output) is not is_ignored


def test_stops_and_kills_under_load() -> None:
    """A few rounds of the program that makes hundreds of them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DELTABERT_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.stops", "--stops=2", "--kills=1", "--precisions=fp32"],
        cwd=Path(__file__).parents[2],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
