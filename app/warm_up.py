"""What a server does before its first request: measures what is fast, has kernels compiled.

Runs real batches of made-up rows through the engine, with the deltas that it serves.
"""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from app.engine import Engine, EngineRow
from app.tuning import BUDGETS, Tuning, choose_budget, choose_threads, choose_workers
from deltas import TokenizedRow

logger = logging.getLogger(__name__)

_LENGTHS = (12, 24, 9, 60, 33, 45, 18, 100, 28)  # mean 37, as in GLUE's dev sets
_MOST_TASKS = 9
_IN_A_ROW = 3


def warm_up(
    engine: Engine, threads: int = 0, workers: int = 0, max_batch_tokens: int = 0
) -> Tuning:
    """Choose what is left open and compile; call it in a thread that ends before the server starts.

    Args:
        engine: not in use yet; serves at least one delta.
        threads: of the forward pass; 0 lets this choose.
        workers: passes side by side; 0 lets this choose.
        max_batch_tokens: 0 lets this choose.
    """
    on_cpu = engine.device.type == "cpu"
    if not threads:
        threads = _choose_threads(engine) if on_cpu else torch.get_num_threads()
    if not workers:
        workers = _choose_workers(engine, threads) if on_cpu else 1
    torch.set_num_threads(threads)
    if not max_batch_tokens:
        budget = choose_budget(lambda tokens: seconds_for(engine, tokens))
        max_batch_tokens = budget.value
        logger.info("tokens a batch: %s", budget)
    tuning = Tuning(threads, engine.slots.share(workers), max_batch_tokens)
    started = time.perf_counter()
    # oneDNN's code is made for a certain number of threads.
    shares = {threads: max_batch_tokens, tuning.share_threads: max_batch_tokens // tuning.workers}
    if compiled := sum(engine.compile_kernels(most, count) for count, most in shares.items()):
        logger.info("compiled %d products in %.1f s", compiled, time.perf_counter() - started)
    engine.forget_counts()
    return tuning


def _choose_threads(engine: Engine) -> int:
    tokens = BUDGETS[1]
    chosen = choose_threads(lambda count: seconds_for(engine, tokens, count), tokens, _num_cpus())
    logger.info("threads: %s", chosen)
    return chosen.value


def _choose_workers(engine: Engine, threads: int) -> int:
    tokens = BUDGETS[1]

    def seconds_with(workers: int) -> float:
        return seconds_side_by_side(engine, tokens, Tuning(threads, workers))

    chosen = choose_workers(seconds_with, tokens, threads)
    logger.info("batches side by side: %s", chosen)
    return chosen.value


def seconds_side_by_side(engine: Engine, num_tokens: int, tuning: Tuning) -> float:
    """Run so many tokens as batches side by side, a few in a row; gives the seconds they took.

    Args:
        engine: serves at least one delta.
        num_tokens: of the batches that run at a time.
        tuning: how many batches, and their threads.
    """
    workers = engine.slots.share(tuning.workers)
    rows = made_up_rows(engine, num_tokens // workers)
    start = Barrier(workers + 1)

    def run() -> None:
        engine.run(rows, tuning.share_threads)  # the first one in a thread starts its team
        start.wait()
        for _ in range(_IN_A_ROW):
            engine.run(rows, tuning.share_threads)

    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(run) for _ in range(workers)]
        start.wait()
        started = time.perf_counter()
        for done in runs:
            done.result()
        return (time.perf_counter() - started) / _IN_A_ROW


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
    engine.run(rows)
    return time.perf_counter() - started


def made_up_rows(engine: Engine, num_tokens: int) -> list[EngineRow]:
    """Rows of mixed lengths, so many tokens together, for the default deltas of some tasks."""
    tasks = engine.store.tasks[:_MOST_TASKS]
    most = min(len(tasks), engine.slots.max_slots or len(tasks))
    records = [engine.store.resolve(task) for task in tasks[:most]]
    rows: list[EngineRow] = []
    while num_tokens > 0:
        record = records[len(rows) % len(records)]
        longest = min(record.manifest.task.max_length, num_tokens)
        length = min(_LENGTHS[len(rows) % len(_LENGTHS)], longest)
        ids = [(len(rows) + place) % engine.backbone.config.vocab_size for place in range(length)]
        rows.append(EngineRow(TokenizedRow(ids, [0] * length, False), record))
        num_tokens -= length
    return rows


def _num_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
