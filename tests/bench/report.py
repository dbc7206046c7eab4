"""Writes the parts that all benchmarks share: the machine, rates, tables, and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.workload import Workload


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Describe the machine of a measurement; "gpu" is present only on a GPU."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return gpu | {
        "cpu": model,
        "cpus": os.cpu_count(),
        "threads": threads,
        "instructions": _instructions(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def rates(seconds: Mapping[str, Sequence[float]], workload: Workload) -> dict[str, dict[str, Any]]:
    """Rows and tokens a second of every system, by the median of its rounds."""
    return {
        name: {
            "rows_per_s": round(len(workload.rows) / statistics.median(times), 1),
            "tokens_per_s": round(workload.num_tokens / statistics.median(times)),
        }
        for name, times in seconds.items()
    }


def rates_table(report: Mapping[str, Any]) -> list[str]:
    """Write the work, the machine and the rates as lines of Markdown."""
    about = report["machine"]
    processor = f"{about['threads']} threads, {about['cpu']} ({about['instructions']})"
    lines = [
        f"{report['rows']} rows, {report['tokens']:,} tokens ({report['data']}), "
        f"{report['precision']}, {about.get('gpu', processor)}",
        "",
        "| system | rows/s | tokens/s |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {name} | {found['rows_per_s']:,.0f} | {found['tokens_per_s']:,} |"
        for name, found in report["systems"].items()
    ]


def speed(seconds: Mapping[str, Sequence[float]], mine: str, other: str) -> float:
    """Return how many times as fast one rate is as another: the median of the rounds' ratios."""
    pairs = zip(seconds[mine], seconds[other], strict=True)
    return round(statistics.median(theirs / ours for ours, theirs in pairs), 3)


def ratio_table(ratios: Mapping[str, float]) -> list[str]:
    """The ratios as lines of Markdown."""
    rows = [f"| {name} | {value:g} |" for name, value in ratios.items()]
    return ["", "| ratio | measured |", "|---|---|", *rows]


def wanted_table(ratios: Mapping[str, float], wanted: Mapping[str, str]) -> list[str]:
    """The ratios beside what the project wants them to be, as lines of Markdown."""
    rows = [f"| {name} | {value:.3g} | {wanted.get(name, '')} |" for name, value in ratios.items()]
    return ["", "| ratio | measured | wanted |", "|---|---|---|", *rows]


def publish(report: Mapping[str, Any], lines: Sequence[str], path: Path | None) -> None:
    """Print the lines; write the report as JSON if there is a path."""
    sys.stdout.write("\n".join(lines) + "\n")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _instructions() -> str:
    """Describe the instructions that PyTorch uses, and how it multiplies bfloat16."""
    found = [torch.backends.cpu.get_cpu_capability()]
    found += ["BF16"] if torch.cpu._is_avx512_bf16_supported() else []
    found += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    return " and ".join(found)
