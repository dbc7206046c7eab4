"""`make bench-shares`: the parts of a forward pass of mixed traffic, by time.

    GLUE_DIR=... python -m tests.bench.shares [--precision bf16] [--tokens 64,512,4096]

PyTorch's profiler adds some microseconds to each of its operators, so the parts of a pass of few
tokens are larger here than in truth; `whole pass` is measured without it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from app.engine.engine import Engine, EngineRow
from deltas import Store, load_backbone
from deltas.encoder import cpu, row_attention
from tests.bench.report import machine, publish
from tests.bench.serving import cut, mixed_rows, prepare
from tests.bench.workload import load_workload, write_deltas
from training.data.tasks import TASKS

_EPILOGUE, _ATTENTION = "epilogue", "row attention"
_PARTS = {
    "mkldnn::_linear_pointwise": "products",
    "aten::mm": "products",
    "aten::addmm": "products",
    "aten::_int_mm": "products",
    _ATTENTION: "attention",
    _EPILOGUE: "epilogues",
}
_ENOUGH = 100_000  # tokens
_LARGEST = 8  # other operators that are listed


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.shares", description=__doc__)
    parser.add_argument("--precision", default="fp32,bf16,int8", help="some of these")
    parser.add_argument("--tokens", default="64,512,4096", help="of a batch")
    parser.add_argument("--strategy", default="bitfit")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare(options.threads)
    mark_kernels()
    backbone = load_backbone()
    workload = load_workload(backbone)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_deltas(backbone, Path(folder), list(TASKS), dict.fromkeys(TASKS, options.strategy))
        store = Store([Path(folder)], backbone=backbone.ref)
        rows = mixed_rows(workload, store)
        for precision in options.precision.split(","):
            engine = Engine(backbone, store, device="cpu", precision=precision)
            for tokens in map(int, options.tokens.split(",")):
                found[f"{precision}, {tokens:,} tokens"] = shares(engine, cut(rows, tokens))
    report = {"machine": machine(options.threads), "us_a_token": found, "data": workload.source}
    publish(report, table(found), options.json)
    return 0


def mark_kernels() -> None:
    """Let the profiler see the kernels that are not PyTorch's."""
    _mark(cpu, "apply_epilogue", _EPILOGUE)
    _mark(row_attention, "attend", _ATTENTION)


def _mark(module: Any, name: str, part: str) -> None:
    function = getattr(module, name)

    def marked(*arguments: Any, **named: Any) -> Any:
        with record_function(part):
            return function(*arguments, **named)

    setattr(module, name, marked)


def shares(engine: Engine, batches: Sequence[Sequence[EngineRow]]) -> dict[str, float]:
    """Measure microseconds per token of each part, and of the largest other operators."""
    batches = _some(batches)
    num_tokens = sum(row.num_tokens for batch in batches for row in batch)
    for batch in batches:
        engine.predict(batch)
    started = time.perf_counter()
    for batch in batches:
        engine.predict(batch)
    whole = (time.perf_counter() - started) * 1e6 / num_tokens
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            engine.predict(batch)
    parts: Counter[str] = Counter()
    for event in profiler.key_averages():
        parts[_PARTS.get(event.key, event.key)] += event.self_cpu_time_total / num_tokens
    named = {part: parts.pop(part, 0.0) for part in dict.fromkeys(_PARTS.values())}
    rest = dict(parts.most_common(_LARGEST))
    return {"whole pass": whole, **named, **rest}


def _some(batches: Sequence[Sequence[EngineRow]]) -> list[Sequence[EngineRow]]:
    """Take enough batches for a profile."""
    chosen, num_tokens = [], 0
    for batch in batches:
        if num_tokens > _ENOUGH:
            break
        chosen.append(batch)
        num_tokens += sum(row.num_tokens for row in batch)
    return chosen


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Write the measurements as lines of Markdown."""
    lines = []
    for name, parts in found.items():
        lines.append(f"{name}: " + ", ".join(f"{part} {us:.2f}" for part, us in parts.items()))
    return lines


if __name__ == "__main__":
    sys.exit(main())
