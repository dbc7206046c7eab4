"""`make bench-precision`: quality and speed of each precision.

    GLUE_DIR=... python -m tests.bench.precision [--rows N] [--rounds 5] [--json FILE]

Quality: each shipped delta answers its task's dev set (MNLI: the matched one) in every precision;
changes are counted against its answers in float32. Speed: nine bitfit tasks mixed, the
engines in turn, as `tests.bench.serving` measures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.engine import Engine, EngineRow
from app.errors import DeltaUnavailableError
from deltas import Backbone, Record, Store, load_backbone, zoo_path
from tests.bench.report import machine, publish, rates, rates_table, speed, wanted_table
from tests.bench.serving import cut, measure, mixed_rows, prepare, run_engine
from tests.bench.workload import Workload, data_source, dev_rows, load_workload, write_deltas
from training.data.rows import Rows
from training.data.tasks import TASKS, Task, find_task
from training.run.evaluation import compute_metrics, decisions

EXACT = "fp32"
ROUNDED = ("bf16", "int8")
PRECISIONS = (EXACT, *ROUNDED)
SPEEDS = {
    "int8_vs_bf16": ("int8", "bf16"),
    "int8_vs_fp32": ("int8", "fp32"),
    "bf16_vs_fp32": ("bf16", "fp32"),
}
WANTED = {"int8_vs_bf16": "at least 1.3", "int8_most_points_lost_to_bf16": "at most 0.3"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; print a table; write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.precision", description=__doc__)
    parser.add_argument("--rows", type=int, default=0, help="of each dev set; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    prepare(options.threads)
    backbone = load_backbone()
    workload = load_workload(backbone)
    seconds = time_engines(backbone, workload, options.rounds, options.max_batch_tokens)
    deltas = compare_zoo(backbone, options.rows, options.max_batch_tokens)
    report = {
        "systems": rates(seconds, workload),
        "ratios": ratios(seconds, deltas),
        "strategies": by_strategy(deltas),
        "deltas": deltas,
        "machine": machine(options.threads),
        "precision": ", ".join(PRECISIONS),
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "rows_a_dev_set": options.rows or "all",
        "data": data_source(),
        "max_batch_tokens": options.max_batch_tokens,
        "rounds": options.rounds,
    }
    lines = [*rates_table(report), "", *delta_table(deltas)]
    publish(report, [*lines, *wanted_table(report["ratios"], WANTED)], options.json)
    return 0


def make_engines(backbone: Backbone, root: Path) -> dict[str, Engine]:
    """Make an engine of each precision for the deltas below `root`; all must be served."""
    store = Store([root], backbone=backbone.ref)
    engines = {
        precision: Engine(backbone, store, device="cpu", precision=precision)
        for precision in PRECISIONS
    }
    if store.rejected:
        raise SystemExit(f"not served: {store.rejected}")
    return engines


def time_engines(
    backbone: Backbone, workload: Workload, rounds: int, budget: int
) -> dict[str, list[float]]:
    """Measure seconds of each precision for the workload, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        write_deltas(backbone, Path(folder), list(TASKS), dict.fromkeys(TASKS, "bitfit"))
        engines = make_engines(backbone, Path(folder))
        rows = mixed_rows(workload, engines[EXACT].store)
        systems = {name: run_engine(engine, rows, budget) for name, engine in engines.items()}
        return measure(systems, rounds)


def compare_zoo(backbone: Backbone, num_rows: int, budget: int) -> list[dict[str, Any]]:
    """Compare precisions for every shipped delta on `num_rows` of its dev set; 0 takes all."""
    engines = make_engines(backbone, zoo_path())
    store = engines[EXACT].store
    found = []
    for name in store.tasks:
        rows = dev_rows(name)
        rows = rows.take(range(min(num_rows or len(rows), len(rows))))
        for strategy in store.strategies(name):
            record = store.resolve(name, strategy)
            found.append(compare(engines, record, find_task(name), rows, budget))
            sys.stderr.write(f"{name}/{strategy}: {len(rows):,} rows done\n")
    return found


