"""A cluster that can't start says why, and nothing stays of one that is stopped while it starts."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.http.server_process import Server, free_port
from tests.ray_processes import ray_processes

pytestmark = pytest.mark.slow


@pytest.fixture
def ray() -> None:
    """Skip where Ray is not installed."""
    pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")


@pytest.mark.usefixtures("ray")
def test_a_setting_that_no_replica_can_use_is_told_before_ray_starts() -> None:
    server = Server(("-m", "app.cluster"), {"DELTABERT_PINNED": "no-task"})
    try:
        assert server.process.wait(60) == 2
        assert "DELTABERT_PINNED names 'no-task': unknown task" in server.output
        assert "Traceback" not in server.output
    finally:
        server.end()


@pytest.mark.usefixtures("ray")
def test_a_port_that_is_taken_is_told_before_ray_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(("-m", "app.cluster"), {"DELTABERT_PORT": str(port)})
        try:
            assert server.process.wait(60) == 1
        finally:
            server.end()
    assert server.output.endswith(
        f"the cluster could not be started: port {port} of 127.0.0.1 is in use by another program; "
        "set DELTABERT_PORT to a free port\n"
    )


@pytest.mark.usefixtures("ray")
def test_sigterm_during_the_start_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    given = {"DELTABERT_PORT": str(free_port()), "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    server = Server(("-m", "app.cluster", "--replicas", "1"), given)
    try:
        server.wait_for("Starting HAProxy", 240)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0, server.output
        assert not list(tmp_path.glob("deltabert-*"))
        deadline = time.monotonic() + 60
        while left := ray_processes(os.getpid(), "ray::"):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        server.end()
