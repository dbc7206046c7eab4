"""Starts a server as users do, and samples its memory, threads and descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SAMPLE_EVERY_S = 10.0
SETTLES_S = 600.0  # a server's memory may grow for this long after its start
_START_S = 300.0
_POLL_S = 0.02
_STOP_S = 60.0
_GET_S = 30.0
_BATCH_S = 2.0  # longer than a batch takes, also on a busy machine
_HOUR_S = 3600.0


class Sample(NamedTuple):
    """The state of a process some seconds after the soak's start; memory in bytes."""

    seconds: float
    resident_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        process: the process.
        address: host and port.
        log: file with all that it says.
        started: time of its start, on `time.perf_counter`.
    """

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    log: Path
    started: float

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid

    @property
    def url(self) -> str:
        """The address that requests go to."""
        host, port = self.address
        return f"http://{host}:{port}"

    def sample(self, seconds: float) -> Sample:
        """Read the process's state from /proc."""
        folder = Path(f"/proc/{self.process.pid}")
        lines = (folder / "status").read_text(encoding="utf-8").splitlines()
        state = dict(line.split(":", 1) for line in lines)
        resident_bytes = int(state["VmRSS"].split()[0]) * 1024
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
        return Sample(seconds, resident_bytes, int(state["Threads"]), descriptors)

    async def sample_all(self, samples: list[Sample], started: float) -> None:
        """Append a sample each `SAMPLE_EVERY_S`, until it is cancelled or the process has ended."""
        while self.process.poll() is None:
            samples.append(self.sample(time.perf_counter() - started))
            await asyncio.sleep(SAMPLE_EVERY_S)

    def check_running(self) -> None:
        """Raise if the process has ended.

        Raises:
            RuntimeError: the server has ended by itself.
        """
        if self.process.poll() is not None:
            status, said = self.process.returncode, _end_of(self.log)
            raise RuntimeError(f"the server has ended by itself with status {status}:\n{said}")

    def wait_until_quiet(self) -> None:
        """Return when no rows are queued and the last batch is done."""
        while "deltabert_queue_rows 0.0" not in self.get("/metrics"):
            time.sleep(0.5)
        time.sleep(_BATCH_S)

    def get(self, path: str) -> str:
        """Return the body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=_GET_S) as answer:
            return str(answer.read().decode())


@contextmanager
def running_server(
    log: Path,
    settings: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = ("app",),
) -> Iterator[ServerProcess]:
    """Run `python -m app`, or another command that serves, until the block ends.

    The server has a session of its own, so that Ctrl-C reaches the caller alone.

    Args:
        log: file for all that the server says.
        settings: names and values of settings, without their prefix; others come from the
            environment.
        environment: other variables.
        command: module to run, and its arguments.

    Raises:
        RuntimeError: the server does not get ready, or does not end with status 0.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {f"DELTABERT_{name}": value for name, value in settings.items()}
    given |= {"DELTABERT_HOST": "127.0.0.1", "DELTABERT_PORT": str(port)}
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **given, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = ServerProcess(process, ("127.0.0.1", port), log, started)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        try:
            status = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"the server did not end within {_STOP_S:g} s: {log}") from None
    if status:
        raise RuntimeError(f"the server ended with status {status}:\n{_end_of(log)}")


def _wait_until_ready(server: ServerProcess) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError):
            server.get("/health/ready")
            return
        time.sleep(_POLL_S)
    raise RuntimeError(f"the server does not get ready in {_START_S:g} s:\n{_end_of(server.log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])


def slope_per_hour(memory: Sequence[tuple[float, float]]) -> float:
    """Return the growth of the memory in % an hour, by least squares.

    The first ten minutes do not count, or the first third of a shorter time.

    Args:
        memory: seconds since the start, and memory in any unit.
    """
    settled_s = min(SETTLES_S, memory[-1][0] / 3)
    settled = [sample for sample in memory if sample[0] >= settled_s]
    if len(settled) < 2:
        return 0.0
    seconds, sizes = zip(*settled, strict=True)
    line = statistics.linear_regression(seconds, sizes)
    return 100 * line.slope * _HOUR_S / statistics.mean(sizes)
