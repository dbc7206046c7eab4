"""Chooses at start, by short measurements: threads, batches side by side, tokens of a batch.

All depend on the machine, on what else runs there and on the backbone, so that no fixed number is
right: large batches read the weights less often, small ones are answered sooner and stay in the
caches. Pure functions of a stopwatch; `app.engine.warm_up` hands in one that runs the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
DEFAULT_BUDGET = 4096
_LONGEST_BATCH_S = 0.25  # what the next request would wait for
_GOOD_ENOUGH = 0.95  # of the best speed: smaller batches, or fewer threads, are worth the rest
_TIMES = 2


@dataclass(frozen=True)
class Tuning:
    """What was chosen for a server.

    Attributes:
        threads: of a forward pass that has the machine for itself.
        workers: how many passes run side by side otherwise.
        share_threads: of each of these.
        batch_tokens: most tokens of a batch that has the machine for itself.
    """

    threads: int
    workers: int = 1
    share_threads: int = 1
    batch_tokens: int = DEFAULT_BUDGET


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        value: the number of threads, workers or tokens.
        tokens_per_s: the speed measured with each candidate that was tried.
    """

    value: int
    tokens_per_s: dict[int, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{size:,}: {speed:,.0f}" for size, speed in self.tokens_per_s.items())
        return f"{self.value:,} (tokens/s with {tried})"


def choose_budget(seconds_for: Callable[[int], float], budgets: Sequence[int] = BUDGETS) -> Choice:
    """The smallest budget that is nearly as fast as the fastest.

    Args:
        seconds_for: runs a batch of so many tokens; returns the seconds that it took.
        budgets: what to try, smallest first; the rest is skipped once a batch takes too long.
    """
    speeds: dict[int, float] = {}
    for budget in budgets:
        seconds = best_of(partial(seconds_for, budget))
        if speeds and seconds > _LONGEST_BATCH_S:
            break
        speeds[budget] = budget / seconds
    return Choice(min(_nearly_fastest(speeds)), speeds)


def choose_threads(seconds_with: Callable[[int], float], tokens: int, cpus: int) -> Choice:
    """The fewest threads that are nearly as fast as the fastest: all, half of them, and so on.

    Args:
        seconds_with: runs a batch with so many threads; returns the seconds that it took.
        tokens: of that batch, for the report.
        cpus: what this process may use.
    """
    counts = sorted({max(cpus >> halvings, 1) for halvings in range(cpus.bit_length())})
    speeds = {count: tokens / best_of(partial(seconds_with, count)) for count in counts}
    return Choice(min(_nearly_fastest(speeds)), speeds)


def choose_workers(seconds_with: Callable[[int], float], tokens: int, threads: int) -> Choice:
    """The most workers that are nearly as fast as the fastest: one, two, four, and so on.

    The most, since this is measured while nothing else runs: beside a busy event loop the threads
    of one pass wait for whichever of them lost its processor, those of several do not.

    Args:
        seconds_with: runs batches in so many workers at a time, with so many tokens in all; returns
            the seconds that all of them took.
        tokens: of these batches, for the report.
        threads: what they share.
    """
    counts = [2**doublings for doublings in range(threads.bit_length())]
    speeds = {count: tokens / min(seconds_with(count) for _ in range(_TIMES)) for count in counts}
    return Choice(max(_nearly_fastest(speeds)), speeds)


def best_of(seconds: Callable[[], float], times: int = _TIMES) -> float:
    """The shortest of some runs after one that does not count: others disturb, none helps."""
    seconds()
    return min(seconds() for _ in range(times))


def _nearly_fastest(speeds: dict[int, float]) -> list[int]:
    best = max(speeds.values())
    return [size for size, speed in speeds.items() if speed >= _GOOD_ENOUGH * best]
