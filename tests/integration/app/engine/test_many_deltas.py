"""Thousands of deltas come and go: nothing stays behind, nothing gets slower, nothing is compiled.

The tests have the numbers of the pitfalls that other servers of adapters fell into: leaks (11), an
addition that costs more the more there are (12), compilers that run again for another adapter (35).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numba
import pytest
import torch
from numba.core import event

from app.engine.engine import Engine, EngineRow
from deltas import Backbone, Delta, Store, TaskSpec, delta_path, write_delta
from deltas.encoder.bank import Bank
from tests.factories import TOY_STRATEGIES

MakeDelta = Callable[..., Delta]
CYCLES, WARM = 2000, 500
ADDED, COMPARED = 10_000, 1000
MANY = 100


def resident_bytes() -> int:
    """Return the memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_tensors() -> int:
    """Return the number of tensors that Python knows."""
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_peers_row_11_loads_and_evictions_leave_nothing_behind(
    tiny_backbone: Backbone, tiny_deltas: Path
) -> None:
    """Deltas of every strategy, each loaded from its file and evicted by the next one."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    engine = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=4)
    records = store.records

    def load(times: int) -> None:
        for number in range(times):
            with engine.cache.acquire([records[number % len(records)]]) as acquired:
                assert all(isinstance(slot, int) for slot in acquired.values())

    load(WARM)
    tensors, memory, evicted = num_tensors(), resident_bytes(), engine.cache.counts.evicted
    load(CYCLES)
    assert engine.cache.counts.evicted - evicted > 0.9 * CYCLES
    # The four resident deltas are others, with up to twice as many matrices.
    assert num_tensors() - tensors < 100
    assert resident_bytes() - memory < 4 * 2**20, "a delta of the tiny backbone has 10 to 60 KB"
    assert engine.cache.num_used == 4


@pytest.mark.slow
def test_peers_row_12_the_10000th_delta_is_added_as_fast_as_the_first(
    tiny_backbone: Backbone, tiny_deltas: Path
) -> None:
    """Through the cache into the bank, one after the other, without announcing how many come."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    few = [record for record in store.records if record.manifest.strategy.name != "top:1"]
    engine = Engine(tiny_backbone, Store([]), device="cpu", precision="fp32")
    bank = Bank(tiny_backbone, torch.device("cpu"), torch.float32)
    staged = [bank.stage(record.load()) for record in few]
    seconds = []
    for number in range(ADDED):
        which = number % len(few)
        record = replace(few[which], version=f"{number:016x}")
        started = time.perf_counter()
        engine.cache.insert([(record, staged[which])])
        seconds.append(time.perf_counter() - started)
    first, last = median(seconds[:COMPARED]), median(seconds[-COMPARED:])
    assert engine.cache.num_used == ADDED
    assert last <= 2 * first, f"{1e6 * first:.0f} us at first, {1e6 * last:.0f} us at last"


def test_peers_row_35_a_hundred_tasks_compile_nothing_and_answer_as_alone(
    tiny_backbone: Backbone, make_delta: MakeDelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of 2 to 101 labels with every strategy, in one batch and each by itself."""
    for number in range(MANY):
        task = TaskSpec(
            name=f"task{number}",
            kind="single_label",
            labels=tuple(f"label{each}" for each in range(number + 2)),
            text_fields=("text",),
            max_length=24,
        )
        strategy = TOY_STRATEGIES[number % len(TOY_STRATEGIES)]
        delta = make_delta(tiny_backbone, task, strategy, number)
        write_delta(delta, delta_path(tmp_path, tiny_backbone.ref.id, task.name, strategy))
    store = Store([tmp_path], backbone=tiny_backbone.ref)
    engine = Engine(tiny_backbone, store, device="cpu", precision="fp32")
    rows: list[EngineRow] = [
        row
        for number, record in enumerate(store.records)
        for row in engine.tokenize(record, [("not a very good film " * (number % 5 + 1),)])
    ]
    assert len(rows) == MANY
    engine.predict(rows[:5])  # every kernel has run
    monkeypatch.setattr(subprocess, "Popen", None)  # nor may another process compile
    with event.install_recorder("numba:run_pass") as compiled:
        graphs = compiled_graphs()
        together = engine.predict(rows)
        alone = [engine.predict([row])[0] for row in rows]
        assert not compiled.buffer
        assert compiled_graphs() == graphs
        numba.njit(lambda x: x + 1)(1)
        assert compiled.buffer, "the recorder sees a compilation"
    for mine, theirs in zip(together, alone, strict=True):
        assert isinstance(mine, list)
        assert mine == pytest.approx(theirs, abs=1e-5)


def compiled_graphs() -> int:
    """Return the number of graphs that torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0
