"""A cluster that is stopped while it starts: nothing of it stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.http.server_process import Server, free_port
from tests.ray_processes import ray_processes

pytestmark = pytest.mark.slow


def test_sigterm_during_the_start_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")
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
