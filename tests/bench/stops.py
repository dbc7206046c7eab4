"""Stops and kills a loaded server many times, and checks every answer that its clients got.

    python -m tests.bench.stops [--stops 200] [--kills 50] [--precisions fp32,bf16] [--json F]

Each round starts `python -m app` on the same port, loads it with 28 clients of nine kinds and sends
SIGTERM or SIGINT after a random time; every tenth round sends the signal twice. A kill is SIGKILL
at a random time from the start on, and the next start must answer. Answers are compared with
those of an idle server. Prints counts and times; the exit status is 1 if anything went wrong.

With --forked, servers are forked from a process that has imported torch, which saves most of a
start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deltas import zoo_path
from tests.bench.report import publish
from tests.bench.soak.calls import http

_HOST = "127.0.0.1"
_TASKS = ("sst2", "mrpc", "stsb", "cola")
_SLOTS = 3  # fewer than tasks, so that files are read under load, too
_START_S = 300.0
_TIMEOUT_S = 2
_LIMIT_S = _TIMEOUT_S + 3.5  # the process's own limit is three seconds more than the timeout
_END_S, _POLL_S = 30.0, 0.01
_FORKS = multiprocessing.get_context("forkserver")
_FORCED_S = 2.0  # after the second signal
_TWO_SIGNALS_S = 0.3  # signals further apart count as two; see `app.server.server`
_TOLERANCE = 0.02  # of a score: bfloat16 rounds differently in other batches
_CLIENTS = {"one": 10, "list": 4, "fan-out": 4, "half-closed": 2, "pipelined": 2, "leaver": 2}
_CLIENTS |= {"half a body": 2, "half a head": 1, "silent": 1}
_WRONG = ("wrong", "half an answer", "other status")


class Process(Protocol):
    """A server's process."""

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Send a signal."""


def started_server(environment: dict[str, str], log: Path) -> Process:
    """Start `python -m app`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "app"],
            env=os.environ | environment,
            stdout=output,
            stderr=output,
        )


class ForkedServer:
    """A server in a fork of a process that has imported everything."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._process = _FORKS.Process(target=serve_in_fork, args=(environment, str(log)))
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, sig)


def serve_in_fork(environment: dict[str, str], log: str) -> None:
    """Run the server in this process, as `python -m app` does."""
    from app.__main__ import main

    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main([]))


class Case(NamedTuple):
    """A request and the scores of its right answer, in the order of the answer."""

    content: bytes
    scores: list[float]


@dataclass
class Findings:
    """Everything that was found so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    stop_s: list[float] = field(default_factory=list)
    forced_s: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)  # all of the load
    after_signal: Counter[str] = field(default_factory=Counter)  # those that came after a signal
    problems: list[str] = field(default_factory=list)


def _post(path: str, body: Any) -> bytes:
    return http(path, json.dumps(body).encode())


def requests_of(kind: str, number: int) -> bytes:
    """Return a client's request: a row, a list, or a row for several tasks."""
    task = _TASKS[number % len(_TASKS)]
    fields = ("sentence1", "sentence2") if task in ("mrpc", "stsb") else ("sentence",)
    text = " ".join(["a good film", "it was not bad", "nobody knows"][number % 3 :] * 3)
    row = dict.fromkeys(fields, text)
    if kind == "list":
        return _post(f"/predict/{task}", {"inputs": [row] * 32})
    if kind == "fan-out":
        targets = [{"task": "sst2"}, {"task": "cola"}]
        return _post("/predict", {"inputs": text, "targets": targets})
    return _post(f"/predict/{task}", {"inputs": row})


def scores_of(answer: bytes) -> list[float]:
    """Return all scores of an answer, in its order."""
    found: list[float] = []

    def visit(node: Any) -> None:
        if isinstance(node, float):
            found.append(node)
        for child in (
            node.values() if isinstance(node, dict) else node if type(node) is list else ()
        ):
            visit(child)

    document = json.loads(answer)
    visit([answer["predictions"] for answer in document.get("results", [document])])
    return found


