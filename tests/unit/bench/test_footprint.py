"""The memory benchmark: memory and CPU time of a process, and its requests."""

from __future__ import annotations

import os
import time

from tests.bench.footprint import cpu_seconds, memory_bytes, mixed_bodies


def test_the_memory_of_this_process_is_read() -> None:
    whole = memory_bytes(os.getpid(), "Rss")
    assert 0 < memory_bytes(os.getpid(), "Pss") <= whole < 2**40


def test_the_cpu_time_of_this_process_is_read() -> None:
    before = time.process_time()
    read = cpu_seconds(os.getpid())
    assert read >= before - 0.05
    assert read - before < 0.5 + sum(os.times()[2:4])


def test_requests_of_all_kinds_are_made_up() -> None:
    bodies = list(mixed_bodies())
    strategies = {body["body"].get("strategy") for body in bodies}
    assert {"bitfit", "head", "layernorm", "random:0.001", None} <= strategies
    assert any("targets" in body["body"] for body in bodies)
    assert {body["rows"] for body in bodies} >= {1, 4, 16, 48}
