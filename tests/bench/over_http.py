"""`make bench-http`: the server over HTTP beside its engine alone, under load and overload.

    GLUE_DIR=... python -m tests.bench.over_http [--seconds 10] [--overload-seconds 60] [--json F]

The server (`python -m app`), the load tool (`tests.bench.load`) and the engine alone run in
processes of their own, in turn, round after round, so that the engine alone has the machine for
itself; a ratio is the median over the rounds of what was measured within the same round.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from app.engine.engine import Engine, EngineRow
from deltas import (
    DTYPES,
    Store,
    keep_freed_memory,
    load_backbone,
    pick_device,
    pick_precision,
)
from tests.bench.load import percentile
from tests.bench.report import machine, publish, ratio_table
from tests.bench.serving import cut
from tests.bench.workload import Workload, load_workload, write_deltas
from training.data.tasks import TASKS

_LIST_ROWS = 32
_LIST_CONNECTIONS = 8
_OVERLOAD = 3
_ENGINE, _ALONE, _ONE = "engine alone", "one row, one connection", "one row, 64 connections"
_LISTS = f"lists of {_LIST_ROWS}, {_LIST_CONNECTIONS} connections"
_FAN_OUT, _NINE, _OVER = "fan-out to nine", "nine requests", f"{_OVERLOAD}x overload"
_LIGHT_SHARE = 0.04  # of the capacity; one task's traffic in the test of fairness
_HEAVY = 10  # times as much is the busy task's
_START_S = 120
_LATENCY_ROWS = 200


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.over_http", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load in each round")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--precision", choices=("auto", *DTYPES, "int8"), default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    precision = pick_precision(options.precision, pick_device("cpu"))
    backbone = load_backbone()
    workload = load_workload(backbone)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "deltas"
        write_deltas(backbone, root, list(TASKS), dict.fromkeys(TASKS, "bitfit"))
        engine = Engine(
            backbone, Store([root], backbone=backbone.ref), device="cpu", precision=precision
        )
        alone = EngineAlone(engine, workload)
        bodies = write_bodies(workload, alone.num_tokens, Path(folder))
        with server(root, precision) as (url, process):
            load(url, bodies["one"], "--seconds", 3)  # the first requests warm everything up
            rounds = []
            for number in range(options.rounds):
                rounds.append(measure(alone, url, bodies, options.seconds))
                sys.stderr.write(f"round {number + 1} of {options.rounds} done\n")
            measured = {name: median_of([found[name] for found in rounds]) for name in rounds[0]}
            capacity = measured[_ONE]["rows_per_s"]
            measured[_OVER] = overload(
                url, process, bodies["one"], capacity, options.overload_seconds
            )
    report: dict[str, Any] = {
        "systems": measured,
        "ratios": ratios(rounds) | ratios_under_load(measured[_OVER], capacity),
        "machine": machine(threads),
        "precision": precision,
        "data": workload.source,
    }
    publish(report, [*table(measured), *ratio_table(report["ratios"])], options.json)
    return 0


def write_bodies(workload: Workload, num_tokens: Sequence[int], folder: Path) -> dict[str, Path]:
    """Request bodies for each kind of load; the made-up tasks take one text.

    Args:
        workload: the rows.
        num_tokens: of each, as one text.
        folder: where the files go.
    """
    names = list(TASKS)
    texts = [" ".join(row) for row in workload.texts]
    one = [
        {"path": f"/predict/{names[task]}", "rows": 1, "tokens": size, "body": {"inputs": text}}
        for task, text, size in zip(workload.tasks, texts, num_tokens, strict=True)
    ]
    lists = [
        {
            "path": f"/predict/{names[number % len(names)]}",
            "rows": _LIST_ROWS,
            "tokens": sum(num_tokens[start : start + _LIST_ROWS]),
            "body": {"inputs": texts[start : start + _LIST_ROWS]},
        }
        for number, start in enumerate(range(0, len(texts) - _LIST_ROWS + 1, _LIST_ROWS))
    ]
    targets = [{"task": name} for name in names]
    few = list(zip(texts, num_tokens, strict=True))[:_LATENCY_ROWS]
    fan_out = [
        {
            "path": "/predict",
            "rows": 1,
            "tokens": size * len(names),
            "body": {"inputs": text, "targets": targets},
        }
        for text, size in few
    ]
    nine = [
        {"path": f"/predict/{name}", "rows": 1, "tokens": size, "body": {"inputs": text}}
        for text, size in few
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


class EngineAlone:
    """The engine with the same deltas and rows, without a server around it."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine = engine
        names = list(TASKS)
        self._rows: list[EngineRow] = []
        for task, texts in zip(workload.tasks, workload.texts, strict=True):
            record = engine.store.resolve(names[task])
            self._rows += engine.tokenize(record, [(" ".join(texts),)])
        self._batches = cut(self._rows, 4096)
        engine.prepare(4096, torch.get_num_threads())
        for batch in self._batches[:2]:
            engine.predict(batch)

    @property
    def num_tokens(self) -> list[int]:
        """Return the number of tokens of each row."""
        return [row.num_tokens for row in self._rows]

    def measure(self, seconds: float) -> dict[str, Any]:
        """Rows and tokens a second of full batches, and the time of one row by itself."""
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for batch in self._batches:
                self._engine.predict(batch)
            done += len(self._rows)
        rate = done / (time.perf_counter() - started)
        tokens = rate * statistics.mean(self.num_tokens)
        single = []
        for row in self._rows[:_LATENCY_ROWS]:
            started = time.perf_counter()
            self._engine.predict([row])
            single.append(time.perf_counter() - started)
        return {
            "rows_per_s": round(rate, 1),
            "tokens_per_s": round(tokens),
            "p50_ms": round(1000 * statistics.median(single), 3),
        }


