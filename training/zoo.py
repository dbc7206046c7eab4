"""The shipped deltas, chosen from a sweep's finished runs: `python -m training.zoo` (make zoo).

For each task and strategy the run with the best score on its selection rows, which are train rows,
supplies the delta; the dev scores play no part. A run does not count if it had fewer rows than
other runs of the task, generated rows, another backbone, or re-initialised values. The runs are
those of `docs/results/study.toml` and `docs/results/zoo.toml`, made by `training.sweep
--keep-deltas`. Read `training.study.results` next.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import deltas
from training.data.tasks import TASKS
from training.errors import DataError, run_command
from training.study.results import Run, RunOutcome, read_runs
from training.sweep import RUNS, WORK

if TYPE_CHECKING:
    from deltas.manifest import Manifest

STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")


@dataclass(frozen=True)
class ZooChoice:
    """The best run of a task and strategy, if one counts, and its checked delta, if it was kept."""

    task: str
    strategy: str
    run: Run | None = None
    folder: Path | None = None
    source: Path | None = None


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
    add("--results", type=Path, nargs="+", default=[RUNS], help=f"files of runs (default: {RUNS})")
    add("--work", type=Path, nargs="+", default=[WORK], help=f"kept deltas (default: {WORK})")
    add("--zoo", type=Path, help="folder to write into (default: the shipped zoo)")
    options = parser.parse_args(arguments)
    runs = [run for path in options.results for run in read_runs(path).values()]
    zoo = options.zoo or deltas.zoo_path()
    for choice in choose(runs, options.work):
        sys.stdout.write(f"{choice.task} {choice.strategy}: {ship(choice, zoo)}\n")
    return 0


def choose(runs: Iterable[Run], work: Sequence[Path]) -> list[ZooChoice]:
    """Choose the best run of each task and strategy, with its delta if that was kept.

    Args:
        runs: finished and failed runs.
        work: folders that hold `<key of a run>/<backbone>/<task>/<strategy>.safetensors`.

    Raises:
        DeltaError: a kept delta is damaged.
        DataError: a kept delta does not belong to its line.
    """
    best: dict[tuple[str, str], tuple[Run, RunOutcome]] = {}
    for run, outcome in _counting(runs):
        cell = outcome.task, outcome.strategy
        if cell not in best or outcome.selection_score > best[cell][1].selection_score:
            best[cell] = run, outcome
    choices = []
    for cell in itertools.product(TASKS, STRATEGIES):
        if cell in best:
            run, outcome = best[cell]
            folders = [folder / run.key for folder in work]
            choices.append(ZooChoice(*cell, run, folders[0], _kept(run, outcome, folders)))
        else:
            choices.append(ZooChoice(*cell))
    return choices


def ship(choice: ZooChoice, zoo: Path) -> str:
    """Copy a chosen delta into the zoo and write its model card; returns what was done.

    Both files are written whole or not at all.
    """
    from deltas.format import write_atomically
    from deltas.publish.card import card_path, render_card

    target = deltas.delta_path(zoo, deltas.DEFAULT_BACKBONE, choice.task, choice.strategy)
    if choice.run is None or choice.source is None:
        left = f"kept the shipped one ({_score(target)})" if target.exists() else "none in the zoo"
        if choice.run is None:
            return f"{left}; no finished run that counts"
        if target.exists() and _is_of(choice.run, deltas.read_manifest(target)[0]):
            return f"the shipped one is the best run's ({_score(target)})"
        return (
            f"{left}; the delta of the best run is missing, repeat the run: {choice.run.command} "
            f"--out {choice.folder}"
        )
    before = f", instead of {_score(target)}" if target.exists() else ""
    write_atomically(target, choice.source.read_bytes())
    write_atomically(card_path(target), render_card(target).encode())
    rate, seed = choice.run.options["lr"], choice.run.options["seed"]
    return f"rate {rate:g}, seed {seed}: {_score(target)}{before}"


def _counting(runs: Iterable[Run]) -> list[tuple[Run, RunOutcome]]:
    """Return runs of the default backbone on as many real rows as the task's largest run."""
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
    return [(run, outcome) for run, outcome in real if outcome.num_rows == most[outcome.task]]


def _kept(run: Run, outcome: RunOutcome, folders: Iterable[Path]) -> Path | None:
    """Return the checked delta that a run left, if it was kept."""
    for folder in folders:
        path = deltas.delta_path(folder, outcome.backbone, outcome.task, outcome.strategy)
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
