"""Measures how long a server takes to start and how much memory it takes, idle and under traffic.

    python -m tests.bench.footprint [--minutes 20] [--slots 8] [--precision auto] [--json F]

The server is `python -m app` with the shipped zoo. It starts with an empty cache, with the cache
that this left, and without warm-up. Then clients mix single rows, lists and fan-outs over all
deltas, which share a few slots, and the resident memory is read all the while. MB are 10^6 bytes.
`make bench-http` has the numbers added to the report of `tests.bench.over_http`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deltas import Store, load_backbone, zoo_path
from tests.bench.report import machine, publish, ratio_table
from tests.bench.server_process import ServerProcess, running_server, slope_per_hour

_SAMPLE_S = 5.0
_CONNECTIONS = 8
_REQUESTS = 3000
_WORDS = "a service film that was not quite as good or bad but long in the end for all who saw it"


def main() -> int:
    """Run the measurement; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.footprint", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of mixed traffic")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = start_times(options.precision)
    found |= traffic(60 * options.minutes, options.slots, options.precision)
    samples = found.pop("samples")
    part = {
        "machine": machine(len(os.sched_getaffinity(0))),
        "precision": options.precision,
        "minutes": options.minutes,
        "slots": options.slots,
        "resident_mb": samples,
    }
    report: dict[str, Any] = {"ratios": {}}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text(encoding="utf-8"))
    report["ratios"] |= found
    publish(report | {"footprint": part}, ratio_table(found), options.json)
    return 0


def start_times(precision: str) -> dict[str, float]:
    """Return the seconds of starts, and the memory after a warm-up, in MB."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        log, cache = Path(folder) / "log", {"XDG_CACHE_HOME": folder}
        for name in ("first", "again", "no_warm_up"):
            settings = _settings(precision, WARM_UP=str(name != "no_warm_up").lower())
            with running_server(log, settings, cache) as server:
                found[f"start_{name}_s"] = round(time.perf_counter() - server.started, 2)
                found[f"start_{name}_cpu_s"] = round(cpu_seconds(server.pid), 2)
                found[f"resident_{name}_mb"] = round(memory_bytes(server.pid, "Rss") / 1e6, 1)
                found[f"proportional_{name}_mb"] = round(memory_bytes(server.pid, "Pss") / 1e6, 1)
    return found


def traffic(seconds: float, slots: int, precision: str) -> dict[str, Any]:
    """Return the memory under mixed traffic: in MB, and its slope in per cent an hour."""
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(precision, MAX_SLOTS=str(slots))
        with running_server(Path(folder) / "log", settings) as server:
            return _under_traffic(server, Path(folder) / "bodies.jsonl", seconds)


def _settings(precision: str, **others: str) -> dict[str, str]:
    return {"PRECISION": precision, "LOG_LEVEL": "warning", **others}


def _under_traffic(server: ServerProcess, bodies: Path, seconds: float) -> dict[str, Any]:
    bodies.write_text("".join(json.dumps(body) + "\n" for body in mixed_bodies()))
    command = [sys.executable, "-m", "tests.bench.load", server.url, str(bodies)]
    command += ["--connections", str(_CONNECTIONS), "--seconds", str(seconds)]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(subprocess.run, command, capture_output=True, text=True, check=True)
        samples = watch(server.pid, done)
    statuses = json.loads(done.result().stdout)["statuses"]
    return {
        "traffic_resident_mb": samples[-1][1],
        "traffic_most_mb": max(size for _, size in samples),
        "traffic_slope_percent": round(slope_per_hour(samples), 2),
        "traffic_answers": sum(statuses.values()),
        "traffic_not_200": sum(count for status, count in statuses.items() if status != "200"),
        "samples": samples,
    }


def mixed_bodies() -> Iterator[dict[str, Any]]:
    """Make up requests over all deltas of the zoo: single rows, lists, fan-outs, any length."""
    dice = random.Random(0)
    words = _WORDS.split()
    records = Store([zoo_path()], backbone=load_backbone().ref).records
    for _ in range(_REQUESTS):
        record = dice.choice(records)
        fields = record.manifest.task.text_fields
        length, count = dice.choice((3, 8, 20, 45, 120)), dice.choice((1, 1, 1, 1, 4, 16, 48))
        rows = [
            {field: " ".join(dice.choices(words, k=length)) for field in fields}
            for _ in range(count)
        ]
        alike = [
            {"task": other.manifest.task.name, "strategy": other.manifest.strategy.name}
            for other in records
            if len(other.manifest.task.text_fields) == len(fields) == 1
        ]
        if alike and dice.random() < 0.2:
            body: dict[str, Any] = {"inputs": rows[0][fields[0]], "targets": alike}
            yield {"path": "/predict", "rows": 1, "tokens": length, "body": body}
        else:
            body = {"inputs": rows, "strategy": record.manifest.strategy.name}
            path = f"/predict/{record.manifest.task.name}"
            yield {"path": path, "rows": count, "tokens": count * length, "body": body}


def watch(pid: int, done: Future[Any]) -> list[tuple[float, float]]:
    """Return (seconds, resident MB) of a process until the traffic is done."""
    started = time.perf_counter()
    samples: list[tuple[float, float]] = []
    while not done.done():
        resident = round(memory_bytes(pid, "Rss") / 1e6, 2)
        samples.append((round(time.perf_counter() - started, 1), resident))
        time.sleep(_SAMPLE_S)
    return samples


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended."""
    # The name of the program, in brackets, may hold spaces.
    numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int, kind: str) -> int:
    """Return a process's memory in RAM: "Rss", or "Pss", where shared pages count in part."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    for line in rollup.splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {kind} of process {pid}")


if __name__ == "__main__":
    sys.exit(main())