def split_answer(received: bytes) -> tuple[int, bytes, bytes] | None:
    """Return status, body and the bytes behind the first whole answer, or None if there is none."""
    while received.startswith(b"HTTP/1.1 100"):
        received = received.partition(b"\r\n\r\n")[2]
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        return None
    lower = head.lower()
    size = int(lower[lower.index(b"content-length:") + 15 :].split(b"\r\n")[0])
    return (int(head[9:12]), rest[:size], rest[size:]) if len(rest) >= size else None


class Load:
    """The clients of one round."""

    def __init__(self, port: int, cases: dict[tuple[str, int], Case], found: Findings) -> None:
        self._port = port
        self._cases = cases
        self._found = found
        self.is_signalled = False
        self.is_killed = False
        self.is_signalled_twice = False
        self.is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start all clients."""
        for kind, count in _CLIENTS.items():
            self._tasks += [asyncio.create_task(self._client(kind, n)) for n in range(count)]

    async def finish(self) -> None:
        """Wait for the clients, which end with the server."""
        self.is_over = True
        done, late = await asyncio.wait(self._tasks, timeout=20)
        for task in done:
            task.result()
        for task in late:
            task.cancel()
            self._found.problems.append("a client waits for ever")

    async def _client(self, kind: str, number: int) -> None:
        while not self.is_over:
            try:
                reader, writer = await asyncio.open_connection(_HOST, self._port)
            except OSError:
                self._note("connection refused")
                await asyncio.sleep(0.05)
                continue
            try:
                await self._speak(kind, number, reader, writer)
            except OSError:
                self._note("connection closed")
            finally:
                writer.close()

    async def _speak(
        self, kind: str, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Use one connection, as clients of this kind do, until it is closed."""
        while not self.is_over:
            content = self._case(kind, number).content
            if kind == "silent" or kind.startswith("half a"):
                writer.write({"silent": b"", "half a head": content[:30]}.get(kind, content[:-9]))
                answer = split_answer(await reader.read())
                self._note(f"{kind}: {answer[0]}" if answer else f"{kind}: closed")
                return
            writer.write(content * (2 if kind == "pipelined" else 1))
            if kind == "half-closed":
                writer.write_eof()
            if kind == "leaver":
                await asyncio.sleep(0.002)
                return
            again = kind != "half-closed"
            for _ in range(2 if kind == "pipelined" else 1):
                again &= await self._read(kind, number, reader)
            if not again:
                return

    async def _read(self, kind: str, number: int, reader: asyncio.StreamReader) -> bool:
        """Read an answer and judge it; returns whether the connection may be used again."""
        received = getattr(reader, "rest", b"")
        while (answer := split_answer(received)) is None:
            try:
                part = await reader.read(65536)
            except OSError:
                part = b""
            if not part:
                whole = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._note("half an answer" if whole else "connection closed")
                if whole and not (self.is_killed or self.is_signalled_twice):
                    self._found.problems.append(f"{kind} got half an answer: {whole[:300]!r}")
                return False
            received += part
        status, body, reader.rest = answer  # type: ignore[attr-defined]
        if status == 200:
            case = self._case(kind, number)
            pairs = list(zip(scores_of(body), case.scores, strict=False))
            is_right = len(pairs) == len(case.scores) == len(scores_of(body))
            is_right &= all(abs(found - wanted) < _TOLERANCE for found, wanted in pairs)
            self._note("right" if is_right else "wrong")
        else:
            code = json.loads(body)["error"]["code"] if body.startswith(b"{") else str(body[:40])
            announced = (status, code) in ((503, "not_ready"), (429, "overloaded"))
            self._note(f"{status} {code}" if announced else "other status")
            if not announced:
                self._found.problems.append(f"{kind} was answered {status} {code}")
        return b"connection: close" not in received.partition(b"\r\n\r\n")[0].lower()

    def _case(self, kind: str, number: int) -> Case:
        return self._cases[kind if kind in ("list", "fan-out") else "one", number]

    def _note(self, outcome: str) -> None:
        if outcome == "half an answer":
            if self.is_killed:
                outcome = "cut by the kill"
            elif self.is_signalled_twice:
                outcome = "cut by the second signal"
        self._found.answers[outcome] += 1
        if self.is_signalled:
            self._found.after_signal[outcome] += 1