@contextmanager
def server(root: Path, precision: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running server with the deltas below `root` and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DELTABERT_PORT": str(port),
        "DELTABERT_DELTAS": str(root),
        "DELTABERT_ZOO": "false",
        "DELTABERT_PRECISION": precision,
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


def measure(
    alone: EngineAlone, url: str, bodies: dict[str, Path], seconds: float
) -> dict[str, dict[str, Any]]:
    """One round: the engine alone, and every kind of load that a server keeps up with."""
    one, few = ("--connections", 1), ("--connections", _LIST_CONNECTIONS)
    found = {
        _ENGINE: alone.measure(seconds),
        _ALONE: load(url, bodies["one"], *one, "--seconds", seconds),
        _ONE: load(url, bodies["one"], "--seconds", seconds),
        _LISTS: load(url, bodies["lists"], *few, "--seconds", seconds),
        _FAN_OUT: load(url, bodies["fan-out"], *one, "--seconds", seconds),
        _NINE: load(url, bodies["nine"], *one, "--seconds", seconds),
    }
    rate = _LIGHT_SHARE * found[_ONE]["rows_per_s"]
    return found | nine_tasks(url, bodies, rate, 2 * seconds)


def overload(
    url: str, process: subprocess.Popen[bytes], bodies: Path, capacity: float, seconds: float
) -> dict[str, Any]:
    """Several times the capacity for a while, and what memory that takes."""
    before = resident_bytes(process.pid)
    found = load(url, bodies, "--rate", _OVERLOAD * capacity, "--seconds", seconds)
    return found | {"grown_bytes": resident_bytes(process.pid) - before}


def nine_tasks(url: str, bodies: dict[str, Path], rate: float, seconds: float) -> dict[str, Any]:
    """One of nine tasks while all have the same traffic, and while another has ten times it."""
    found = {}
    for kind, times in (("evenly", len(TASKS) - 1), ("busily", len(TASKS) - 2 + _HEAVY)):
        with ThreadPoolExecutor(1) as pool:
            others = ("--rate", times * rate, "--seconds", seconds)
            crowd = pool.submit(load, url, bodies[kind], *others)
            light = ("--rate", rate, "--seconds", seconds, "--every")
            one = load(url, bodies["light"], *light)
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


def median_of(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One system's rounds as one: medians of the numbers, sums of the answers."""
    found: dict[str, Any] = {}
    for key, value in rounds[0].items():
        if key == "statuses":
            found[key] = dict(sum((Counter(item[key]) for item in rounds), Counter()))
        elif isinstance(value, int | float):
            found[key] = round(statistics.median(item[key] for item in rounds), 3)
    return found


def ratios(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Return the ratios of the server under load: medians over the rounds."""

    def median(of_round: Callable[[dict[str, dict[str, Any]]], float], digits: int) -> float:
        return round(statistics.median(map(of_round, rounds)), digits)

    def pooled_p99(kind: str) -> float:
        """Return the 99th percentile over all rounds, since one round has too few answers."""
        answers = [found[f"one of nine, {kind}"]["every_ms"] for found in rounds]
        return percentile(sorted(itertools.chain(*answers)), 0.99)

    return {
        "http_one_row_vs_engine": median(
            lambda found: found[_ONE]["rows_per_s"] / found[_ENGINE]["rows_per_s"], 3
        ),
        "http_list32_vs_engine": median(
            lambda found: found[_LISTS]["rows_per_s"] / found[_ENGINE]["rows_per_s"], 3
        ),
        "idle_overhead_ms": median(
            lambda found: found[_ALONE]["p50_ms"] - found[_ENGINE]["p50_ms"], 2
        ),
        "fanout9_vs_requests": median(
            lambda found: found[_FAN_OUT]["p50_ms"] / (9 * found[_NINE]["p50_ms"]), 3
        ),
        "fair_p99_ratio": round(pooled_p99("busily") / pooled_p99("evenly"), 2),
    }


def ratios_under_load(overload: dict[str, Any], capacity: float) -> dict[str, float]:
    """The same of overload; `capacity` in rows/s."""
    return {
        "overload_goodput": round(overload["rows_per_s"] / capacity, 3),
        "overload_live_max_ms": overload["live_max_ms"],
        "overload_grown_mb": round(overload["grown_bytes"] / 1e6, 1),
    }


def table(measured: dict[str, Any]) -> list[str]:
    """Write the measurements as lines of Markdown."""
    lines = ["| | rows/s | tokens/s | p50 | p99 | answers |", "|---|---|---|---|---|---|"]
    for name, found in measured.items():
        counts = found.get("statuses", {}).items()
        statuses = ", ".join(f"{count} x {code}" for code, count in counts)
        p99 = f"{found['p99_ms']:.1f} ms" if "p99_ms" in found else ""
        lines.append(
            f"| {name} | {found['rows_per_s']:,.0f} | {found['tokens_per_s']:,.0f} "
            f"| {found['p50_ms']:.1f} ms | {p99} | {statuses} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
