"""Measures a cluster: lost requests when replicas are killed, old answers after a change, load.

    python -m tests.bench.cluster [--only kills,changes,...] [--kills 20] [--json FILE]

Clusters and servers run as users start them, with the packaged backbone and the shipped deltas.
Half of the clients send each request once, on a connection that they keep. The others repeat a
failed request once, on a new connection. A refusal for overload (429) is no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltas import Store, load_backbone, write_delta, zoo_path
from tests.bench.load import Connection, Response
from tests.bench.server_process import ServerProcess, running_server
from tests.factories import make_delta
from tests.http.admin_key import ADMIN, KEYS

TASK, STRATEGY = "sst2", "head"
APP, COORDINATOR = "deltabert", "deltabert-coordinator"  # as in `app.cluster.replica`
PARTS = ("kills", "changes", "scaling", "throughput")
OLD_AFTER_S = 2.0
_ALL_UP_S = 300.0
_PAUSE_S = 0.02  # of a client, between two requests
_WORDS = "the film story plot actor is was very not quite good bad dull bright and but"


@dataclass
class Tally:
    """The requests of one kind of client.

    Attributes:
        requests: requests, each counted once, however often it was sent.
        repeated: requests that were sent twice.
        refused: answers with 429.
        failed: causes of requests that had no answer in the end.
    """

    requests: int = 0
    repeated: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Seen:
    """A version that answered a request, and when the request was sent."""

    sent: float
    version: str


def request_bytes(row: str, method: str = "POST", path: str = "", content: bytes = b"") -> bytes:
    """Return a prediction of a row, or another request of the admin, as bytes to send."""
    body = content or json.dumps({"inputs": row, "strategy": STRATEGY}).encode()
    head = f"{method} {path or f'/predict/{TASK}'} HTTP/1.1\r\nHost: cluster\r\n"
    head += "Content-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in ADMIN.items())
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def sentence(draw: random.Random) -> str:
    """Return a row of words at random; its length is that of GLUE's rows, 39 tokens in the mean."""
    return " ".join(draw.choices(_WORDS.split(), k=draw.randint(8, 66)))


async def ask_once(connection: Connection, request: bytes, tally: Tally) -> Response | str:
    """Return the answer of a request, or the cause of its failure.

    As HTTP clients do, it opens another connection if the idle one was closed: the proxy closes
    connections after an answer whenever the list of replicas changes.
    """
    if connection.was_closed:
        connection.close()
    try:
        async with asyncio.timeout(60):
            answer = await connection.ask_once(request)
    except (OSError, EOFError, TimeoutError) as error:
        connection.close()
        return type(error).__name__
    if answer.status == 200:
        return answer
    if answer.status == 429:
        tally.refused += 1
        return answer
    return f"status {answer.status}"


async def client(
    address: tuple[str, int], tally: Tally, seen: list[Seen], number: int, *, repeats: bool
) -> None:
    """Send requests until cancelled."""
    draw, connection = random.Random(number), Connection(*address)
    while True:
        request, sent = request_bytes(sentence(draw)), time.perf_counter()
        answer = await ask_once(connection, request, tally)
        tally.requests += 1
        if isinstance(answer, str) and repeats:
            tally.repeated += 1
            connection.close()
            answer = await ask_once(connection, request, tally)
        if isinstance(answer, str):
            tally.failed[answer] += 1
        elif answer.status == 200:
            seen.append(Seen(sent, json.loads(answer.body)["version"]))
        await asyncio.sleep(_PAUSE_S)


class Load:
    """Clients of both kinds, from the start of the block to its end."""

    def __init__(self, address: tuple[str, int], clients: int) -> None:
        self.tallies = {"once": Tally(), "repeated once": Tally()}
        self.seen: list[Seen] = []
        self._address = address
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        for number in range(self._clients):
            repeats = number % 2 == 1
            tally = self.tallies["repeated once" if repeats else "once"]
            work = client(self._address, tally, self.seen, number, repeats=repeats)
            self._tasks.append(asyncio.create_task(work))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def facts(self) -> dict[str, Any]:
        tallies = self.tallies.items()
        return {name: vars(tally) | {"failed": dict(tally.failed)} for name, tally in tallies}


class Members:
    """Knows the replicas that have joined the cluster on this machine."""

    def __init__(self) -> None:
        import ray

        ray.init("auto", namespace=APP, log_to_driver=False, logging_level="ERROR")
        self._coordinator = ray.get_actor(COORDINATOR, namespace=APP)

    async def pids(self, count: int, gone: set[int]) -> list[int]:
        """Wait until so many replicas are there beside those that are gone; return their pids."""
        deadline = time.monotonic() + _ALL_UP_S
        while time.monotonic() < deadline:
            members = await self._coordinator.members.remote()
            if len(pids := {pid for _, _, pid in members} - gone) >= count:
                return sorted(pids)
            await asyncio.sleep(0.2)
        raise RuntimeError(f"less than {count} replicas after {_ALL_UP_S:g} s: {members}")