class Rounds:
    """Starts servers one after another, on one port."""

    def __init__(self, folder: Path, port: int, found: Findings) -> None:
        self._folder = folder
        self._port = port
        self._found = found
        self._cases: dict[str, dict[tuple[str, int], Case]] = {}
        self._log = folder / "log"
        self._process: Process | None = None

    async def stop(self, number: int, precision: str, *, is_forked: bool) -> None:
        """Start, load, stop, and check what happened."""
        process = self._start(precision, is_forked=is_forked)
        if not await self._wait_until_ready(process):
            return
        if precision not in self._cases:
            self._cases[precision] = await self._right_answers()
        load = Load(self._port, self._cases[precision], self._found)
        load.start()
        await asyncio.sleep(random.uniform(0.2, 1.5))
        load.is_signalled = True
        started = time.monotonic()
        process.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        is_forced = False
        if number % 10 == 9:
            wait_s = random.uniform(0.0, 2 * _TWO_SIGNALS_S)
            is_forced = wait_s > _TWO_SIGNALS_S
            await asyncio.sleep(wait_s)
            load.is_signalled_twice = True
            if process.poll() is None:
                process.send_signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        status = await self._wait_for_end(process)
        seconds = time.monotonic() - started
        await load.finish()
        self._found.statuses[str(status)] += 1
        (self._found.forced_s if is_forced else self._found.stop_s).append(seconds)
        log = self._log.read_text(encoding="utf-8", errors="replace")
        limit = _FORCED_S if is_forced else _LIMIT_S
        if status != 0 or seconds > limit or "Traceback" in log:
            self._found.problems.append(
                f"stop {number}: status {status} after {seconds:.2f} s; log: {log[-600:]}"
            )
        self._check_port()

    async def kill(self, *, is_forked: bool) -> None:
        """Kill a server at a random moment between its start and its load."""
        process = self._start("fp32", is_forked=is_forked)
        load = Load(self._port, self._cases["fp32"], self._found)
        load.start()
        await asyncio.sleep(random.uniform(0.0, 1.5 * statistics.median(self._found.start_s)))
        load.is_killed = True
        process.send_signal(signal.SIGKILL)
        await self._wait_for_end(process)
        await load.finish()
        self._check_port()
        process = self._start("fp32", is_forked=is_forked)
        if await self._wait_until_ready(process):
            process.send_signal(signal.SIGTERM)
            self._found.statuses[f"{await self._wait_for_end(process)} after a kill"] += 1

    @property
    def has_answers(self) -> bool:
        """Whether the right answers are known, which a first stop asks for."""
        return "fp32" in self._cases

    def end(self) -> None:
        """Kill the server that still runs, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def _start(self, precision: str, *, is_forked: bool = False) -> Process:
        environment = {
            "DELTABERT_PORT": str(self._port),
            "DELTABERT_DELTAS": str(self._folder / "deltas"),
            "DELTABERT_ZOO": "false",
            "DELTABERT_WARM_UP": "false",
            "DELTABERT_MAX_SLOTS": str(_SLOTS),
            "DELTABERT_PRECISION": precision,
            "DELTABERT_SHUTDOWN_TIMEOUT_S": str(_TIMEOUT_S),
        }
        start = ForkedServer if is_forked else started_server
        self._process = start(environment, self._log)
        return self._process

    async def _wait_until_ready(self, process: Process) -> bool:
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < _START_S:
            try:
                received = await self._ask(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
                if (answer := split_answer(received)) and answer[0] == 200:
                    self._found.start_s.append(time.monotonic() - started)
                    return True
            except OSError:
                pass
            await asyncio.sleep(0.05)
        log = self._log.read_text(encoding="utf-8", errors="replace")
        self._found.problems.append(f"no start, status {process.poll()}: {log[-600:]}")
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        return False

    async def _wait_for_end(self, process: Process) -> int | None:
        for _ in range(int(_END_S / _POLL_S)):
            if (status := process.poll()) is not None:
                return status
            await asyncio.sleep(_POLL_S)
        process.send_signal(signal.SIGKILL)
        return None

    async def _right_answers(self) -> dict[tuple[str, int], Case]:
        """Ask the idle server for every answer that the load will get."""
        cases = {}
        for kind in ("one", "list", "fan-out"):
            for number in range(max(_CLIENTS.values())):
                content = requests_of(kind, number)
                answer = split_answer(await self._ask(content))
                assert answer is not None
                assert answer[0] == 200, answer
                cases[kind, number] = Case(content, scores_of(answer[1]))
        return cases

    async def _ask(self, content: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(_HOST, self._port)
        try:
            writer.write(content)
            received = b""
            while split_answer(received) is None and (part := await reader.read(65536)):
                received += part
            return received
        finally:
            writer.close()

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self._port))
            except OSError as error:
                self._found.problems.append(f"the port is not free: {error}")


async def run(options: argparse.Namespace, found: Findings) -> None:
    """Make all rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in _TASKS:
            (target := folder / "deltas" / "all-MiniLM-L6-v2" / task).mkdir(parents=True)
            shutil.copy(zoo_path() / "all-MiniLM-L6-v2" / task / "bitfit.safetensors", target)
        with socket.create_server((_HOST, options.port)) as probe:
            port = probe.getsockname()[1]
        rounds = Rounds(folder, port, found)
        precisions = options.precisions.split(",")
        try:
            for number in range(max(options.stops, options.kills)):
                if number < options.stops:
                    precision = precisions[number % len(precisions)]
                    await rounds.stop(number, precision, is_forked=options.forked)
                if number < options.kills and rounds.has_answers:
                    await rounds.kill(is_forked=options.forked)
                last = found.problems[-1:] or "none"
                sys.stderr.write(f"{dict(found.statuses)}, last problem: {last}\n")
        finally:
            rounds.end()


