"""Sends the requests of a soak from many clients at a time, and counts the answers.

A client asks again as soon as it is answered, waits after a refusal as `Retry-After` says, and now
and then leaves in the middle of a request. A connection that is closed without an answer is a
fault: no client keeps a connection idle for so long that the server may close it.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.bench.load import Connection, Tally, watch_liveness
from tests.bench.soak.calls import RIGHT, UNANNOUNCED, WRONG, Call, CallMaker, judge_answer
from tests.bench.soak.scenario import Scenario

LOST, LEFT = "lost", "left by the client"
FAULTS = (WRONG, UNANNOUNCED, LOST)
NO_ANSWER = (OSError, asyncio.IncompleteReadError, TimeoutError)
_LEAVING = 0.08  # share of the requests that are left
_LEAVES_WITHIN_S = 0.15
GIVE_UP_S = 150.0  # far beyond the server's own deadline
_MOST_PAUSE_S = 5.0  # after a refusal, or what `Retry-After` says if it is less
_KEPT = 20  # faults in words


@dataclass
class Counts:
    """Counts answers by kind of request and outcome, and keeps the first faults in words.

    Attributes:
        outcomes: number of answers by kind and outcome.
        compared: number of right answers whose body was compared.
        faults: the first faults.
        seconds: latencies of right answers to requests of one row.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def note(self, call: Call, outcome: str, fault: str = "") -> None:
        """Count an answer."""
        self.outcomes[call.kind, outcome] += 1
        self.compared += outcome == RIGHT and call.expected is not None
        if fault and len(self.faults) < _KEPT:
            self.faults.append(f"{outcome}: {fault}")

    def of(self, *outcomes: str) -> int:
        """Return the number of answers with one of these outcomes."""
        return sum(count for (_, each), count in self.outcomes.items() if each in outcomes)


async def ask(connection: Connection, call: Call, counts: Counts) -> float:
    """Send a request and count its answer; returns the seconds to wait before the next one."""
    started, pause_s = time.perf_counter(), 0.0
    try:
        async with asyncio.timeout(GIVE_UP_S):
            response = await connection.ask_once(call.content)
    except NO_ANSWER as error:
        connection.close()
        pause_s = 1.0
        outcome, fault = LOST, f"{call.kind}: {error!r} after {time.perf_counter() - started:.1f} s"
    else:
        outcome, fault = judge_answer(call, response)
        if b"\r\nconnection: close" in response.headers:
            connection.close()
        if found := re.search(rb"\r\nretry-after: (\d+)", response.headers):
            pause_s = min(float(found[1]), _MOST_PAUSE_S)
    if call.kind == "row" and outcome == RIGHT:
        counts.seconds.append(time.perf_counter() - started)
    counts.note(call, outcome, fault)
    return pause_s


async def one_client(
    connection: Connection, calls: CallMaker, counts: Counts, chance: random.Random
) -> None:
    """Ask one request after the other, until it is cancelled."""
    try:
        while True:
            call = calls.draw()
            if chance.random() < _LEAVING:
                with suppress(OSError):  # a server that has ended is found by its process
                    await connection.send(call.content)
                # Soon after most of them, since a fast server answers within milliseconds.
                await asyncio.sleep(_LEAVES_WITHIN_S * chance.random() ** 3)
                leave = chance.choice((connection.close, connection.reset))
                leave()
                counts.note(call, LEFT)
            elif pause_s := await ask(connection, call, counts):
                connection.close()  # the server closes connections that are idle for longer
                await asyncio.sleep(pause_s)
    finally:
        connection.close()


async def many_clients(
    address: tuple[str, int], scenario: Scenario, num_clients: int, counts: Counts, probe: Tally
) -> None:
    """Run the clients and the probe of liveness, until it is cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(watch_liveness(*address, probe))
        for number in range(num_clients):
            calls, chance = CallMaker(scenario, number), random.Random(number)
            group.create_task(one_client(Connection(*address), calls, counts, chance))


async def ask_alone(address: tuple[str, int], calls: Sequence[Call], counts: Counts) -> list[bytes]:
    """Send requests one after the other to a server; returns the bodies of the answers."""
    connection, bodies = Connection(*address), []
    for call in calls:
        response = await connection.ask(call.content)
        counts.note(call, *judge_answer(call, response))
        bodies.append(response.body)
    connection.close()
    return bodies
