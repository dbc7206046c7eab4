"""Simulates the rounds of the tasks: the app's queue in front of an engine that only counts time.

    python -m tests.bench.turns [--seconds 60]

Rows of nine tasks come at random times. One task sends as much as the others, then ten times as
much; the table shows how much slower the others get. No real time passes, and the same numbers come
out every time. A batch takes a constant time and a time per token, as measured on the encoder.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from app.batching.admission import ThroughputEstimate
from app.batching.queue import QueuedRequest, RowQueue

LENGTHS = (12, 16, 20, 23, 25, 28, 30, 33, 36, 40, 48, 60, 80, 100)  # tokens; mean as GLUE's, 39
MEAN_TOKENS = sum(LENGTHS) / len(LENGTHS)
OTHERS = 8
LIGHT_SHARE = 0.04  # part of the capacity that each task uses: nine send 36 %
HEAVY = 10  # factor of the busy task's traffic: together 72 %
BUSY = 0  # number of the busy task
SIZES = (1024, 512, 384, 256)  # tokens of capped batches, to compare with the app's choice
_HEAD = """\
| | capped batch | others' p99 | ratio | busy task's p50 | p99 | refused | rows/s |
|---|---|---|---|---|---|---|---|
"""
MAX_QUEUE_S = 2.0  # rows that would wait longer are refused


SmallBatchTokens = Callable[[int], int]  # from tokens of a full batch to those of a capped one


@dataclass(frozen=True)
class Engine:
    """The cost of a batch.

    Attributes:
        batch_s: seconds that every batch takes.
        token_s: seconds that every token adds.
        max_tokens: tokens of a full batch.
    """

    batch_s: float = 0.005
    token_s: float = 40e-6
    max_tokens: int = 2048

    def seconds(self, num_tokens: int) -> float:
        """Return how long a batch takes."""
        return self.batch_s + num_tokens * self.token_s

    @property
    def rows_per_s(self) -> float:
        """Return the capacity: full batches, one after the other."""
        return self.max_tokens / self.seconds(self.max_tokens) / MEAN_TOKENS


@dataclass(frozen=True)
class Row:
    """A row with its arrival time and its length."""

    came: float
    num_tokens: int


@dataclass
class Outcome:
    """The result of a simulation.

    Attributes:
        seconds: time from the arrival of each answered row to its answer, by task.
        refused: rows that would have waited too long, by task.
        sizes: tokens of each batch.
        ended: time at which the last batch was done, in seconds.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    ended: float = 0.0

    def percentile(self, share: float, *tasks: int) -> float:
        """Return a percentile of the seconds of all rows of some tasks."""
        ordered = sorted(value for task in tasks for value in self.seconds[task])
        return ordered[int(share * (len(ordered) - 1))]

    @property
    def others(self) -> range:
        """Return the numbers of all tasks but the busy one."""
        return range(1, len(self.seconds))

    @property
    def tokens_per_s(self) -> float:
        """Return the throughput of the engine."""
        return sum(self.sizes) / self.ended


def arrivals(rates: list[float], seconds: float, seed: int = 0) -> Iterator[tuple[int, Row]]:
    """Yield rows at random times, independent for each task."""

    def of_one(task: int, rate: float) -> Iterator[tuple[float, int, int]]:
        chance = random.Random(seed * 1000 + task)
        now = chance.expovariate(rate)
        while now < seconds:
            yield now, task, chance.choice(LENGTHS)
            now += chance.expovariate(rate)

    for came, task, length in heapq.merge(*(of_one(*pair) for pair in enumerate(rates))):
        yield task, Row(came, length)


