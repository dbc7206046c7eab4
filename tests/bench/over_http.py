"""`make bench-http`: the server over HTTP beside its engine alone, under load and overload.

    GLUE_DIR=... python -m tests.bench.over_http [--seconds 10] [--overload-seconds 60] [--json F]

The server (`python -m app`), the load tool (`tests.bench.load`) and the engine alone run in
processes of their own, one after the other, so that the engine alone has the machine for itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from app.engine import Engine, EngineRow
from deltas import (
    Backbone,
    Store,
    keep_freed_memory,
    load_backbone,
    pick_device,
    pick_precision,
)
from tests.bench.report import machine, publish, ratio_table
from tests.bench.serving import cut
from tests.bench.workload import Workload, load_workload, write_deltas
from training.tasks import TASKS

_LIST_ROWS = 32
_LIST_CONNECTIONS = 8
_OVERLOAD = 3
_LIGHT_SHARE = 0.04  # of the capacity; one task's traffic in the test of fairness
_HEAVY = 10  # times as much is the busy task's
_START_S = 120
_LATENCY_ROWS = 200


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.over_http", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    backbone = load_backbone()
    workload = load_workload(backbone)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "deltas"
        write_deltas(backbone, root, list(TASKS), dict.fromkeys(TASKS, "bitfit"))
        bodies = write_bodies(workload, Path(folder))
        measured = {"engine alone": engine_alone(backbone, workload, root, options.seconds)}
        with server(root) as (url, process):
            measured |= over_http(url, process, bodies, options)
    report: dict[str, Any] = {
        "measured": measured,
        "ratios": ratios(measured),
        "machine": machine(threads),
        "precision": pick_precision("auto", pick_device("cpu")),
        "data": workload.source,
    }
    publish(report, [*table(measured), *ratio_table(report["ratios"])], options.json)
    return 0


def write_bodies(workload: Workload, folder: Path) -> dict[str, Path]:
    """Request bodies for each kind of load; the made-up tasks take one text."""
    names = list(TASKS)
    texts = [" ".join(row) for row in workload.texts]
    one = [
        {"path": f"/predict/{names[task]}", "rows": 1, "body": {"inputs": text}}
        for task, text in zip(workload.tasks, texts, strict=True)
    ]
    lists = [
        {
            "path": f"/predict/{names[number % len(names)]}",
            "rows": _LIST_ROWS,
            "body": {"inputs": texts[start : start + _LIST_ROWS]},
        }
        for number, start in enumerate(range(0, len(texts) - _LIST_ROWS + 1, _LIST_ROWS))
    ]
    targets = [{"task": name} for name in names]
    fan_out = [
        {"path": "/predict", "rows": 1, "body": {"inputs": text, "targets": targets}}
        for text in texts[:_LATENCY_ROWS]
    ]
    nine = [
        {"path": f"/predict/{name}", "rows": 1, "body": {"inputs": text}}
        for text in texts[:_LATENCY_ROWS]
        for name in names
    ]
    files = {}
    kinds = {"one": one, "lists": lists, "fan-out": fan_out, "nine": nine}
    others = names[1:]
    crowds = {"light": names[:1], "evenly": others, "busily": others + others[:1] * (_HEAVY - 1)}
    for kind, asked in crowds.items():
        paths = itertools.cycle(f"/predict/{name}" for name in asked)
        kinds[kind] = [item | {"path": path} for item, path in zip(one, paths, strict=False)]
    for kind, bodies in kinds.items():
        files[kind] = folder / f"{kind}.jsonl"
        files[kind].write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return files


def engine_alone(
    backbone: Backbone, workload: Workload, root: Path, seconds: float
) -> dict[str, Any]:
    """Rows a second of full batches, and the time of one row by itself."""
    store = Store([root], backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu")
    names = list(TASKS)
    rows: list[EngineRow] = []
    for task, texts in zip(workload.tasks, workload.texts, strict=True):
        rows += engine.tokenize(store.resolve(names[task]), [(" ".join(texts),)])
    batches = cut(rows, 4096)
    engine.compile_kernels(4096)
    for batch in batches[:2]:
        engine.run(batch)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for batch in batches:
            engine.run(batch)
        done += len(rows)
    rate = done / (time.perf_counter() - started)
    single = []
    for row in rows[:_LATENCY_ROWS]:
        started = time.perf_counter()
        engine.run([row])
        single.append(time.perf_counter() - started)
    return {"rows_per_s": round(rate, 1), "p50_ms": round(1000 * statistics.median(single), 3)}


@contextmanager
def server(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running server with the deltas below `root` and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DELTABERT_PORT": str(port),
        "DELTABERT_DELTAS": str(root),
        "DELTABERT_ZOO": "false",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(_START_S * 4):
            try:
                urllib.request.urlopen(f"{url}/health/ready", timeout=2).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def over_http(
    url: str,
    process: subprocess.Popen[bytes],
    bodies: dict[str, Path],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Every kind of load, one after the other."""
    seconds = options.seconds
    load(url, bodies["one"], "--seconds", 3)  # the first requests warm everything up
    found = {
        "one row, one connection": load(
            url, bodies["one"], "--connections", 1, "--seconds", seconds
        ),
        "one row, 64 connections": load(url, bodies["one"], "--seconds", seconds),
        f"lists of {_LIST_ROWS}, {_LIST_CONNECTIONS} connections": load(
            url, bodies["lists"], "--connections", _LIST_CONNECTIONS, "--seconds", seconds
        ),
        "fan-out to nine": load(url, bodies["fan-out"], "--connections", 1, "--seconds", seconds),
        "nine requests": load(url, bodies["nine"], "--connections", 1, "--seconds", seconds),
    }
    capacity = found["one row, 64 connections"]["rows_per_s"]
    found |= nine_tasks(url, bodies, _LIGHT_SHARE * capacity, 2 * seconds)
    before = resident_bytes(process.pid)
    rate = _OVERLOAD * capacity
    name = f"{_OVERLOAD}x overload"
    found[name] = load(url, bodies["one"], "--rate", rate, "--seconds", options.overload_seconds)
    found[name]["grown_bytes"] = resident_bytes(process.pid) - before
    return found


