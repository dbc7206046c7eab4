"""What a server does before its first request: measures what is fast, has kernels compiled.

Runs real batches of made-up rows through the engine, with the deltas that it serves.
"""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import torch

from app.engine.engine import Engine, EngineRow
from app.engine.tuning import BUDGETS, Tuning, choose_budget, choose_threads, choose_workers
from deltas import TokenizedRow

logger = logging.getLogger(__name__)

_LENGTHS = (12, 24, 9, 60, 33, 45, 18, 100, 28)  # mean 37, as in GLUE's dev sets
_MOST_TASKS = 9
_IN_A_ROW = 2


def warm_up(
    engine: Engine,
    threads: int = 0,
    workers: int = 0,
    max_batch_tokens: int = 0,
    max_batch_rows: int = 256,
) -> Tuning:
    """Choose what is left open and compile; call it in a thread that ends before the server starts.

    Args:
        engine: not in use yet; serves at least one delta.
        threads: of the forward pass; 0 lets this choose.
        workers: passes side by side; 0 lets this choose.
        max_batch_tokens: 0 lets this choose.
        max_batch_rows: of a batch, at most.
    """
    on_cpu = engine.device.type == "cpu"
    # Passes side by side may use processors that a pass by itself gains nothing from.
    shared = threads or (_num_cpus() if on_cpu else torch.get_num_threads())
    if not threads:
        threads = _choose_threads(engine) if on_cpu else shared
    if workers:
        workers = fitting_workers(engine, workers, shared)
    else:
        workers = _choose_workers(engine, shared) if on_cpu and shared > 1 else 1
    engine.cache.set_concurrency(1)  # as it is for a batch by itself
    torch.set_num_threads(threads)
    if not max_batch_tokens:
        budget = choose_budget(lambda tokens: seconds_for(engine, tokens))
        max_batch_tokens = budget.value
        logger.info("tokens a batch: %s", budget)
    workers = engine.cache.set_concurrency(workers)
    tuning = Tuning(threads, workers, max(1, shared // workers), max_batch_tokens)
    _prepare(engine, tuning, max_batch_rows)
    engine.reset_counts()
    return tuning


def fitting_workers(engine: Engine, workers: int, threads: int) -> int:
    """So many workers as there are threads for, at most; one on a GPU."""
    if engine.device.type != "cpu":
        if workers > 1:
            logger.warning("one batch at a time, not %d: the server runs on a GPU", workers)
        return 1
    if workers > threads:
        logger.warning("%d batches side by side, not %d: threads are %d", threads, workers, threads)
    return min(workers, threads)


def _prepare(engine: Engine, tuning: Tuning, max_rows: int) -> None:
    """OneDNN's code is made for a certain number of threads; graphs on a GPU for any."""
    started = time.perf_counter()
    most: dict[int, int] = {tuning.threads: tuning.batch_tokens}
    share = max(1, tuning.batch_tokens // tuning.workers)
    most[tuning.share_threads] = max(most.get(tuning.share_threads, 0), share)
    if made := sum(engine.prepare(tokens, count, max_rows) for count, tokens in most.items()):
        kind = "products compiled" if engine.device.type == "cpu" else "passes recorded"
        logger.info("%d %s in %.1f s", made, kind, time.perf_counter() - started)


def _choose_threads(engine: Engine) -> int:
    tokens = BUDGETS[1]
    chosen = choose_threads(lambda count: seconds_for(engine, tokens, count), tokens, _num_cpus())
    logger.info("threads: %s", chosen)
    return chosen.value


def _choose_workers(engine: Engine, threads: int) -> int:
    tokens = BUDGETS[1]
    chosen = choose_workers(
        lambda workers: seconds_side_by_side(engine, tokens, workers, max(1, threads // workers)),
        tokens,
        threads,
    )
    logger.info("batches side by side: %s", chosen)
    return chosen.value


def seconds_side_by_side(engine: Engine, num_tokens: int, workers: int, threads: int) -> float:
    """Run so many tokens as batches side by side, a few in a row; gives the seconds they took.

    Args:
        engine: serves at least one delta.
        num_tokens: of the batches that run at a time.
        workers: how many batches those are.
        threads: of each.

    Raises:
        Exception: whatever a batch raised.
    """
    workers = engine.cache.set_concurrency(workers)
    rows = made_up_rows(engine, num_tokens // workers)
    start = Barrier(workers)

    def run() -> tuple[float, float]:
        try:
            engine.predict(rows, threads)  # the first one in a thread starts its team
        except BaseException:
            start.abort()  # the others would wait for it
            raise
        start.wait()
        started = time.perf_counter()
        for _ in range(_IN_A_ROW):
            engine.predict(rows, threads)
        return started, time.perf_counter()

    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(run) for _ in range(workers)]
    failed = [error for error in (done.exception() for done in runs) if error]
    for error in sorted(failed, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    started, ended = zip(*(done.result() for done in runs), strict=True)
    return float(max(ended) - min(started)) / _IN_A_ROW


def seconds_for(engine: Engine, num_tokens: int, threads: int | None = None) -> float:
    """Run a batch of so many tokens in rows of mixed lengths; returns how long it took.

    Args:
        engine: serves at least one delta.
        num_tokens: of the batch.
        threads: set to so many first, for good.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    rows = made_up_rows(engine, num_tokens)
    started = time.perf_counter()
    engine.predict(rows)
    return time.perf_counter() - started


def made_up_rows(engine: Engine, num_tokens: int) -> list[EngineRow]:
    """Rows of mixed lengths, so many tokens together, for the default deltas of some tasks."""
    tasks = engine.store.tasks[:_MOST_TASKS]
    most = min(len(tasks), engine.cache.max_slots or len(tasks))
    records = [engine.store.resolve(task) for task in tasks[:most]]
    rows: list[EngineRow] = []
    while num_tokens > 0:
        record = records[len(rows) % len(records)]
        longest = min(record.manifest.task.max_length, num_tokens)
        length = min(_LENGTHS[len(rows) % len(_LENGTHS)], longest)
        ids = [(len(rows) + place) % engine.backbone.config.vocab_size for place in range(length)]
        rows.append(EngineRow(TokenizedRow(ids, [0] * length, False), record, length))
        num_tokens -= length
    return rows


def _num_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
