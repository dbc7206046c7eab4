"""Chooses threads, parallel batches and tokens per batch from measurements at start.

The best numbers depend on the machine, its load and the backbone: large batches read the weights
less often, small ones are answered sooner and stay in the caches. This module measures nothing
itself; `app.engine.warm_up` hands in functions that run the engine and return seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)  # tokens per batch
_MAX_BATCH_S = 0.25  # seconds that the next request would wait for a batch
_FAST_ENOUGH = 0.95  # of the best speed: smaller batches or fewer threads are worth the rest
_RUNS = 2


@dataclass(frozen=True)
class Tuning:
    """The numbers chosen for a server."""

    threads: int  # per forward pass that has the full machine
    workers: int  # forward passes that may run at the same time
    share_threads: int  # per forward pass while several run
    batch_tokens: int  # limit for a batch that has the full machine


@dataclass(frozen=True)
class Option:
    """A number to choose."""

    name: str  # in the log
    candidates: Callable[[int], Iterable[int]]  # given the number of threads, smallest first
    prefer: Callable[[Iterable[int]], int]  # chooses among the nearly fastest candidates
    max_s: float = math.inf  # after a batch that takes longer, no larger candidate is tried


THREADS = Option("threads", lambda cpus: sorted({max(cpus >> n, 1) for n in range(32)}), min)
# As many as possible: these are measured while nothing else runs. Beside a busy event loop, the
# threads of one pass wait for a thread that lost its core; several passes do not.
WORKERS = Option(
    "parallel batches", lambda threads: [2**n for n in range(threads.bit_length())], max
)
TOKENS = Option("tokens per batch", lambda _: BUDGETS, min, _MAX_BATCH_S)


@dataclass(frozen=True)
class Measured:
    """A chosen number, and the tokens per second measured with each candidate."""

    value: int
    tokens_per_s: dict[int, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{size:,}: {speed:,.0f}" for size, speed in self.tokens_per_s.items())
        return f"{self.value:,} (tokens/s with {tried})"


def choose(
    option: Option, seconds: Callable[[int], float], tokens: int | None = None, threads: int = 1
) -> Measured:
    """Measure an option's candidates and choose one.

    Args:
        option: the number to choose.
        seconds: runs a batch with a candidate; returns its duration.
        tokens: tokens of that batch; None if the candidate is their number.
        threads: most threads.
    """
    speeds: dict[int, float] = {}
    for candidate in option.candidates(threads):
        best_s = best_of(partial(seconds, candidate))
        if speeds and best_s > option.max_s:
            break
        speeds[candidate] = (tokens or candidate) / best_s
    fastest = max(speeds.values())
    fast = [candidate for candidate, speed in speeds.items() if speed >= _FAST_ENOUGH * fastest]
    return Measured(option.prefer(fast), speeds)


def best_of(seconds: Callable[[], float]) -> float:
    """Return the shortest of some runs after a first one that does not count."""
    seconds()
    return min(seconds() for _ in range(_RUNS))