def compare(
    engines: Mapping[str, Engine], record: Record, task: Task, rows: Rows, budget: int
) -> dict[str, Any]:
    """Compute a delta's primary metric in float32, and its changes in other precisions."""
    name, strategy = record.manifest.key
    metric = task.primary_metric
    tokenized = engines[EXACT].tokenize(record, rows.texts)
    answers, scores = {}, {}
    for precision, engine in engines.items():
        answers[precision] = decisions(task.kind, logits_of(engine, tokenized, budget))
        judged = compute_metrics([metric], answers[precision], np.array(rows.labels))
        scores[precision] = judged[metric]
    found: dict[str, Any] = {"task": name, "strategy": strategy, "metric": metric}
    found |= {"rows": len(rows), EXACT: round(scores[EXACT], 5)}
    for precision in ROUNDED:
        points = {"points": round(100 * (scores[precision] - scores[EXACT]), 3)}
        found[precision] = points | changes(task.kind, answers[EXACT], answers[precision])
    return found


def logits_of(engine: Engine, rows: Sequence[EngineRow], budget: int) -> NDArray[Any]:
    """Compute the logits of all rows of one delta in packed batches."""
    outcomes = [outcome for batch in cut(rows, budget) for outcome in engine.predict(batch)]
    for outcome in outcomes:
        if isinstance(outcome, DeltaUnavailableError):
            raise outcome
    return np.array(outcomes)


def changes(kind: str, before: NDArray[Any], after: NDArray[Any]) -> dict[str, float]:
    """Compute the share of changed labels; for regression, the change of the values."""
    if kind == "regression":
        moved = np.abs(after - before)
        return {
            "mean_change": round(float(moved.mean()), 5),
            "largest_change": round(float(moved.max()), 5),
        }
    return {"flips": round(float(np.mean(before != after)), 6)}


def ratios(
    seconds: Mapping[str, Sequence[float]], deltas: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Compute the ratios of speed, the largest loss, and the share of changed labels."""
    found = {name: speed(seconds, mine, other) for name, (mine, other) in SPEEDS.items()}
    losses = {precision: loss(deltas, precision) for precision in reversed(ROUNDED)}
    for fact in ("most_points_lost", "flips"):
        found |= {f"{precision}_{fact}": lost[fact] for precision, lost in losses.items()}
    found["int8_most_points_lost_to_bf16"] = most_lost(deltas, "int8", "bf16")
    return found


def most_lost(deltas: Iterable[Mapping[str, Any]], precision: str, other: str) -> float:
    """Find the largest loss of a delta between two precisions, in points; 0 if there is none."""
    lost = [delta[other]["points"] - delta[precision]["points"] for delta in deltas]
    return round(max([0.0, *lost]), 3)


def by_strategy(deltas: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Compute the loss of each strategy's deltas in each precision."""
    found = {}
    for strategy in dict.fromkeys(delta["strategy"] for delta in deltas):
        own = [delta for delta in deltas if delta["strategy"] == strategy]
        found[strategy] = {precision: loss(own, precision) for precision in ROUNDED}
    return found


def loss(deltas: Iterable[Mapping[str, Any]], precision: str) -> dict[str, Any]:
    """Compute the loss of some deltas in a precision.

    Returns:
        "most_points_lost" by one of them (0 if none loses any), its "task" (empty then), and
        "flips": of all their rows with labels, the share that gets another one.
    """
    most, task, rows, flipped = 0.0, "", 0, 0.0
    for delta in deltas:
        found = delta[precision]
        if -found["points"] > most:
            most, task = -found["points"], delta["task"]
        if "flips" in found:
            rows += delta["rows"]
            flipped += delta["rows"] * found["flips"]
    share = round(flipped / rows, 6) if rows else 0.0
    return {"most_points_lost": most, "task": task, "flips": share}


def delta_table(deltas: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write a Markdown row for each delta: its score in float32, and the changes."""
    head = ["delta", "rows", "metric", EXACT]
    for precision in ROUNDED:
        head += [f"{precision}, points", f"{precision}, labels changed"]
    rows = [head, ["---"] * len(head)]
    for delta in deltas:
        cells = [f"{delta['task']} `{delta['strategy']}`", f"{delta['rows']:,}", delta["metric"]]
        cells.append(f"{delta[EXACT]:.4f}")
        for precision in ROUNDED:
            cells += [f"{delta[precision]['points']:+.2f}", _changed(delta[precision])]
        rows.append(cells)
    return [f"| {' | '.join(row)} |" for row in rows]


def _changed(found: Mapping[str, float]) -> str:
    if "flips" in found:
        return f"{found['flips']:.2%}"
    return f"value by {found['mean_change']:.4f}, at most {found['largest_change']:.4f}"


if __name__ == "__main__":
    sys.exit(main())
