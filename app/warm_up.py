"""What a server does before its first request: measures what is fast, has kernels compiled.

Runs real batches of made-up rows through the engine, with the deltas that it serves.
"""

from __future__ import annotations

import logging
import os
import time

import torch

from app.engine import Engine, EngineRow
from app.tuning import BUDGETS, choose_budget, choose_threads
from deltas import TokenizedRow

logger = logging.getLogger(__name__)

_LENGTHS = (12, 24, 9, 60, 33, 45, 18, 100, 28)  # mean 37, as in GLUE's dev sets
_MOST_TASKS = 9


def warm_up(engine: Engine, threads: int = 0, max_batch_tokens: int = 0) -> int:
    """Choose what is left open and compile; call it in the thread that starts the batcher.

    Args:
        engine: not in use yet; with no delta served nothing is measured.
        threads: of the forward pass; 0 lets this choose, and set them.
        max_batch_tokens: 0 lets this choose.

    Returns:
        tokens of a batch.
    """
    if not threads and engine.device.type == "cpu":
        tokens = BUDGETS[1]
        threads_chosen = choose_threads(
            lambda count: seconds_for(engine, tokens, count), tokens, _num_cpus()
        )
        torch.set_num_threads(threads_chosen.value)
        logger.info("threads: %s", threads_chosen)
    if not max_batch_tokens:
        budget = choose_budget(lambda tokens: seconds_for(engine, tokens))
        max_batch_tokens = budget.value
        logger.info("tokens a batch: %s", budget)
    started = time.perf_counter()
    if compiled := engine.compile_kernels(max_batch_tokens):
        logger.info("compiled %d products in %.1f s", compiled, time.perf_counter() - started)
    engine.forget_counts()
    return max_batch_tokens


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
