"""`make bench-serving`: speed with mixed traffic of nine tasks, beside peers and a floor.

    GLUE_DIR=... python -m tests.bench.serving [--precision fp32|bf16] [--rounds 5] [--json FILE]
        [--device cuda]

All systems run in this process, in turn, round after round. A ratio is the median over the rounds
of the times measured within the same round, so that a noisy machine affects both of its sides.
On a GPU all systems run on the same card, without int8 and ONNX Runtime, which need a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from app.engine.cuda.graphs import cuda_recorder
from app.engine.engine import Engine, EngineRow
from deltas import (
    DTYPES,
    Backbone,
    Store,
    keep_compiled_products,
    keep_freed_memory,
    load_backbone,
    pick_device,
    pick_precision,
)
from tests.bench.floor import Gemms
from tests.bench.peers import OnnxRuntime, Peft, Transformers
from tests.bench.report import (
    machine,
    publish,
    rates,
    rates_table,
    ratio_table,
    speed,
    wanted_table,
)
from tests.bench.workload import Workload, load_workload, write_deltas
from training.data.tasks import TASKS

_INT8 = "mixed bitfit, int8"
_MEANS = "mixed bitfit, mean pooling"
_SOME_MEANS = "mixed bitfit, mean pooling of four in nine tasks"
_ONNX = "ONNX Runtime float32, windows of 32"  # it has no bfloat16 on CPUs
_ONNX_INT8 = "ONNX Runtime int8, windows of 32"
_TRAFFIC = "the GEMMs that we run, and memory traffic"

# Each ratio: the speed of a system over that of another, and the goal on a CPU (at least).
RATIOS = {
    "mixed_vs_single": ("mixed bitfit", "single bitfit", 0.97),
    "layernorm_mixed_vs_single": ("mixed layernorm", "single layernorm", 0.97),
    "head_mixed_vs_single": ("mixed head", "single head", 0.97),
    "sparse_mixed_vs_single": ("mixed random:0.001", "single bitfit", 0.85),
    "top_mixed_vs_single": ("mixed, one in four top:2", "single bitfit", 0.70),
    "means_vs_mixed": (_MEANS, "mixed bitfit", 0.87),
    "some_means_vs_mixed": (_SOME_MEANS, "mixed bitfit", None),
    "mixed_vs_gemm": ("mixed bitfit", "all GEMMs of 6 layers", 0.80),
    "mixed_vs_own_gemm": ("mixed bitfit", "the GEMMs that we run", None),
    "mixed_vs_traffic": ("mixed bitfit", _TRAFFIC, None),
    "mixed_vs_peft": ("mixed bitfit", "PEFT LoRA, mixed batches of 32", 4.0),
    "mixed_vs_windows": ("mixed bitfit", "transformers, windows of 32", 2.2),
    "mixed_vs_one_row": ("mixed bitfit", "transformers, one row at a time", 3.5),
    "mixed_vs_oracle": ("mixed bitfit", "transformers, sorted offline", 1.35),
    "mixed_vs_onnx": ("mixed bitfit", _ONNX, None),
    # int8 beside the float peers, and beside the peer that has int8, too.
    "int8_vs_mixed": (_INT8, "mixed bitfit", 1.3),
    "int8_vs_gemm": (_INT8, "all GEMMs of 6 layers", None),
    "int8_vs_peft": (_INT8, "PEFT LoRA, mixed batches of 32", None),
    "int8_vs_windows": (_INT8, "transformers, windows of 32", None),
    "int8_vs_one_row": (_INT8, "transformers, one row at a time", None),
    "int8_vs_oracle": (_INT8, "transformers, sorted offline", None),
    "int8_vs_onnx_int8": (_INT8, _ONNX_INT8, None),
}
STRATEGIES = ("bitfit", "layernorm", "head", "random:0.001")
_TOP = "one in four top:2"
_SETTLE_S = 0.3

System = Callable[[], object]


def main() -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-peers", action="store_true", help="need no library of the peers")
    parser.add_argument("--only", default="", help="run only systems whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare(options.threads)
    device, budget = options.device, options.max_batch_tokens
    precision = pick_precision(options.precision, pick_device(device))
    backbone = load_backbone()
    workload = load_workload(backbone)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        systems = ours(backbone, workload, Path(folder), precision, budget, device)
        if not options.no_peers:
            systems |= peers(backbone, workload, Path(folder), precision, budget, device)
        chosen = {name: system for name, system in systems.items() if options.only in name}
        seconds = measure(chosen, options.rounds, wait_for(device))
    report = summarise(seconds, workload)
    report |= {"machine": machine(options.threads, device), "precision": precision}
    report |= {"rows": len(workload.rows), "tokens": workload.num_tokens, "data": workload.source}
    report |= {"max_batch_tokens": budget, "rounds": options.rounds}
    publish(report, tables(report), options.json)
    return 0


def prepare(threads: int) -> None:
    """Set up this process for many systems; call it before anything is computed."""
    # For all systems: otherwise they would evict each other's compiled products every round.
    keep_compiled_products()
    keep_freed_memory()
    torch.set_num_threads(threads)


def ours(
    backbone: Backbone, workload: Workload, folder: Path, precision: str, budget: int, device: str
) -> dict[str, System]:
    """Make the project's systems: each strategy with all tasks mixed, and with one task alone."""
    systems: dict[str, System] = {}
    for strategy in (*STRATEGIES, _TOP):
        root = folder / strategy.replace(":", "-")
        given = {
            name: ("top:2" if number % 4 == 0 else "bitfit") if strategy == _TOP else strategy
            for number, name in enumerate(TASKS)
        }
        write_deltas(backbone, root, list(TASKS), given)
        store = Store([root], backbone=backbone.ref)
        engine = Engine(backbone, store, device=device, precision=precision)
        rows = mixed_rows(workload, store)
        separator = ", " if strategy == _TOP else " "
        systems[f"mixed{separator}{strategy}"] = run_engine(engine, rows, budget)
        if strategy == "bitfit" and device == "cpu":
            whole = Engine(backbone, store, device=device, precision="int8")
            systems[_INT8] = run_engine(whole, rows, budget)
        if strategy == "bitfit":
            systems |= with_means(backbone, workload, folder, precision, budget, device)
        if strategy != _TOP:
            alone = [EngineRow(row.tokens, rows[0].record, row.num_tokens) for row in rows]
            systems[f"single {strategy}"] = run_engine(engine, alone, budget)
    return systems


