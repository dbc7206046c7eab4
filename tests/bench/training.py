"""Compares training with a plain transformers loop and with PEFT: `make bench-training`.

Real RTE and SST-2 rows, batches of 32, one precision. Each system runs in its own process
(`tests.bench.trainers`), so its memory can be measured. The systems take turns, an epoch each, so
other load on the machine affects all of them. Ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltas.hardware import pick_device, pick_precision
from tests.bench.report import machine, publish, ratio_table

TASKS = ("rte", "sst2")
STEPS = (
    "ours bitfit",
    "ours layernorm",
    "ours random:0.001",
    "ours full",
    "plain bitfit",
    "plain-eager bitfit",
    "plain random:0.001",
    "plain full",
    "peft layernorm",
    "peft random:0.001",
)
# Systems measured in whole runs of some epochs, the caching before them included.
RUNS = ("ours head", "plain head", "ours top:2", "plain top:2")
EPOCHS = 10
# Compared systems as (numerator, denominator) of rows/s or of peak memory.
SPEED = {
    "bitfit_vs_plain": ("ours bitfit", "plain bitfit"),
    "bitfit_vs_plain_eager": ("ours bitfit", "plain-eager bitfit"),
    "bitfit_vs_full": ("ours bitfit", "ours full"),
    "random_vs_plain_mask": ("ours random:0.001", "plain random:0.001"),
    "random_vs_peft_shira": ("ours random:0.001", "peft random:0.001"),
    "layernorm_vs_peft": ("ours layernorm", "peft layernorm"),
    "full_vs_plain": ("ours full", "plain full"),
    "head_run_vs_plain": ("ours head", "plain head"),
    "top2_run_vs_plain": ("ours top:2", "plain top:2"),
    # The other way round, because it is a ratio of times.
    "random_time_vs_bitfit": ("ours bitfit", "ours random:0.001"),
}
MEMORY = {
    "bitfit_memory_vs_full": ("ours bitfit", "ours full"),
    "bitfit_memory_vs_plain": ("ours bitfit", "plain bitfit"),
}


class Child:
    """A trainer in a process of its own."""

    def __init__(self, system: str, task: str, rows: int, threads: int, precision: str) -> None:
        words = [system, task, str(rows), str(threads), precision]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.trainers", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready":
            raise SystemExit(f"{system} did not start")

    def ask(self, verb: str) -> dict[str, Any]:
        """Send a line and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def end(self) -> dict[str, Any]:
        """Return the memory of the process and end it."""
        facts = self.ask("end")
        self._process.wait()
        return facts

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def measure(task: str, options: argparse.Namespace, precision: str) -> dict[str, dict[str, Any]]:
    """Measure rows a second, memory, and bytes of gradients and optimiser of every system."""
    found: dict[str, dict[str, Any]] = {}
    for systems, verb, rounds, rows in (
        (STEPS, "epoch", options.rounds, options.rows),
        (RUNS, f"run {EPOCHS}", 1, options.rows * EPOCHS),
    ):
        children = {
            name: Child(name, task, options.rows, options.threads, precision) for name in systems
        }
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(rounds):
            for name, child in children.items():
                seconds[name].append(child.ask(verb)["seconds"])
        for name, child in children.items():
            rate = rows / statistics.median(seconds[name])
            found[name] = {"rows_per_s": round(rate, 1), **child.end()}
    return found


def ratios(systems: Mapping[str, Mapping[str, Any]], task: str) -> dict[str, float]:
    """Return the ratios of one task's measurements, by name and task."""
    made = {}
    for pairs, fact in ((SPEED, "rows_per_s"), (MEMORY, "peak_mb")):
        for name, (ours, theirs) in pairs.items():
            made[f"{name}_{task}"] = round(systems[ours][fact] / systems[theirs][fact], 3)
    random, full = (systems[name]["optimizer_bytes"] for name in ("ours random:0.001", "ours full"))
    made[f"random_state_vs_full_{task}"] = round(random / full, 5)
    return made


def table(report: Mapping[str, Any]) -> list[str]:
    """Write all measurements as lines of Markdown."""
    about = report["machine"]
    lines = [
        f"{report['rows']} rows of {report['data']}, {report['precision']}, "
        f"{about['threads']} threads, {about['cpu']} ({about['instructions']})"
    ]
    for task, systems in report["systems"].items():
        lines += ["", f"| {task} | rows/s | peak MB | gradients + optimiser, bytes |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {name} | {found['rows_per_s']:,.1f} | {found['peak_mb']:,} | "
            f"{found['optimizer_bytes']:,} |"
            for name, found in systems.items()
        ]
    return lines + ratio_table(report["ratios"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.training", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256, help="of each task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args(arguments)
    precision = pick_precision(options.precision, pick_device("cpu"))
    systems = {task: measure(task, options, precision) for task in TASKS}
    made: dict[str, float] = {}
    for task, found in systems.items():
        made |= ratios(found, task)
    report = {
        "machine": machine(options.threads),
        "data": "GLUE train sets (RTE, SST-2)",
        "rows": options.rows,
        "precision": precision,
        "systems": systems,
        "ratios": made,
    }
    publish(report, table(report), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
