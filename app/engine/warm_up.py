"""Prepares the engine before the first request: measures the fastest settings, compiles kernels.

The best numbers of threads, parallel batches and tokens per batch depend on the machine, its load
and the backbone: large batches read the weights less often, small ones are answered sooner and stay
in the caches. So batches of made-up rows run through the engine, with the deltas that it serves.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError

import torch

from app.engine.engine import Engine, EngineRow
from app.engine.tuning import LoadMeter, Tuning, num_cpus, recall, remember
from deltas import TokenizedRow
from deltas.hardware import give_back_freed_memory

logger = logging.getLogger(__name__)

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)  # tokens per batch
_MEASURED_TOKENS = BUDGETS[1]  # tokens of the batches that threads and workers are measured with
_MAX_BATCH_S = 0.25  # seconds that the next request would wait for a batch
_FAST_ENOUGH = 0.95  # of the best speed: smaller batches or fewer threads are worth the rest
_ROW_TOKENS = (12, 24, 9, 60, 33, 45, 18, 100, 28)  # mean 37, as in GLUE's dev sets
_MAX_TASKS = 9
_REPEATS = 2


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


def warm_up(
    engine: Engine,
    threads: int = 0,
    workers: int = 0,
    max_batch_tokens: int = 0,
    max_batch_rows: int = 256,
    *,
    few_tokens: int = 0,
    reuse: bool = False,
) -> Tuning:
    """Measure the numbers that are 0, and compile; run it in a thread that ends before serving.

    Args:
        engine: serves at least one delta, and is not in use yet.
        threads: threads of a forward pass.
        workers: forward passes that run at the same time.
        max_batch_tokens: most tokens of a batch.
        max_batch_rows: most rows of a batch; never measured.
        few_tokens: most tokens of several rows that get the full machine if batches may run at the
            same time; more rows are divided.
        reuse: whether to take the numbers that an earlier start has measured on this machine, and
            to keep new ones for the next start.
    """
    given = threads, workers, max_batch_tokens
    tuning = recall(engine, given) if reuse else None
    if tuning is None:
        meter = LoadMeter()
        tuning = _measure(engine, threads, workers, max_batch_tokens)
        if reuse:
            remember(engine, given, tuning, meter.share_of_others())
    torch.set_num_threads(tuning.threads)
    engine.cache.set_concurrency(tuning.workers)
    _prepare(engine, tuning, max_batch_rows, few_tokens)
    engine.reset_counts()
    give_back_freed_memory()
    return tuning


def _measure(engine: Engine, threads: int, workers: int, max_batch_tokens: int) -> Tuning:
    on_cpu, tokens = engine.device.type == "cpu", _MEASURED_TOKENS
    # Parallel passes may use cores that a single pass gains nothing from.
    shared = threads or (num_cpus() if on_cpu else torch.get_num_threads())
    if not threads and on_cpu:
        threads = choose(THREADS, lambda n: seconds_for(engine, tokens, n), tokens, shared)
    if not workers and on_cpu and shared > 1:
        workers = choose(
            WORKERS,
            lambda n: seconds_in_parallel(engine, tokens, n, max(1, shared // n)),
            tokens,
            shared,
        )
    workers = _limit_workers(engine, workers or 1, shared)
    threads = threads or shared
    engine.cache.set_concurrency(1)
    torch.set_num_threads(threads)
    if not max_batch_tokens:
        max_batch_tokens = choose(TOKENS, lambda count: seconds_for(engine, count))
    workers = engine.cache.set_concurrency(workers)
    return Tuning(threads, workers, max(1, shared // workers), max_batch_tokens)


def tune_without_measuring(
    engine: Engine, threads: int, workers: int, max_batch_tokens: int
) -> Tuning:
    """Use the given numbers; by default all threads of PyTorch and one batch at a time."""
    threads = threads or torch.get_num_threads()
    workers = engine.cache.set_concurrency(_limit_workers(engine, workers or 1, threads))
    return Tuning(threads, workers, max(1, threads // workers), max_batch_tokens)


def choose(
    option: Option, seconds: Callable[[int], float], tokens: int | None = None, threads: int = 1
) -> int:
    """Measure an option's candidates, log their speeds, and return the best one.

    Args:
        option: the number to choose.
        seconds: runs a batch with a candidate; returns its duration.
        tokens: tokens of that batch; None if the candidate is their number.
        threads: most threads.
    """
    speeds: dict[int, float] = {}
    for candidate in option.candidates(threads):
        seconds(candidate)  # the first run does not count
        best_s = min(seconds(candidate) for _ in range(_REPEATS))
        if speeds and best_s > option.max_s:
            break
        speeds[candidate] = (tokens or candidate) / best_s
    fastest = max(speeds.values())
    chosen = option.prefer([n for n, speed in speeds.items() if speed >= _FAST_ENOUGH * fastest])
    tried = ", ".join(f"{candidate:,}: {speed:,.0f}" for candidate, speed in speeds.items())
    logger.info("%s: %s (tokens/s with %s)", option.name, f"{chosen:,}", tried)
    return chosen


def _limit_workers(engine: Engine, workers: int, threads: int) -> int:
    """Limit parallel batches to the number of threads, and to one on a GPU."""
    if engine.device.type != "cpu":
        if workers > 1:
            logger.warning("running 1 batch at a time, not %d: the device is a GPU", workers)
        return 1
    if workers > threads:
        message = "running %d batches in parallel, not %d: there are %d threads"
        logger.warning(message, threads, workers, threads)
    return min(workers, threads)


def _prepare(engine: Engine, tuning: Tuning, max_rows: int, few_tokens: int) -> None:
    """Compile or record for batches on the full machine, and on shares of the machine.

    OneDNN compiles for a number of threads, and keeps half a megabyte for each product.
    """
    started = time.perf_counter()
    full = tuning.batch_tokens
    if tuning.workers > 1:
        # Fewer rows than workers, each of two sequences at most, or a few short ones.
        full = min(full, max(few_tokens, (tuning.workers - 1) * 2 * engine.longest_sequence))
    most: dict[int, int] = {tuning.threads: full}
    share = max(1, tuning.batch_tokens // tuning.workers)
    most[tuning.share_threads] = max(most.get(tuning.share_threads, 0), share)
    if made := sum(engine.prepare(tokens, count, max_rows) for count, tokens in most.items()):
        kind = "products compiled" if engine.device.type == "cpu" else "passes recorded"
        logger.info("%d %s in %.1f s", made, kind, time.perf_counter() - started)


def seconds_in_parallel(engine: Engine, num_tokens: int, workers: int, threads: int) -> float:
    """Run parallel batches twice, after a first time that does not count; returns mean seconds.

    Args:
        engine: serves at least one delta.
        num_tokens: tokens of all batches that run at the same time.
        workers: number of these batches.
        threads: threads of each batch.
    """
    workers = engine.cache.set_concurrency(workers)
    rows = made_up_rows(engine, num_tokens // workers)
    start = Barrier(workers)

    def run() -> tuple[float, float]:
        try:
            engine.predict(rows, threads)  # the first pass of a thread starts its OpenMP team
        except BaseException:
            start.abort()  # the other threads would wait for this one
            raise
        start.wait()
        started = time.perf_counter()
        for _ in range(_REPEATS):
            engine.predict(rows, threads)
        return started, time.perf_counter()

    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(run) for _ in range(workers)]
    failed = [error for error in (done.exception() for done in runs) if error]
    for error in sorted(failed, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    started, ended = zip(*(done.result() for done in runs), strict=True)
    return float(max(ended) - min(started)) / _REPEATS


def seconds_for(engine: Engine, num_tokens: int, threads: int = 0) -> float:
    """Run a batch of rows of mixed lengths; returns its seconds."""
    rows = made_up_rows(engine, num_tokens)
    started = time.perf_counter()
    engine.predict(rows, threads)
    return time.perf_counter() - started


def made_up_rows(engine: Engine, num_tokens: int) -> list[EngineRow]:
    """Make up rows of mixed lengths for some tasks' default deltas, `num_tokens` in total."""
    tasks = engine.store.tasks[:_MAX_TASKS]
    most = min(len(tasks), engine.cache.max_slots or len(tasks))
    records = [engine.store.resolve(task) for task in tasks[:most]]
    rows: list[EngineRow] = []
    while num_tokens > 0:
        record = records[len(rows) % len(records)]
        task = record.manifest.task
        longest = min(task.max_length, num_tokens)
        length = min(_ROW_TOKENS[len(rows) % len(_ROW_TOKENS)], longest)
        second = None
        if task.pairs == "separate":
            length = max(length, 2)  # two sequences
            second = length // 2
        ids = [(len(rows) + offset) % engine.backbone.config.vocab_size for offset in range(length)]
        rows.append(EngineRow(TokenizedRow(ids, [0] * length, False, second), record, length))
        num_tokens -= length
    return rows
