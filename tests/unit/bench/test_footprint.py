"""The arithmetic of the memory benchmark: floors of minutes, slopes, the memory of a process."""

from __future__ import annotations

import math
import os
import time

import pytest

from tests.bench.footprint import (
    cpu_seconds,
    floors,
    memory_bytes,
    mixed_bodies,
    slope_percent_per_hour,
)


def test_the_slope_is_that_of_what_stays() -> None:
    """Batches take up to 80 MB and give them back; 1 MB an hour stays."""
    hour = [(5.0 * n, 400 + n / 720 + 80 * (n % 7) / 6) for n in range(720)]
    assert slope_percent_per_hour(floors(hour)) == pytest.approx(0.25, abs=0.02)


def test_a_flat_line_has_no_slope() -> None:
    assert slope_percent_per_hour([(0.0, 400.0), (60.0, 400.0), (120.0, 400.0)]) == 0
    assert math.isnan(slope_percent_per_hour([(0.0, 400.0)]))


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
