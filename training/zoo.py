"""The shipped deltas, chosen from a sweep's finished runs: `python -m training.zoo` (make zoo).

For each task and strategy the run with the best score on its selection rows, which are train rows,
gives the delta; the dev scores play no part. Runs on fewer rows than the task's others, on
generated rows, on another backbone, or from new values do not count.
The runs are those of `docs/results/study.toml` and `docs/results/zoo.toml`, made by
`training.sweep --keep-deltas`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltas.backbone.backbone import DEFAULT_BACKBONE
from deltas.errors import DeltaError
from deltas.format import read_delta, read_manifest, write_atomically
from deltas.manifest import Manifest
from deltas.publish.card import card_path, render_card
from deltas.store import delta_path, zoo_path
from training.data.tasks import TASKS
from training.errors import DataError, TrainingError
from training.study.results import Run, read_runs
from training.sweep import RUNS, WORK

STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")


@dataclass(frozen=True)
class ZooChoice:
    """What the zoo shall hold for a task and a strategy.

    Attributes:
        run: the best one; None if no finished run counts.
        folder: where it left its delta.
        source: the delta, whole and sound; None if it was not kept.
    """

    task: str
    strategy: str
    run: Run | None = None
    folder: Path | None = None
    source: Path | None = None


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.zoo") -> int:
    """Run the command; returns the exit code: 0 done, 1 a damaged line or delta, 2 misuse."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Fill the zoo with the best deltas of a sweep, by their selection rows.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--results", type=Path, nargs="+", default=[RUNS], help=f"files of runs (default: {RUNS})")
    add("--work", type=Path, nargs="+", default=[WORK], help=f"kept deltas (default: {WORK})")
    add("--zoo", type=Path, default=zoo_path(), help="where they go (default: the shipped zoo)")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        runs = [run for path in options.results for run in read_runs(path).values()]
        choices = choose(runs, options.work)
        for choice in choices:
            sys.stdout.write(f"{choice.task} {choice.strategy}: {ship(choice, options.zoo)}\n")
    except (TrainingError, DeltaError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def choose(runs: Iterable[Run], work: Sequence[Path]) -> list[ZooChoice]:
    """The best run of each task and strategy, with its delta where that was kept.

    Args:
        runs: finished ones and failed ones.
        work: folders that hold `<key of a run>/<backbone>/<task>/<strategy>.safetensors`.

    Raises:
        DeltaError: a kept delta is damaged.
        DataError: a kept delta is not that of its line.
    """
    counting = _counting(runs)
    choices = []
    for task in TASKS:
        for strategy in STRATEGIES:
            found = [run for run in counting if _cell(run) == (task, strategy)]
            if not found:
                choices.append(ZooChoice(task, strategy))
                continue
            best = max(found, key=_selection_score)
            folders = [folder / best.key for folder in work]
            choices.append(ZooChoice(task, strategy, best, folders[0], _kept(best, folders)))
    return choices


def ship(choice: ZooChoice, zoo: Path) -> str:
    """Put a chosen delta and its model card into the zoo, if there is one; returns what was done.

    Each of both files is written whole or not at all.
    """
    target = delta_path(zoo, DEFAULT_BACKBONE, choice.task, choice.strategy)
    if choice.run is None or choice.source is None:
        left = f"kept the shipped one ({_score(target)})" if target.exists() else "none in the zoo"
        if choice.run is None:
            return f"{left}; no finished run that counts"
        if target.exists() and _is_of(choice.run, read_manifest(target)[0]):
            return f"the shipped one is the best run's ({_score(target)})"
        return (
            f"{left}; the delta of the best run is not there, repeat it: {choice.run.command} "
            f"--out {choice.folder}"
        )
    before = f", instead of {_score(target)}" if target.exists() else ""
    write_atomically(target, choice.source.read_bytes())
    write_atomically(card_path(target), render_card(target).encode())
    rate, seed = choice.run.options["lr"], choice.run.options["seed"]
    return f"rate {rate:g}, seed {seed}: {_score(target)}{before}"


def _counting(runs: Iterable[Run]) -> list[Run]:
    """Runs of the default backbone on as many real rows as the task's largest run had."""
    real = [
        run
        for run in runs
        if run.outcome is not None
        and run.outcome.backbone == DEFAULT_BACKBONE
        and run.outcome.data != "sample"
    ]
    most: dict[str, int] = {}
    for run in real:
        task = str(run.options["task"])
        most[task] = max(most.get(task, 0), _num_rows(run))
    return [run for run in real if _num_rows(run) == most[str(run.options["task"])]]


def _cell(run: Run) -> tuple[str, str]:
    """Task and strategy; a re-initialised run's strategy has another name."""
    assert run.outcome is not None
    return run.outcome.task, run.outcome.strategy


def _num_rows(run: Run) -> int:
    assert run.outcome is not None
    return run.outcome.train_rows + run.outcome.selection_rows


def _selection_score(run: Run) -> tuple[float, float]:
    assert run.outcome is not None
    return run.outcome.selection_score


def _kept(run: Run, folders: Iterable[Path]) -> Path | None:
    """The delta that a run left, checked."""
    assert run.outcome is not None
    for folder in folders:
        path = delta_path(folder, run.outcome.backbone, *_cell(run))
        if path.exists():
            if not _is_of(run, read_delta(path).manifest):
                raise DataError(
                    f"not the delta of run {run.key}: its scores differ from those of the line; "
                    "remove it, or sweep that run again",
                    path=path,
                )
            return path
    return None


def _is_of(run: Run, manifest: Manifest) -> bool:
    """Whether a delta is the one that a run left; its scores tell."""
    assert run.outcome is not None
    return manifest.metrics == run.outcome.scores


def _score(path: Path) -> str:
    """A delta's score on its selection rows, in words."""
    manifest, _ = read_manifest(path)
    selection = manifest.metrics["selection"]
    value = selection.values[manifest.primary_metric]
    return f"{manifest.primary_metric} {value:.4f} on {selection.rows:,} selection rows"


if __name__ == "__main__":
    sys.exit(main())