def with_means(
    backbone: Backbone, workload: Workload, folder: Path, precision: str, budget: int, device: str
) -> dict[str, System]:
    """Make systems whose tasks, all or some, read the mean of their tokens."""
    systems = {}
    for name, num_means in ((_MEANS, len(TASKS)), (_SOME_MEANS, len(TASKS) // 2)):
        root = folder / f"bitfit-{num_means}-means"
        write_deltas(backbone, root, list(TASKS), dict.fromkeys(TASKS, "bitfit"), num_means)
        store = Store([root], backbone=backbone.ref)
        engine = Engine(backbone, store, device=device, precision=precision)
        systems[name] = run_engine(engine, mixed_rows(workload, store), budget)
    return systems


def mixed_rows(workload: Workload, store: Store) -> list[EngineRow]:
    """Pair each row of the workload with the store's delta of its task."""
    records = [store.resolve(name) for name in TASKS]
    pairs = zip(workload.rows, workload.tasks, strict=True)
    return [EngineRow(row, records[number], row.num_tokens) for row, number in pairs]


def run_engine(engine: Engine, rows: Sequence[EngineRow], budget: int) -> System:
    """Make a system that runs the engine on these rows."""
    batches = cut(rows, budget)
    return lambda: [engine.predict(batch) for batch in batches]


def cut(rows: Sequence[EngineRow], budget: int) -> list[list[EngineRow]]:
    """Cut rows into batches in the order of arrival, as the batcher does under load."""
    batches: list[list[EngineRow]] = [[]]
    free = budget
    for row in rows:
        if row.num_tokens > free:
            batches.append([])
            free = budget
        batches[-1].append(row)
        free -= row.num_tokens
    return batches


def peers(
    backbone: Backbone, workload: Workload, folder: Path, precision: str, budget: int, device: str
) -> dict[str, System]:
    """Make the peers' systems and the floors."""
    dtype = DTYPES[precision]
    store = Store([folder / "bitfit"], backbone=backbone.ref)
    records = [store.resolve(name) for name in TASKS]
    rows = [EngineRow(row, records[0], row.num_tokens) for row in workload.rows]
    sizes = [(sum(row.num_tokens for row in batch), len(batch)) for batch in cut(rows, budget)]
    stock = Transformers(workload, [record.load() for record in records], dtype, device)
    systems: dict[str, System] = {
        "transformers, one row at a time": stock.one_by_one,
        "transformers, windows of 32": stock.in_windows,
        "transformers, sorted offline": stock.sorted_offline,
        "PEFT LoRA, mixed batches of 32": Peft(workload, len(TASKS), dtype, device).mixed,
    }
    if device == "cpu":
        systems[_ONNX] = OnnxRuntime(workload).in_windows
        systems[_ONNX_INT8] = OnnxRuntime(workload, int8=True).in_windows
    return systems | floors(backbone, sizes, dtype, device)


def floors(
    backbone: Backbone, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str
) -> dict[str, System]:
    """Make systems of matrix products alone, for (tokens, rows); on a GPU also with traffic."""
    # For each: compute the last layer for all tokens; read and write each result once more.
    kinds = {"all GEMMs of 6 layers": (True, False), "the GEMMs that we run": (False, False)}
    if device == "cuda":
        kinds[_TRAFFIC] = (False, True)
    record = cuda_recorder() if device == "cuda" else None
    systems: dict[str, System] = {}
    for name, (whole, traffic) in kinds.items():
        gemms = Gemms(
            backbone, dtype, device, whole_last_layer=whole, traffic=traffic, record=record
        )
        systems[name] = lambda gemms=gemms: [gemms.run(*size) for size in sizes]  # type: ignore[misc]
    return systems


def wait_for(device: str) -> System:
    """Return a function that waits until the device is idle; on a CPU it returns at once."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def measure(
    systems: dict[str, System], rounds: int, wait: System = lambda: None
) -> dict[str, list[float]]:
    """Measure seconds of each system in each round, after one round that does not count.

    Args:
        systems: functions to measure, by name.
        rounds: number of rounds that count.
        wait: waits for the device, before the clock is stopped.
    """
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for number in range(rounds + 1):
        # The first system after the pause is slower: each round begins with another one.
        for name in names[number:] + names[:number]:
            system = systems[name]
            started = time.perf_counter()
            system()
            wait()
            if number:
                seconds[name].append(time.perf_counter() - started)
        sys.stderr.write(f"round {number} of {rounds} done\n")
        time.sleep(_SETTLE_S)
    return seconds


def summarise(seconds: dict[str, list[float]], workload: Workload) -> dict[str, Any]:
    """Compute the rates of every system, and the ratios."""
    ratios = {
        key: speed(seconds, mine, other)
        for key, (mine, other, _) in RATIOS.items()
        if mine in seconds and other in seconds
    }
    return {"systems": rates(seconds, workload), "ratios": ratios}


def tables(report: dict[str, Any]) -> list[str]:
    """Write rates and ratios as lines of Markdown; the goals are for CPUs."""
    if "gpu" in report["machine"]:
        return [*rates_table(report), *ratio_table(report["ratios"])]
    wanted = {name: f"at least {least:g}" for name, (_, _, least) in RATIOS.items() if least}
    return [*rates_table(report), *wanted_table(report["ratios"], wanted)]


if __name__ == "__main__":
    sys.exit(main())
