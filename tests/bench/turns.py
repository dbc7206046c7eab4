"""A simulation of the tasks' turns: the app's own queue before an engine that only counts time.

    python -m tests.bench.turns [--seconds 60]

Rows of nine tasks come at random times. One task sends as much as the others, then ten times as
much; the table shows what that does to the others. No real time passes, and the same numbers come
out every time. How fast a batch is: a constant and so much a token, as the encoder was measured.
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

from app.batching.admission import Pace
from app.batching.queue import RowQueue, Ticket

LENGTHS = (12, 16, 20, 23, 25, 28, 30, 33, 36, 40, 48, 60, 80, 100)  # tokens; mean as GLUE's, 39
MEAN_TOKENS = sum(LENGTHS) / len(LENGTHS)
OTHERS = 8
LIGHT_SHARE = 0.04  # of the capacity, for each task: nine send 36 %
HEAVY = 10  # times as much is the busy task's: together 72 %
BUSY = 0  # its number
SIZES = (1024, 512, 384, 256)  # of short batches, to compare with the app's own
_HEAD = """\
| | short batch | others' p99 | ratio | busy task's p50 | p99 | refused | rows/s |
|---|---|---|---|---|---|---|---|
"""
MAX_QUEUE_S = 2.0  # who would wait longer is refused


ShortBudget = Callable[[int], int]  # from the tokens of a full batch to those of a short one


@dataclass(frozen=True)
class Engine:
    """What batches cost.

    Attributes:
        batch_s: of every batch, in seconds.
        token_s: of every token, in seconds.
        max_tokens: of a full batch.
    """

    batch_s: float = 0.005
    token_s: float = 40e-6
    max_tokens: int = 2048

    def seconds(self, num_tokens: int) -> float:
        """How long a batch takes."""
        return self.batch_s + num_tokens * self.token_s

    @property
    def rows_per_s(self) -> float:
        """The capacity: full batches, one after the other."""
        return self.max_tokens / self.seconds(self.max_tokens) / MEAN_TOKENS


@dataclass(frozen=True)
class Row:
    """A row that has come at a time and will take so many tokens."""

    came: float
    num_tokens: int


@dataclass
class Outcome:
    """What came of a simulation.

    Attributes:
        seconds: from each answered row's arrival to its answer, by task.
        refused: rows that would have waited too long, by task.
        sizes: the tokens of each batch.
        ended: when the last batch was done, in seconds.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    ended: float = 0.0

    def percentile(self, share: float, *tasks: int) -> float:
        """Of the seconds of all rows of some tasks."""
        ordered = sorted(value for task in tasks for value in self.seconds[task])
        return ordered[int(share * (len(ordered) - 1))]

    @property
    def others(self) -> range:
        """All tasks but the busy one."""
        return range(1, len(self.seconds))

    @property
    def tokens_per_s(self) -> float:
        """What the engine got done."""
        return sum(self.sizes) / self.ended


def arrivals(rates: list[float], seconds: float, seed: int = 0) -> Iterator[tuple[int, Row]]:
    """Rows at random times, each task's independent of the others'."""

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
    short: ShortBudget | None = None,
) -> Outcome:
    """Have rows come and be answered, as `app.batching.batcher` does it.

    Args:
        engine: what batches cost.
        rates: rows a second of each task; the first one is the busy one.
        seconds: for how long rows come.
        short: how far one task alone may fill a batch; None: as `app.batching.admission` says.
    """
    pace, outcome, now = Pace(), Outcome({task: [] for task in range(len(rates))}), 0.0
    queue: RowQueue[Ticket[Row]] = RowQueue(short or pace.short_budget)
    coming = arrivals(rates, seconds)
    following = next(coming, None)
    while following is not None or queue.num_rows:
        if following is not None and not queue.num_rows:
            now = max(now, following[1].came)
        while following is not None and following[1].came <= now:
            task, row = following
            if pace.seconds(queue.tokens_before(task), row.came) > MAX_QUEUE_S:
                outcome.refused[task] += 1
            else:
                queue.add(Ticket([row], float("inf"), task))
            following = next(coming, None)
        batch, _ = queue.take(256, engine.max_tokens, now)
        size = sum(ticket.rows[0].num_tokens for ticket, _ in batch)
        running = pace.begin(size, now, rows_wait=queue.num_rows > 0)
        now += engine.seconds(size) if batch else 0.0
        pace.end(running, now)
        outcome.sizes.append(size)
        for ticket, _ in batch:
            outcome.seconds[int(str(ticket.key))].append(now - ticket.rows[0].came)
    outcome.ended = now
    return outcome


@dataclass(frozen=True)
class Scene:
    """What comes before which engine.

    Attributes:
        name: for the table.
        engine: what batches cost.
        light: rows a second of a task; 0: `LIGHT_SHARE` of the capacity.
        heavy: how many times as much the busy task sends.
    """

    name: str
    engine: Engine = Engine()
    light: float = 0.0
    heavy: float = HEAVY

    def play(self, seconds: float, short: ShortBudget | None = None) -> tuple[Outcome, Outcome]:
        """With nine equal tasks, and with the busy one among them; arguments as of `simulate`."""
        light = self.light or LIGHT_SHARE * self.engine.rows_per_s
        others = [light] * OTHERS
        evenly = simulate(self.engine, [light, *others], seconds, short)
        return evenly, simulate(self.engine, [self.heavy * light, *others], seconds, short)


def ratio(evenly: Outcome, busily: Outcome) -> float:
    """How many times as long the others' slowest rows take beside the busy task."""
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
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.turns", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    sys.stdout.write(_HEAD)
    for scene in SCENES:
        rules: dict[str, ShortBudget | None] = {"none": lambda max_tokens: max_tokens}
        rules |= {f"{size:,}": partial(min, size) for size in SIZES}
        rules["the app's"] = None
        for name, short in rules.items():
            sys.stdout.write(line(scene, name, *scene.play(seconds, short)) + "\n")
    return 0


def line(scene: Scene, rule: str, evenly: Outcome, busily: Outcome) -> str:
    """One line of the table."""
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