def nine_tasks(url: str, bodies: dict[str, Path], rate: float, seconds: float) -> dict[str, Any]:
    """One of nine tasks while all have the same traffic, and while another has ten times it."""
    found = {}
    for kind, times in (("evenly", len(TASKS) - 1), ("busily", len(TASKS) - 2 + _HEAVY)):
        with ThreadPoolExecutor(1) as pool:
            others = ("--rate", times * rate, "--seconds", seconds)
            crowd = pool.submit(load, url, bodies[kind], *others)
            one = load(url, bodies["light"], "--rate", rate, "--seconds", seconds)
        found[f"one of nine, {kind}"] = one
        found[f"the other eight, {kind}"] = crowd.result()
    return found


def load(url: str, bodies: Path, *arguments: object) -> dict[str, Any]:
    """Run the load tool in a process of its own."""
    words = [url, str(bodies), *map(str, arguments)]
    command = [sys.executable, "-m", "tests.bench.load", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmRSS of process {pid}")


def ratios(measured: dict[str, Any]) -> dict[str, float]:
    """What the project wants to know of it."""
    engine = measured["engine alone"]
    one, lists = measured["one row, 64 connections"], measured["lists of 32, 8 connections"]
    overload = measured["3x overload"]
    evenly, busily = measured["one of nine, evenly"], measured["one of nine, busily"]
    return {
        "http_one_row_vs_engine": round(one["rows_per_s"] / engine["rows_per_s"], 3),
        "http_list32_vs_engine": round(lists["rows_per_s"] / engine["rows_per_s"], 3),
        "idle_overhead_ms": round(
            measured["one row, one connection"]["p50_ms"] - engine["p50_ms"], 2
        ),
        "overload_goodput": round(overload["rows_per_s"] / one["rows_per_s"], 3),
        "overload_live_max_ms": overload["live_max_ms"],
        "overload_grown_mb": round(overload["grown_bytes"] / 1e6, 1),
        "fair_p99_ratio": round(busily["p99_ms"] / evenly["p99_ms"], 2),
        "fanout9_vs_requests": round(
            measured["fan-out to nine"]["p50_ms"] / (9 * measured["nine requests"]["p50_ms"]), 3
        ),
    }


def table(measured: dict[str, Any]) -> list[str]:
    """What was measured, as lines of Markdown."""
    lines = ["| | rows/s | p50 | p99 | answers |", "|---|---|---|---|---|"]
    for name, found in measured.items():
        counts = found.get("statuses", {}).items()
        statuses = ", ".join(f"{count} x {code}" for code, count in counts)
        p99 = f"{found['p99_ms']:.1f} ms" if "p99_ms" in found else ""
        lines.append(
            f"| {name} | {found['rows_per_s']:,.0f} | {found['p50_ms']:.1f} ms | {p99} "
            f"| {statuses} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
