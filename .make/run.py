"""Start the server and the page, wait until both answer, stop both together. `make run` calls it.

Uses the standard library only, so that it starts at once and can report a broken installation.
Each program runs in a session of its own: Ctrl-C reaches this one alone, which then stops both.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
STOP_WITHIN_S = 25.0  # longer than the server waits for the requests that it has accepted
POLL_S = 0.1

# A proxy from the environment must not stand between this program and the loopback address.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Part(NamedTuple):
    """A program, its port with the make variable that sets it, and a path to ask for readiness."""

    name: str
    port: int
    variable: str
    ready_path: str
    command: list[str]

    def check_port(self) -> None:
        """Exit with a sentence if the part cannot listen on its port."""
        with socket.socket() as probe:
            # As servers do: closed connections of an earlier run do not keep the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                sys.exit(
                    f"Port {self.port} of {HOST}, meant for the {self.name}, can't be used "
                    f"({error.strerror}): choose another one, for example "
                    f"make run {self.variable}={self.port + 10}."
                )

    def start(self) -> subprocess.Popen[bytes]:
        """Start the part. The page's banner, which repeats the address, is not shown."""
        output = subprocess.DEVNULL if self.name == "page" else None
        root = Path(__file__).resolve().parent.parent
        return subprocess.Popen(
            self.command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True
        )

    def is_ready(self) -> bool:
        """Return True once the part answers with success."""
        try:
            url = f"http://{HOST}:{self.port}{self.ready_path}"
            return bool(_opener.open(url, timeout=2).status == 200)
        except OSError:
            return False


def watch(parts: list[Part], processes: list[subprocess.Popen[bytes]], signals: list[int]) -> None:
    """Say when all parts are ready, and wait for a signal; exit with a sentence if a part ends."""
    waiting = list(parts)
    while not signals:
        for part, process in zip(parts, processes, strict=True):
            if process.poll() is not None:
                sys.exit(
                    f"The {part.name} ended by itself with exit status {process.returncode}: "
                    "its last messages above say why."
                )
        if waiting and not (waiting := [part for part in waiting if not part.is_ready()]):
            addresses = [f"  {part.name:8}http://{HOST}:{part.port}" for part in parts]
            print("Ready; Ctrl-C stops both.", *addresses, sep="\n", flush=True)
        time.sleep(POLL_S)


def stop(processes: list[subprocess.Popen[bytes]], signals: list[int]) -> None:
    """Ask all processes to end, and kill those that do not; at once on a second signal."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    while running := [process for process in processes if process.poll() is None]:
        if len(signals) > 1 or time.monotonic() > deadline:
            for process in running:
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)


def run(parts: list[Part]) -> None:
    """Run all parts until a signal comes or one of them ends."""
    for part in parts:
        part.check_port()
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda number, _: signals.append(number))
    print("Starting the server and the page ...", flush=True)
    processes = [part.start() for part in parts]
    try:
        watch(parts, processes, signals)
    finally:
        stop(processes, signals)
    print("Stopped.")


def main() -> None:
    """Read the ports and run both programs."""
    usage = "make run [PORT=N] [PAGE_PORT=N]"
    parser = argparse.ArgumentParser(prog="make run", usage=usage)
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    parser.add_argument("--page-port", type=int, default=8501, help="port of the page")
    options = parser.parse_args()
    port, page_port = options.port, options.page_port
    if not (1 <= port <= 65535 and 1 <= page_port <= 65535):
        parser.error(f"PORT={port} PAGE_PORT={page_port}: give numbers from 1 to 65535")
    if port == page_port:
        parser.error(f"PORT and PAGE_PORT are both {port}: give two different ports")
    os.environ |= {"DELTABERT_HOST": HOST, "DELTABERT_PORT": str(port)}
    os.environ["FRONTEND_API_URL"] = f"http://{HOST}:{port}"
    server = [sys.executable, "-m", "app"]
    page = [sys.executable, "-m", "streamlit", "run", "frontend/main.py", "--server.address", HOST]
    page += ["--server.port", str(page_port), "--server.fileWatcherType", "none"]
    run(
        [
            Part("server", port, "PORT", "/health/ready", server),
            Part("page", page_port, "PAGE_PORT", "/_stcore/health", page),
        ]
    )


if __name__ == "__main__":
    main()
