"""Start the server and the page, wait until both answer, stop both together. `make run` calls it.

Standard library only, so that it starts at once and can report a broken installation. The server
is `python -m app`, the page is `streamlit run frontend/main.py`; what they do stands there. Each
runs in a session of its own, so that Ctrl-C reaches this program alone, which then stops both.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
READY_WITHIN_S = 300.0
STOP_WITHIN_S = 25.0  # more than the server gives to requests that it has accepted
POLL_S = 0.2

# A proxy from the environment must not stand between us and our own loopback address.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LaunchError(Exception):
    """Something a user can mend; the message is the one sentence that they see."""


@dataclass
class Part:
    """One of the two programs: how it starts, where it listens, when it is ready."""

    name: str
    variable: str  # the make variable that chooses the port
    port: int
    ready_path: str
    command: list[str]
    environment: dict[str, str]
    shows_stdout: bool = True
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start it, without a terminal to read from."""
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=None if self.shows_stdout else subprocess.DEVNULL,
            start_new_session=True,
        )

    def check_alive(self) -> None:
        """Raise LaunchError if it has ended."""
        status = self.process.poll() if self.process else None
        if status is not None:
            raise LaunchError(
                f"The {self.name} ended by itself with exit status {status}: "
                "its last messages above say why."
            )

    def is_ready(self) -> bool:
        """Whether it answers with success."""
        try:
            with _opener.open(self.url + self.ready_path, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, reset, timed out, or an error status: not yet
            return False


class Stop:
    """Remembers that a signal asked us to end; a second one means now."""

    def __init__(self) -> None:
        """Take over the signals that end a program."""
        self.requests = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requests += 1


def server_and_page(port: int, page_port: int) -> tuple[Part, Part]:
    """The two parts, not yet started."""
    server = Part(
        name="server",
        variable="PORT",
        port=port,
        ready_path="/health/ready",
        command=[sys.executable, "-m", "app"],
        environment={"DELTABERT_HOST": HOST, "DELTABERT_PORT": str(port)},
    )
    page = Part(
        name="page",
        variable="PAGE_PORT",
        port=page_port,
        ready_path="/_stcore/health",
        command=[
            *(sys.executable, "-m", "streamlit", "run", "frontend/main.py"),
            *("--server.address", HOST, "--server.port", str(page_port)),
            *("--server.fileWatcherType", "none"),
        ],
        environment={"FRONTEND_API_URL": server.url},
        shows_stdout=False,  # Streamlit's own banner names the address a second time
    )
    return server, page


def check_port(part: Part) -> None:
    """Raise LaunchError if the part could not listen on its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do, so that connections of an earlier run in TIME_WAIT don't count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, part.port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            problem = "is already in use" if in_use else f"can't be used ({error.strerror})"
            raise LaunchError(
                f"Port {part.port} of {HOST}, meant for the {part.name}, {problem}: "
                f"choose another one, for example make run {part.variable}={part.port + 10}."
            ) from error


def wait_until_ready(parts: Sequence[Part], stop: Stop) -> bool:
    """Wait for all parts; False if we were asked to stop meanwhile.

    Raises:
        LaunchError: a part ended, or is not ready in time.
    """
    waiting = list(parts)
    deadline = time.monotonic() + READY_WITHIN_S
    while waiting and not stop.requests:
        for part in parts:
            part.check_alive()
        waiting = [part for part in waiting if not part.is_ready()]
        if waiting and time.monotonic() > deadline:
            names = " and the ".join(part.name for part in waiting)
            raise LaunchError(f"The {names} did not become ready within {READY_WITHIN_S:.0f} s.")
        time.sleep(POLL_S)
    return not stop.requests


def stop_all(parts: Sequence[Part], stop: Stop) -> None:
    """End what runs: ask, wait, and kill what does not listen (or at once on a second signal)."""
    processes = [part.process for part in parts if part.process is not None]
    asked = stop.requests
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or stop.requests > max(asked, 1):
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            return
        time.sleep(POLL_S / 4)


def run(parts: Sequence[Part]) -> None:
    """Run all parts until a signal comes or one of them ends.

    Raises:
        LaunchError: a port can't be used, or a part ended or did not become ready.
    """
    for part in parts:
        check_port(part)
    stop = Stop()
    try:
        sys.stdout.write("Starting the server and the page ...\n")
        sys.stdout.flush()
        for part in parts:
            part.start()
        if wait_until_ready(parts, stop):
            addresses = "".join(f"  {part.name:8}{part.url}\n" for part in parts)
            sys.stdout.write(f"Ready; Ctrl-C stops both.\n{addresses}")
            sys.stdout.flush()
        while not stop.requests:
            for part in parts:
                part.check_alive()
            time.sleep(POLL_S)
    finally:
        stop_all(parts, stop)
    sys.stdout.write("Stopped.\n")


def port_number(text: str) -> int:
    """A port from the command line."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the ports, run both parts, say in one sentence what went wrong."""
    parser = argparse.ArgumentParser(
        prog="make run",
        description="Start the server and the page.",
        usage="make run [PORT=N] [PAGE_PORT=N]",
    )
    parser.add_argument("--port", type=port_number, default=8000, help="port of the server")
    parser.add_argument("--page-port", type=port_number, default=8501, help="port of the page")
    options = parser.parse_args(arguments)
    if options.port == options.page_port:
        parser.error(f"PORT and PAGE_PORT are both {options.port}: give two different ports")
    try:
        run(server_and_page(options.port, options.page_port))
    except LaunchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