def summary(found: Findings) -> dict[str, Any]:
    """Return the numbers of a report."""

    def times(seconds: Sequence[float]) -> dict[str, float]:
        in_order = sorted(seconds) or [0.0]
        return {
            "median_s": round(statistics.median(in_order), 2),
            "max_s": round(in_order[-1], 2),
            "count": len(seconds),
        }

    return {
        "exit_statuses": dict(found.statuses),
        "stop": times(found.stop_s),
        "second_signal": times(found.forced_s),
        "start_to_ready": times(found.start_s),
        "answers": dict(found.answers.most_common()),
        "answers_after_a_signal": dict(found.after_signal.most_common()),
        "wrong": sum(found.answers[outcome] for outcome in _WRONG),
        "problems": found.problems,
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stops", description=__doc__)
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--forked", action="store_true", help="fork the servers")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `python -m app` sets it
    _FORKS.set_forkserver_preload(["app.server.server", "transformers"])
    found = Findings()
    with suppress(KeyboardInterrupt):  # the rounds so far count
        asyncio.run(run(options, found))
    report = summary(found)
    publish(report, [json.dumps(report, indent=1)], options.json)
    has_ended_well = all(status.startswith("0") for status in found.statuses)
    return int(bool(found.problems) or report["wrong"] > 0 or not has_ended_well)


if __name__ == "__main__":
    sys.exit(main())
