"""The shipped deltas, chosen from a sweep's finished runs: `python -m training.zoo` (make zoo).

For each task and strategy the run with the best score on its selection rows, which are train rows,
supplies the delta; the dev scores play no part. A run of today's defaults (part `recipe`) is taken
unless another one is better by more than its standard error: only its probabilities are calibrated.
A run does not count if it had fewer rows than other runs of the task, generated rows, another
backbone, or re-initialised values. The runs are those of `study.toml`, `zoo.toml`, `recipe.toml`
and `layers.toml` in `docs/results`, made by `training.sweep --keep-deltas`. Read
`training.study.results` next.

With --predictions it makes the predictions of shipped deltas on their dev rows, where they are
missing or of an earlier version. They are row numbers, labels and logits, never a text.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import deltas
from deltas.errors import home_or_name, home_path
from training.data.tasks import TASKS
from training.errors import DataError, run_command
from training.study.results import Run, RunOutcome, read_runs
from training.sweep import RUNS, WORK

if TYPE_CHECKING:
    from deltas import Backbone
    from deltas.manifest import Manifest
    from training.data.rows import TaskData
    from training.run.output import PredictedSplit

RECIPE = "recipe"  # the part of `docs/results/recipe.toml`
STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")
MOST_ROWS = 2000  # of a split in the shipped predictions; larger splits give evenly spaced rows
_STEPS = 1024  # of a shipped logit between two whole numbers: a third of the bytes


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.zoo") -> int:
    """Run the command; returns the exit code: 0 done, 1 a damaged line or delta, 2 misuse."""
    return run_command(lambda: _fill_zoo(arguments, prog))


def _fill_zoo(arguments: Sequence[str] | None, prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Fill the zoo with the best deltas of a sweep, by their selection rows.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--results",
        type=home_path,
        nargs="+",
        default=[RUNS],
        help=f"files of runs (default: {RUNS})",
    )
    add("--work", type=home_path, nargs="+", default=[WORK], help=f"kept deltas (default: {WORK})")
    add("--zoo", type=home_path, help="folder to write into (default: the shipped zoo)")
    add(
        "--predictions",
        action="store_true",
        help="make the missing predictions of the zoo's deltas, and ship nothing",
    )
    add(
        "--data",
        type=home_or_name,
        help="of --predictions: hub, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)",
    )
    options = parser.parse_args(arguments)
    if options.predictions:
        return _fill_predictions(options.zoo or deltas.zoo_path(), options.data)
    best = choose(run for path in options.results for run in read_runs(path).values())
    # Every kept delta is checked before the first one is shipped.
    kept = {cell: _kept(run, cell, options.work) for cell, run in best.items()}
    for cell in itertools.product(TASKS, STRATEGIES):
        target = deltas.delta_path(options.zoo or deltas.zoo_path(), deltas.DEFAULT_BACKBONE, *cell)
        done = ship(best.get(cell), kept.get(cell), target, options.work[0])
        sys.stdout.write(f"{' '.join(cell)}: {done}\n")
    return 0


def _fill_predictions(zoo: Path, source: str | None) -> int:
    """Make the predictions that deltas of the zoo lack; tasks without such deltas read no rows.

    Raises:
        DataError: the rows are no real ones, or not those of the manifest.
    """
    from deltas.store.predictions import predictions_path
    from training.data.glue import load_task
    from training.run.output import write_predictions

    backbone = deltas.load_backbone()
    for task in TASKS:
        paths = [deltas.delta_path(zoo, deltas.DEFAULT_BACKBONE, task, name) for name in STRATEGIES]
        missing = [path for path in paths if path.exists() and not has_predictions(path)]
        if not missing:
            continue
        data = load_task(task, source)
        if data.source == "sample":
            raise DataError(f"{task}: generated rows are no dev rows; give --data or GLUE_DIR")
        for path in missing:
            splits, version = predict_dev_rows(path, data, backbone)
            made = predictions_path(path)
            write_predictions(made, splits, version)
            rows = ", ".join(f"{len(split.rows):,} rows of {split.name}" for split in splits)
            sys.stdout.write(f"{made.name} of {task}: {rows}, {made.stat().st_size:,} bytes\n")
    return 0


def has_predictions(delta: Path) -> bool:
    """Return whether the file of predictions beside a delta is of its version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deltas.store.predictions import VERSION_KEY, predictions_path

    try:
        metadata = pq.read_schema(predictions_path(delta)).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    _, version = deltas.read_manifest(delta)
    return metadata.get(VERSION_KEY) == version.encode()


