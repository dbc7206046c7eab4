"""Measured numbers serve the next start on the same machine with the same settings only."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import tuning, warm_up
from app.engine.engine import Engine
from app.engine.tuning import LoadMeter, Tuning, recall, remember
from deltas import Backbone, Store
from deltas.kernels import disk_cache

MEASURED = Tuning(threads=2, workers=1, share_threads=2, batch_tokens=1024)
GIVEN = 0, 0, 0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "deltabert"


@pytest.fixture
def engine(tiny_backbone: Backbone, pooled_deltas: Path) -> Engine:
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    return Engine(tiny_backbone, store, device="cpu", precision="fp32")


def test_measured_numbers_are_recalled(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert recall(engine, GIVEN) is None
    remember(engine, GIVEN, MEASURED, 0.0)
    assert recall(engine, GIVEN) == MEASURED
    assert "measured by an earlier start: threads=2 workers=1" in caplog.text


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (tuning, "cpu_model"),
        (tuning, "num_cpus"),
        (tuning, "installed_version"),
        (torch, "__version__"),
    ],
)
def test_another_machine_or_release_measures_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    remember(engine, GIVEN, MEASURED, 0.0)
    monkeypatch.setattr(place, name, "0.0" if place is torch else lambda: "another")
    assert recall(engine, GIVEN) is None


def test_other_settings_measure_again(
    engine: Engine, tiny_backbone: Backbone, pooled_deltas: Path
) -> None:
    remember(engine, GIVEN, MEASURED, 0.0)
    assert recall(engine, (2, 0, 0)) is None
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    slots = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=1)
    assert recall(slots, GIVEN) is None
    halves = Engine(tiny_backbone, store, device="cpu", precision="bf16")
    assert recall(halves, GIVEN) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda document: {"facts": document["facts"]},
        lambda document: document | {"facts": {}},
        lambda document: document | {"tuning": document["tuning"] | {"threads": 0}},
        lambda document: document | {"tuning": document["tuning"] | {"threads": True}},
        lambda document: document | {"tuning": document["tuning"] | {"more": 1}},
        lambda _: [],
    ],
)
def test_a_file_of_another_form_is_measured_again(
    engine: Engine, cache: Path, caplog: pytest.LogCaptureFixture, change: Any
) -> None:
    remember(engine, GIVEN, MEASURED, 0.0)
    (file,) = cache.iterdir()
    content = disk_cache.read(file.name)
    assert content is not None
    disk_cache.write(file.name, json.dumps(change(json.loads(content))).encode())
    assert recall(engine, GIVEN) is None
    assert f"{file} has no such numbers; measuring again" in caplog.text


def test_numbers_of_a_busy_machine_are_not_kept(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A first start beside other programs chose one thread of two, for all later starts."""
    remember(engine, GIVEN, MEASURED, 0.34)
    assert recall(engine, GIVEN) is None
    (line,) = caplog.messages
    assert line.startswith("other programs took 34 % of the processor")


def test_the_load_of_another_program_is_seen() -> None:
    spin = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        meter = LoadMeter()
        time.sleep(1)
        share = meter.share_of_others()
        other.kill()
    assert share > 0.5 / tuning.num_cpus()


def test_own_work_and_waiting_are_no_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")

    def write(user_s: int, idle_s: int, stolen_s: int) -> None:
        seconds = (user_s, 0, 0, idle_s, 7, 0, 0, stolen_s, 0, 0)
        columns = " ".join(str(value * tick) for value in seconds)
        stat.write_text(f"cpu 1 2 3\ncpu0 {columns}\ncpu5 {columns}\nintr 9\n")

    now = {"perf_counter": 100.0, "process_time": 50.0}
    for clock in now:
        monkeypatch.setattr(time, clock, lambda clock=clock: now[clock])
    monkeypatch.setattr(tuning, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    write(20, 30, 1)
    meter = LoadMeter()
    now |= {"perf_counter": 110.0, "process_time": 57.0}
    write(27, 33, 1)
    assert meter.share_of_others() == 0
    write(29, 30, 2)
    assert meter.share_of_others() == pytest.approx(0.3)
    stat.unlink()
    assert meter.share_of_others() == 0


def test_a_second_start_measures_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(LoadMeter, "share_of_others", lambda _: 0.0)  # of the machine of the test
    try:
        first = warm_up.warm_up(engine, threads=1, reuse=True)
        monkeypatch.setattr(warm_up, "choose", None)  # would be called
        assert warm_up.warm_up(engine, threads=1, reuse=True) == first
        with pytest.raises(TypeError):
            warm_up.warm_up(engine, threads=1)
    finally:
        torch.set_num_threads(before)