def simulate(
    engine: Engine,
    rates: list[float],
    seconds: float,
    capped: SmallBatchTokens | None = None,
) -> Outcome:
    """Let rows come and be answered in the way of `app.batching.batcher`.

    Args:
        engine: cost of a batch.
        rates: rows a second of each task; the first task is the busy one.
        seconds: time during which rows come.
        capped: tokens of a capped batch; None takes `ThroughputEstimate.small_batch_tokens`.
    """
    throughput, now = ThroughputEstimate(), 0.0
    outcome = Outcome({task: [] for task in range(len(rates))})
    queue: RowQueue[QueuedRequest[Row]] = RowQueue(capped or throughput.small_batch_tokens)
    coming = arrivals(rates, seconds)
    following = next(coming, None)
    while following is not None or queue.num_rows:
        if following is not None and not queue.num_rows:
            now = max(now, following[1].came)
        while following is not None and following[1].came <= now:
            task, row = following
            speed = throughput.at(row.came)
            if speed.busy_s + speed.token_s * queue.tokens_before(task) > MAX_QUEUE_S:
                outcome.refused[task] += 1
            else:
                queue.add(QueuedRequest([row], float("inf"), task))
            following = next(coming, None)
        batch = queue.take(256, engine.max_tokens, now)
        running = throughput.begin(batch.num_tokens, now, under_load=queue.num_rows > 0)
        now += engine.seconds(batch.num_tokens) if batch.rows else 0.0
        throughput.end(running, now)
        outcome.sizes.append(batch.num_tokens)
        for request, _ in batch.rows:
            outcome.seconds[int(str(request.key))].append(now - request.rows[0].came)
    outcome.ended = now
    return outcome


@dataclass(frozen=True)
class Scene:
    """Traffic in front of an engine.

    Attributes:
        name: label in the table.
        engine: cost of a batch.
        light: rows a second of a task; 0 means `LIGHT_SHARE` of the capacity.
        heavy: factor of the busy task's traffic.
    """

    name: str
    engine: Engine = Engine()
    light: float = 0.0
    heavy: float = HEAVY

    def play(
        self, seconds: float, capped: SmallBatchTokens | None = None
    ) -> tuple[Outcome, Outcome]:
        """Simulate nine equal tasks, then the same with a busy one; see `simulate`."""
        light = self.light or LIGHT_SHARE * self.engine.rows_per_s
        others = [light] * OTHERS
        evenly = simulate(self.engine, [light, *others], seconds, capped)
        return evenly, simulate(self.engine, [self.heavy * light, *others], seconds, capped)


def ratio(evenly: Outcome, busily: Outcome) -> float:
    """Return the factor by which a busy task slows down the slowest rows of the others."""
    others = evenly.others
    return busily.percentile(0.99, *others) / evenly.percentile(0.99, *others)


SCENES = (
    Scene("5 ms + 40 us a token, batches of 2,048"),
    Scene("the same, batches of 4,096", Engine(max_tokens=4096)),
    Scene("4 ms + 20 us a token, batches of 4,096", Engine(0.004, 20e-6, 4096)),
    Scene("3.6 ms + 79 us a token, 4,096, 13.3 rows/s a task", Engine(0.0036, 79e-6, 4096), 13.3),
    Scene("5 ms + 55 us, 22.7 rows/s a task: 90 % of the engine", Engine(0.005, 55e-6), 22.7),
    Scene("the first, but 40 times: 1.9 times the capacity", heavy=40),
)


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.turns", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    sys.stdout.write(_HEAD)
    for scene in SCENES:
        rules: dict[str, SmallBatchTokens | None] = {"none": lambda max_tokens: max_tokens}
        rules |= {f"{size:,}": partial(min, size) for size in SIZES}
        rules["the app's"] = None
        for name, capped in rules.items():
            sys.stdout.write(line(scene, name, *scene.play(seconds, capped)) + "\n")
    return 0


def line(scene: Scene, rule: str, evenly: Outcome, busily: Outcome) -> str:
    """Return one line of the table."""
    others = [1000 * run.percentile(0.99, *run.others) for run in (evenly, busily)]
    own = [1000 * busily.percentile(share, BUSY) for share in (0.5, 0.99)]
    refused = busily.refused[BUSY] / (busily.refused[BUSY] + len(busily.seconds[BUSY]))
    return (
        f"| {scene.name} | {rule} | {others[0]:.0f}, {others[1]:.0f} ms "
        f"| {ratio(evenly, busily):.2f} | {own[0]:,.0f} ms | {own[1]:,.0f} ms | {refused:.0%} "
        f"| {busily.tokens_per_s / MEAN_TOKENS:,.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
