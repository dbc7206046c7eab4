"""`make bench-scale`: cost of 1,000 and 10,000 registered tasks, compared with nine.

    GLUE_DIR=... python -m tests.bench.scale [--tasks 9 1000 10000] [--rounds 5] [--json FILE]
    python -m tests.bench.scale --listings 10000

All deltas are noise of the strategy bitfit, written to files and served from there. Throughput is
measured in one process that holds all engines, in turn; memory in a separate process for
each number of tasks. The cliff: uniform traffic, with slots for all tasks and for a quarter
of them; the deltas of a batch are prefetched while the one before it runs, as the server does for
queued rows. `--listings` measures `/metrics` and `/deltas` alone, without GLUE rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient

from app.engine.engine import Engine, EngineRow
from app.engine.loader import Loader
from app.main import create_app
from app.process.settings import Settings
from deltas import (
    DTYPES,
    Backbone,
    Store,
    keep_freed_memory,
    load_backbone,
    pick_device,
    pick_precision,
)
from deltas.encoder.bank import Bank
from tests.bench.report import machine, publish, rates, rates_table, ratio_table, speed
from tests.bench.serving import System, cut, measure, run_engine
from tests.bench.workload import Workload, load_workload, noisy_delta, task_spec, write_deltas

STRATEGY = "bitfit"
_REGISTERED = 30  # deltas registered one by one, and listings written, for the median
_ZIPF = 1.0
_OVER = 4  # tasks per slot of the cliff
_FEW_SLOTS = 64


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[9, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--listings", type=int, metavar="TASKS", help="measure listings alone")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--max-slots", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        sys.stdout.write(json.dumps(memory_of(options.memory_of, options.max_slots)) + "\n")
        return 0
    if options.listings:
        with tempfile.TemporaryDirectory() as folder:
            found = listings_alone(load_backbone(), Path(folder), options.listings)
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    keep_freed_memory()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    backbone = load_backbone()
    precision = pick_precision("auto", pick_device("cpu"))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        report = scale(backbone, Path(folder), precision, options)
    report |= {"machine": machine(threads), "precision": precision, "rounds": options.rounds}
    publish(report, lines(report), options.json)
    return 0


def scale(
    backbone: Backbone, folder: Path, precision: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Write the deltas, then measure memory, registration and throughput."""
    workload = load_workload(backbone)
    memory, systems, register = {}, {}, {}
    for count in options.tasks:
        root = folder / str(count)
        names = [f"task{number}" for number in range(count)]
        write_deltas(backbone, root, names, dict.fromkeys(names, STRATEGY))
        memory[f"{count:,} tasks"] = measured_memory(root)
        engine = _engine(backbone, root, precision)
        register[count] = register_ms(backbone, engine.store, count, precision)
        for traffic in ("uniform", "zipf"):
            rows = traffic_of(workload, engine, names, traffic)
            systems[f"{count} tasks, {traffic}"] = run_engine(
                engine, rows, options.max_batch_tokens
            )
        if count == options.tasks[min(1, len(options.tasks) - 1)]:
            few = _engine(backbone, root, precision, max_slots=max(1, count // _OVER))
            draws = [
                traffic_of(workload, engine, names, "uniform", seed)
                for seed in range(options.rounds + 1)
            ]
            budget = options.max_batch_tokens
            systems["cliff, slots for all"] = _run_ahead(engine, draws, budget)
            systems["cliff, slots for a quarter"] = _run_ahead(few, draws, budget)
    most = options.tasks[-1]
    memory[f"{most:,} tasks, {_FEW_SLOTS} slots"] = measured_memory(root, _FEW_SLOTS)
    listings = measured_listings(backbone, root, names)
    seconds = measure(systems, options.rounds)
    return {
        "systems": rates(seconds, workload),
        "ratios": summarise(seconds, memory, register, options.tasks) | listings,
        "memory": memory,
        "slots": {"cliff": vars(few.cache.counts)},
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "data": workload.source,
    }


def summarise(
    seconds: dict[str, list[float]],
    memory: dict[str, dict[str, Any]],
    register: dict[int, float],
    tasks: list[int],
) -> dict[str, float]:
    """Compute the ratios."""
    fewest, most = tasks[0], tasks[-1]
    ratios: dict[str, float] = {}
    for count in tasks[1:]:
        for traffic, suffix in (("uniform", ""), ("zipf", "_zipf")):
            found = speed(seconds, f"{count} tasks, {traffic}", f"{fewest} tasks, {traffic}")
            ratios[f"tasks_{count}_vs_{fewest}{suffix}"] = found
    ratios["register_ms"] = register[most]
    ratios["register_vs_first"] = round(register[most] / register[fewest], 2)
    ratios["memory_vs_deltas"] = round(
        _grown(memory[f"{most:,} tasks"]) / memory[f"{most:,} tasks"]["delta_bytes"], 3
    )
    few = memory[f"{most:,} tasks, {_FEW_SLOTS} slots"]
    ratios[f"memory_{_FEW_SLOTS}_slots_vs_deltas"] = round(_grown(few) / few["delta_bytes"], 3)
    few_slots, all_slots = "cliff, slots for a quarter", "cliff, slots for all"
    ratios[f"cliff_{_OVER}x"] = speed(seconds, few_slots, all_slots)
    return ratios


def _grown(found: dict[str, Any]) -> int:
    grown: int = found["resident_bytes"] - found["backbone_resident_bytes"]
    return grown


def _engine(backbone: Backbone, root: Path, precision: str, max_slots: int = 0) -> Engine:
    store = Store([root], backbone=backbone.ref)
    return Engine(backbone, store, device="cpu", precision=precision, max_slots=max_slots)


def traffic_of(
    workload: Workload, engine: Engine, names: list[str], traffic: str, seed: int = 1
) -> list[EngineRow]:
    """Pair the workload's rows with tasks drawn uniformly or by rank (Zipf, exponent 1)."""
    draw = random.Random(seed)
    weights = [1.0] * len(names)
    if traffic == "zipf":
        weights = [1 / (rank + 1) ** _ZIPF for rank in range(len(names))]
    chosen = draw.choices(names, cum_weights=list(accumulate(weights)), k=len(workload.rows))
    return [
        EngineRow(row, engine.store.resolve(name), row.num_tokens)
        for row, name in zip(workload.rows, chosen, strict=True)
    ]


def _run_ahead(engine: Engine, draws: list[list[EngineRow]], budget: int) -> System:
    """Use another draw in each call: repeating the same rows is the worst case of LRU eviction."""
    passes = cycle([cut(rows, budget) for rows in draws])

    def run() -> None:
        batches = next(passes)
        for number, batch in enumerate(batches):
            for row in batches[number + 1] if number + 1 < len(batches) else ():
                engine.cache.prefetch([row.record])
            engine.predict(batch)

    return run


def register_ms(backbone: Backbone, store: Store, count: int, precision: str) -> float:
    """Measure milliseconds (median) to read, check and add a delta to a bank that holds `count`."""
    bank = Bank(backbone, torch.device("cpu"), DTYPES[precision])
    loader = Loader(backbone, bank, again=False)
    filler = bank.stage(noisy_delta(backbone, task_spec("filler"), STRATEGY, 1))
    for _ in range(count):
        bank.add([filler])
    seconds = []
    for number in range(_REGISTERED):
        record = store.records[number % len(store.records)]
        started = time.perf_counter()
        bank.add([loader.load(record)])
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 2)


def measured_listings(backbone: Backbone, root: Path, names: list[str]) -> dict[str, float]:
    """Measure `/metrics` and a page of `/deltas` after each task has answered a row.

    Returns kilobytes and milliseconds (median) of both, of a server in this process.
    """
    settings = Settings(deltas=(root,), zoo=False, max_slots=_FEW_SLOTS, warm_up=False)
    found: dict[str, float] = {}
    with TestClient(create_app(settings, backbone=backbone)) as client:
        for name in names:
            client.app.state.metrics.on_rows(name, STRATEGY, 1, 32)  # type: ignore[attr-defined]
        for path in ("/metrics", "/deltas"):
            seconds = []
            for _ in range(_REGISTERED):
                started = time.perf_counter()
                content = client.get(path).content
                seconds.append(time.perf_counter() - started)
            found[f"{path[1:]}_kb"] = round(len(content) / 1000, 1)
            found[f"{path[1:]}_ms"] = round(1000 * statistics.median(seconds), 1)
    return found


def listings_alone(backbone: Backbone, root: Path, count: int) -> dict[str, float]:
    """Write so many deltas and measure their listings."""
    names = [f"task{number}" for number in range(count)]
    write_deltas(backbone, root, names, dict.fromkeys(names, STRATEGY))
    return measured_listings(backbone, root, names)


def measured_memory(root: Path, max_slots: int = 0) -> dict[str, Any]:
    """Run `memory_of` in a new process."""
    command = [sys.executable, "-m", "tests.bench.scale", "--memory-of", str(root)]
    command += ["--max-slots", str(max_slots)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_of(root: Path, max_slots: int) -> dict[str, float]:
    """Measure the resident memory of this process before and after it serves `root`.

    With few slots every delta answers one row, so that each has been in the bank.
    """
    keep_freed_memory()
    backbone = load_backbone()
    Engine(backbone, Store([]), device="cpu")
    before = resident_bytes()
    started = time.perf_counter()
    store = Store([root], backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu", max_slots=max_slots)
    start_s = time.perf_counter() - started
    if max_slots:
        records = engine.store.records
        rows = [row for each in records for row in engine.tokenize(each, [engine.trial(each)])]
        for start in range(0, len(rows), max_slots):
            engine.predict(rows[start : start + max_slots])
    return {
        "backbone_resident_bytes": before,
        "resident_bytes": resident_bytes(),
        "delta_bytes": sum(record.num_bytes for record in engine.store.records),
        "slots_used": engine.cache.num_used,
        "start_s": round(start_s, 1),
    }


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def lines(report: dict[str, Any]) -> list[str]:
    """Write the report as lines of Markdown."""
    shown = rates_table(report)
    shown += ["", "| | memory beyond the backbone | delta files | slots | start |"]
    shown += ["|---|---|---|---|---|"]
    for name, found in report["memory"].items():
        shown.append(
            f"| {name} | {_grown(found) / 1e6:,.0f} MB | {found['delta_bytes'] / 1e6:,.0f} MB "
            f"| {found['slots_used']:,} | {found['start_s']:.1f} s |"
        )
    return shown + ratio_table(report["ratios"])


if __name__ == "__main__":
    sys.exit(main())