def predict_dev_rows(
    path: Path, data: TaskData, backbone: Backbone
) -> tuple[list[PredictedSplit], str]:
    """Return the logits of a delta on its dev rows, as a server computes them, and its version.

    Raises:
        DataError: there are not as many rows as the manifest has scores of.
    """
    import torch

    from training.run.evaluation import predict
    from training.run.output import PredictedSplit
    from training.run.task_model import ServedModel

    delta = deltas.read_delta(path, backbone)
    spec = delta.manifest.task
    head = (delta.head_weight, delta.head_bias)
    model = ServedModel(
        backbone, delta.entries, head, torch.float32, pooling=spec.pooling, pairs=spec.pairs
    )
    splits = []
    for name, rows in data.validation.items():
        known = delta.manifest.metrics.get(name)
        if known is None or known.rows != len(rows):
            raise DataError(
                f"{len(rows):,} rows of {name}, but the delta was judged on "
                f"{known.rows if known else 0:,}; give the rows that it was judged on",
                path=path,
            )
        count = min(len(rows), MOST_ROWS)
        chosen = rows.take(number * len(rows) // count for number in range(count))
        tokens = deltas.tokenize_texts(
            backbone.tokenizer, spec.max_length, chosen.texts, pairs=spec.pairs
        )
        logits = torch.round(predict(model, tokens) * _STEPS) / _STEPS
        splits.append(PredictedSplit(name, chosen, logits))
    return splits, delta.version


def choose(runs: Iterable[Run]) -> dict[tuple[str, str], Run]:
    """Return the best run of each task and strategy that has a run that counts.

    Such a run has the default backbone, and as many real rows as the task's largest run.
    """
    real = [
        (run, run.outcome)
        for run in runs
        if run.outcome is not None
        and run.outcome.backbone == deltas.DEFAULT_BACKBONE
        and run.outcome.data != "sample"
    ]
    most = Counter[str]()
    for _, outcome in real:
        most |= {outcome.task: outcome.num_rows}  # the union of counters keeps the larger number
    best: dict[tuple[str, str], Run] = {}
    for run, outcome in sorted(real, key=lambda pair: _rank(*pair), reverse=True):
        if outcome.num_rows == most[outcome.task] and outcome.strategy in STRATEGIES:
            best.setdefault((outcome.task, outcome.strategy), run)
    return best


def _rank(run: Run, outcome: RunOutcome) -> tuple[float, float]:
    """Return the score on the selection rows; a run of today's defaults gains a standard error.

    The error is that of a share of rows; for correlations it is an approximation.
    """
    score, minus_loss = outcome.selection_score
    error = math.sqrt(max(0.0, score * (1 - score)) / outcome.selection_rows)
    return score + (error if run.part == RECIPE else 0.0), minus_loss


def ship(run: Run | None, source: Path | None, target: Path, folder: Path) -> str:
    """Copy the best run's delta into the zoo and write its model card; returns what was done.

    Both files are written whole or not at all. Without a run no finished run counts, without a
    source its delta was not kept; `folder` is for the delta of a repeated run.
    """
    from deltas.format import write_atomically
    from deltas.publish.card import card_path, render_card

    if run is None or source is None:
        left = f"kept the shipped one ({_score(target)})" if target.exists() else "none in the zoo"
        if run is None:
            return f"{left}; no finished run that counts"
        if target.exists() and _is_of(run, deltas.read_manifest(target)[0]):
            return f"the shipped one is the best run's ({_score(target)})"
        return (
            f"{left}; the delta of the best run is missing, repeat the run: {run.command} "
            f"--out {folder / run.key}"
        )
    before = f", instead of {_score(target)}" if target.exists() else ""
    write_atomically(target, source.read_bytes())
    write_atomically(card_path(target), render_card(target).encode())
    return f"rate {run.options['lr']:g}, seed {run.options['seed']}: {_score(target)}{before}"


def _kept(run: Run, cell: tuple[str, str], work: Iterable[Path]) -> Path | None:
    """Return the delta that a run left, if it was kept.

    Raises:
        DeltaError: the delta is damaged.
        DataError: the delta does not belong to the run.
    """
    for folder in work:
        path = deltas.delta_path(folder / run.key, deltas.DEFAULT_BACKBONE, *cell)
        if path.exists():
            if not _is_of(run, deltas.read_delta(path).manifest):
                raise DataError(
                    f"not the delta of run {run.key}: its scores differ from those of the line; "
                    "remove it, or sweep that run again",
                    path=path,
                )
            return path
    return None


def _is_of(run: Run, manifest: Manifest) -> bool:
    """Return whether a delta is a run's; equal scores identify it."""
    return run.outcome is not None and manifest.metrics == run.outcome.scores


def _score(path: Path) -> str:
    """Write a delta's score on its selection rows."""
    manifest, _ = deltas.read_manifest(path)
    selection = manifest.metrics["selection"]
    value = selection.values[manifest.primary_metric]
    return f"{manifest.primary_metric} {value:.4f} on {selection.rows:,} selection rows"


if __name__ == "__main__":
    sys.exit(main())
