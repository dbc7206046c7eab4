"""`make bench-scale`: what 1,000 and 10,000 registered tasks cost beside nine.

    GLUE_DIR=... python -m tests.bench.scale [--tasks 9 1000 10000] [--rounds 5] [--json FILE]

All deltas are bitfit's, made of noise, written to files and served from there. Throughput is
measured in one process with all engines side by side, in turn; memory in a process of its own for
each number of tasks.
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
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from app.bank import Bank
from app.engine import Engine, EngineRow
from deltas import (
    DTYPES,
    Backbone,
    Store,
    check_delta,
    keep_freed_memory,
    load_backbone,
    pick_device,
    pick_precision,
    read_delta,
)
from tests.bench.report import machine, publish, rates, rates_table, ratio_table
from tests.bench.serving import System, cut, measure
from tests.bench.workload import Workload, load_workload, noisy_delta, task_spec, write_deltas

STRATEGY = "bitfit"
_REGISTERED = 30  # deltas registered one by one, for the median
_ZIPF = 1.0


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[9, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        sys.stdout.write(json.dumps(memory_of(options.memory_of)) + "\n")
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
        memory[count] = measured_memory(root)
        started = time.perf_counter()
        engine = Engine(
            backbone, Store([root], backbone=backbone.ref), device="cpu", precision=precision
        )
        memory[count]["start_s"] = round(time.perf_counter() - started, 1)
        register[count] = register_ms(backbone, root, count, precision)
        for traffic in ("uniform", "zipf"):
            rows = traffic_of(workload, engine, names, traffic)
            systems[f"{count} tasks, {traffic}"] = _run(engine, rows, options.max_batch_tokens)
    seconds = measure(systems, options.rounds)
    fewest = options.tasks[0]
    ratios: dict[str, float] = {}
    for count in options.tasks[1:]:
        for traffic in ("uniform", "zipf"):
            pairs = zip(
                seconds[f"{fewest} tasks, {traffic}"],
                seconds[f"{count} tasks, {traffic}"],
                strict=True,
            )
            suffix = "" if traffic == "uniform" else "_zipf"
            key = f"tasks_{count}_vs_{fewest}{suffix}"
            ratios[key] = round(statistics.median(few / many for few, many in pairs), 3)
    most = options.tasks[-1]
    grown = memory[most]["resident_bytes"] - memory[most]["backbone_resident_bytes"]
    ratios["register_ms"] = register[most]
    ratios["register_vs_first"] = round(register[most] / register[fewest], 2)
    ratios["memory_vs_deltas"] = round(grown / memory[most]["delta_bytes"], 3)
    return {
        "systems": rates(seconds, workload),
        "ratios": ratios,
        "memory": {str(count): found for count, found in memory.items()},
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "data": workload.source,
    }


def traffic_of(
    workload: Workload, engine: Engine, names: list[str], traffic: str
) -> list[EngineRow]:
    """The workload's rows, each for a task drawn evenly or by rank (Zipf with exponent 1)."""
    draw = random.Random(1)
    weights = [1.0] * len(names)
    if traffic == "zipf":
        weights = [1 / (rank + 1) ** _ZIPF for rank in range(len(names))]
    chosen = draw.choices(names, cum_weights=list(accumulate(weights)), k=len(workload.rows))
    return [
        EngineRow(row, engine.store.resolve(name))
        for row, name in zip(workload.rows, chosen, strict=True)
    ]


def _run(engine: Engine, rows: list[EngineRow], budget: int) -> System:
    batches = cut(rows, budget)
    return lambda: [engine.run(batch) for batch in batches]


def register_ms(backbone: Backbone, root: Path, count: int, precision: str) -> float:
    """Median milliseconds to read, check and add one delta to a bank that holds `count`."""
    bank = Bank(backbone, torch.device("cpu"), DTYPES[precision])
    paths = sorted(root.rglob("*.safetensors"))
    delta = noisy_delta(backbone, task_spec("filler"), STRATEGY, 1)
    for _ in range(count):
        bank.add([delta])
    seconds = []
    for number in range(_REGISTERED):
        started = time.perf_counter()
        read = read_delta(paths[number % len(paths)])
        check_delta(read, backbone)
        bank.add([read])
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 2)


def measured_memory(root: Path) -> dict[str, Any]:
    """`memory_of` in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.scale", "--memory-of", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_of(root: Path) -> dict[str, int]:
    """Resident memory of a process that serves the deltas below `root`, and of one that doesn't."""
    keep_freed_memory()
    backbone = load_backbone()
    Engine(backbone, Store([]), device="cpu")
    before = resident_bytes()
    engine = Engine(backbone, Store([root], backbone=backbone.ref), device="cpu")
    return {
        "backbone_resident_bytes": before,
        "resident_bytes": resident_bytes(),
        "delta_bytes": sum(record.num_bytes for record in engine.store.records),
    }


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    shown = rates_table(report)
    shown += ["", "| tasks | memory beyond the backbone | delta files | start |"]
    shown += ["|---|---|---|---|"]
    for count, found in report["memory"].items():
        grown = found["resident_bytes"] - found["backbone_resident_bytes"]
        shown.append(
            f"| {int(count):,} | {grown / 1e6:,.0f} MB | {found['delta_bytes'] / 1e6:,.0f} MB "
            f"| {found['start_s']:.1f} s |"
        )
    return shown + ratio_table(report["ratios"])


if __name__ == "__main__":
    sys.exit(main())