async def kills(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Kill replicas under load, each time when as many as at the start are there again."""
    draw, gone, started = random.Random(0), set[int](), time.perf_counter()
    members = Members()
    async with Load(server.address, options.clients) as load:
        for number in range(options.kills):
            victim = draw.choice(await members.pids(options.replicas, gone))
            await asyncio.sleep(options.pause)  # so that the last one that started answers, too
            os.kill(victim, signal.SIGKILL)
            gone.add(victim)
            sys.stderr.write(f"kill {number + 1}: {json.dumps(load.facts())}\n")
        await members.pids(options.replicas, gone)
        await asyncio.sleep(options.pause)
    seconds = round(time.perf_counter() - started, 1)
    return {"kills": options.kills, "replicas": options.replicas, "seconds": seconds} | load.facts()


def version_files(folder: Path) -> list[bytes]:
    """Return two versions of the delta that the clients ask for."""
    backbone = load_backbone()
    task = Store([zoo_path()], backbone=backbone.ref).resolve(TASK, STRATEGY).manifest.task
    files = [folder / f"version-{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(files):
        write_delta(make_delta(backbone, task, STRATEGY, seed), path)
    return [path.read_bytes() for path in files]


async def changes(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Publish versions in turns under load, and count the answers of older ones."""
    with tempfile.TemporaryDirectory() as folder:
        files = await asyncio.to_thread(version_files, Path(folder))
    old, late, acknowledged_s = 0, 0, []
    answers = 0
    async with Load(server.address, options.clients) as load:
        await asyncio.sleep(1)
        for number in range(options.changes):
            content = files[number % 2]
            request = request_bytes("", "PUT", f"/deltas/{TASK}/{STRATEGY}", content)
            begun = time.perf_counter()
            answer = await Connection(*server.address).ask_once(request)
            done = time.perf_counter()
            if answer.status != 200:
                raise RuntimeError(f"a change was refused: {answer.body.decode()}")
            acknowledged_s.append(round(done - begun, 3))
            version = json.loads(answer.body)["version"]
            await asyncio.sleep(OLD_AFTER_S + 2)
            after = [one for one in load.seen if one.sent > done]
            answers += len(after)
            old += sum(one.version != version for one in after)
            late += sum(one.version != version for one in after if one.sent > done + OLD_AFTER_S)
    return {
        "changes": options.changes,
        "replicas": options.replicas,
        "answers_after": answers,
        "old_after_acknowledgement": old,
        f"old_after_{OLD_AFTER_S:g}_s": late,
        "acknowledged_s": sorted(acknowledged_s),
    } | load.facts()


async def rate(server: ServerProcess, connections: int, seconds: float) -> dict[str, Any]:
    """Return the rows/s of connections that ask again as soon as they were answered."""
    statuses = Counter[int]()
    until = time.perf_counter() + seconds

    async def one(number: int) -> None:
        draw, connection = random.Random(number), Connection(*server.address)
        while time.perf_counter() < until:
            answer = await connection.ask(request_bytes(sentence(draw)))
            statuses[answer.status] += 1
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(connections)))
    passed = time.perf_counter() - started
    return {"rows_per_s": round(statuses[200] / passed, 1), "statuses": dict(statuses)}


async def scaling(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Overload one replica that may become two, and wait for the second one."""
    members, begun = Members(), time.perf_counter()
    load = asyncio.create_task(rate(server, options.connections, _ALL_UP_S))
    try:
        await members.pids(2, set())
        seconds = round(time.perf_counter() - begun, 1)
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    return {"second_replica_answers_after_s": seconds, "connections": options.connections}


def started(
    folder: Path, command: Sequence[str], **settings: str
) -> AbstractContextManager[ServerProcess]:
    """Start a cluster or a server with a folder that takes changes."""
    deltas = folder / "deltas"
    deltas.mkdir(exist_ok=True)
    given = {"DELTAS": str(deltas), "KEYS": KEYS, "LOG_LEVEL": "warning"} | settings
    return running_server(folder / f"{command[0]}.log", given, command=command)


def throughput(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure two replicas of one thread, and one process of two threads, in turns."""
    found: dict[str, list[float]] = {"cluster": [], "process": []}
    kinds: dict[str, tuple[Sequence[str], dict[str, str]]] = {
        "cluster": (("app.cluster", "--replicas", "2", "--threads", "1"), {}),
        "process": (("app",), {"THREADS": "2"}),
    }
    for name, (command, settings) in kinds.items():
        with started(folder, command, **settings) as server:
            for number in range(options.rounds + 1):
                facts = asyncio.run(rate(server, options.connections, options.seconds))
                sys.stderr.write(f"{name}: {json.dumps(facts)}\n")
                if number:  # the first round warms up
                    found[name].append(facts["rows_per_s"])
    best = {name: max(rates) for name, rates in found.items()}
    ratio = round(best["cluster"] / best["process"], 3)
    return {"rows_per_s": found, "best_ratio": ratio, "connections": options.connections}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster", description=__doc__)
    add = parser.add_argument
    add("--only", default=",".join(PARTS), help="parts, separated by commas")
    add("--replicas", type=int, default=4)
    add("--clients", type=int, default=8)
    add("--kills", type=int, default=20)
    add("--pause", type=float, default=5.0, help="seconds between a start and the next kill")
    add("--changes", type=int, default=10)
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=15.0, help="of a round of the throughput")
    add("--connections", type=int, default=64)
    add("--json", type=Path, help="file for the results")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.only.split(","):
            if part == "throughput":
                results[part] = throughput(folder, options)
                continue
            run = {"kills": kills, "changes": changes, "scaling": scaling}[part]
            number = ("1", "--max-replicas", "2") if part == "scaling" else (str(options.replicas),)
            cluster = ("app.cluster", "--replicas", *number)
            with started(folder, cluster, THREADS="1", REUSE_TUNING="true") as server:
                results[part] = asyncio.run(run(server, options))
            sys.stderr.write(f"{part}: {json.dumps(results[part])}\n")
    text = json.dumps(results, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
