"""A server process that tests start, read and end, and simple requests to it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

START_WITHIN_S = 120.0
STOP_WITHIN_S = 30.0

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A server process and what it has said so far."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        environment: dict[str, str],
        launcher: tuple[str, ...] = (),
        stderr: int = subprocess.STDOUT,
    ) -> None:
        left_out = ("DELTABERT_", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # the tests set the last two
        kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        self.process = subprocess.Popen(
            [*launcher, sys.executable, *arguments],
            cwd=Path(__file__).parents[2],
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.append(line)

    def wait_for(self, pattern: str, within_s: float) -> re.Match[str]:
        """Wait for a line; fails with the whole output."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.output):
                return found
            if self.process.poll() is not None:
                self._reader.join(5)
                break
            time.sleep(0.05)
        pytest.fail(f"no {pattern!r} in the server's output:\n{self.output}")

    def end(self) -> None:
        """Whatever happened: no process and no open pipe stay behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)

    def wait(self) -> int:
        """The exit status."""
        try:
            status = self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server does not end:\n{self.output}")
        self._reader.join(5)
        return status


def url_of(server: Server) -> str:
    return server.wait_for(r"listening on (http://[\d.:]+)", START_WITHIN_S)[1]


def call(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
