"""Tables and figures of the study: `python -m training.report` makes docs/results from its lines.

Reads the committed lines of `training.sweep` (runs.jsonl), the earlier study's numbers
(earlier_study.csv) and the conclusions that a person wrote (conclusions.md, if it is there); writes
README.md, CSV files and figures beside them, and the rows that the server's `/benchmark` serves.
Equal lines give equal files. Reading order: `training.study.aggregates`, `training.study.tables`,
`training.study.tables`, then here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from deltas.format import write_atomically
from deltas.publish.study import StudyRow, study_path, write_study
from training.errors import ConfigError, TrainingError
from training.study import tables
from training.study.aggregates import Cell, make_cells, not_comparable
from training.study.plan import num_missing, plan, read_study
from training.study.results import Run, RunOutcome, read_runs
from training.study.significance import compare_parts
from training.study.tables import (
    by_backbone,
    costs_sections,
    earlier_sections,
    of_main,
    rates_sections,
    scores_sections,
    significance_sections,
    sized,
)

RESULTS = Path("docs/results")
_CAPTIONS = {
    "scores": "Mean of the dev metric; lines are standard deviations over the seeds, whose number "
    "stands below",
    "spread": "The same: every seed a point, with median and quartiles",
    "losses": "Training loss (since the last evaluation) and loss on the selection rows: a thin "
    "line a seed, a thick one for their median",
    "metric": "The metric on the selection rows over the steps of the run",
    "low_data": "The dev metric against the number of train rows; lines are standard deviations "
    "over the seeds",
    "costs": "The dev metric against trained share, file size and the time of training on one "
    "machine; lines are standard deviations over the seeds",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    parser = argparse.ArgumentParser(
        prog="python -m training.report",
        description="Make the study's tables and figures from its results.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of runs.jsonl (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder to write into (default: the same)")
    parser.add_argument(
        "--benchmark",
        type=Path,
        help="file of the rows for /benchmark (default: in the zoo for the committed results, else "
        "study.json beside the report)",
    )
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    out = options.out or options.results
    # What the server ships is the committed study, not one that somebody made to look at.
    rows = study_path() if options.results == RESULTS else out / "study.json"
    try:
        written = report(options.results, out, options.benchmark or rows)
    except (TrainingError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


def report(results: Path, out: Path, benchmark: Path) -> list[Path]:
    """Write everything.

    Args:
        results: folder with runs.jsonl; earlier_study.csv, study.toml and conclusions.md if there.
        out: folder to write into.
        benchmark: where the rows for the server go.

    Returns:
        The files written.

    Raises:
        ConfigError: there is no finished run, or matplotlib is not installed.
        DataError: a damaged line.
    """
    runs = list(read_runs(results / "runs.jsonl").values())
    cells = make_cells(runs)
    if not cells:
        raise ConfigError(
            f"{results / 'runs.jsonl'} has no finished run; make some: python -m training.sweep"
        )
    try:
        from training.study import figures
    except ImportError as error:
        raise ConfigError(
            f"figures need matplotlib ({error}); install it with "
            "python -m pip install -c constraints.txt -e '.[report]'"
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for place, (words, of_backbone) in enumerate(by_backbone(cells)):
        ending = f"-{_plain(of_backbone[0].backbone)}" if place else ""
        for name in figures.draw(of_main(of_backbone), sized(of_backbone), out, ending):
            drawn[name] = _CAPTIONS[name.removesuffix(ending)] + words
    comparisons = [
        asdict(one)
        for _, alike in by_backbone(cells)
        for found in compare_parts(alike).values()
        for one in found
    ]
    before = results / "earlier_study.csv"
    earlier = tables.read_earlier(before) if before.is_file() else []
    pages = {
        "README.md": _page(results, runs, cells, earlier, drawn),
        "results.csv": tables.csv_text([tables.cell_record(cell) for cell in cells]),
        "significance.csv": tables.csv_text(comparisons),
    }
    for name, text in pages.items():
        write_atomically(out / name, text.encode())
    write_study(benchmark, [study_row(cell) for cell in cells])
    images = [out / f"{name}.{ending}" for name in drawn for ending in ("png", "svg")]
    return [*(out / name for name in pages), *images, benchmark]


def study_row(cell: Cell) -> StudyRow:
    """A cell as the server shows it."""
    first = cell.first
    split = next(name for name in first.scores if name != "selection")
    return StudyRow(
        part=cell.part,
        task=cell.task,
        strategy=cell.method,
        backbone=cell.backbone,
        metric=first.metric,
        mean=round(cell.mean, 6),
        spread=None if cell.spread is None else round(cell.spread, 6),
        seeds=len(cell.scores),
        split=split,
        split_rows=first.scores[split].rows,
        split_note=first.scores[split].note,
        train_rows=first.train_rows,
        selection_rows=first.selection_rows,
        train_note=first.data_note,
        learning_rate=cell.rate,
        epochs=first.epochs,
        trainable_parameters=first.trained,
        trained_share=cell.trained_share,
        size_bytes=first.delta_bytes,
        machine=cell.cost.machine,
        seconds=cell.cost.seconds,
        cpu_seconds=cell.cost.cpu_seconds,
        peak_bytes=round(cell.cost.peak_bytes),
        command=next(iter(cell.runs.values())).command,
    )


def _page(
    results: Path,
    runs: Sequence[Run],
    cells: Sequence[Cell],
    earlier: Sequence[tables.Record],
    drawn: Mapping[str, str],
) -> str:
    """README.md: the conclusions, what was run, tables, figures."""
    parts = ["# Results of the study\n"]
    conclusions = results / "conclusions.md"
    if conclusions.is_file():
        parts.append(conclusions.read_text(encoding="utf-8"))
    parts += [_made_of(results, runs, cells), *scores_sections(cells)]
    parts += significance_sections(cells)
    parts += [*rates_sections(cells), "## Rows\n\n" + tables.rows_table(cells)]
    parts += [*costs_sections(cells), *(earlier_sections(earlier, cells) if earlier else [])]
    parts += ["## Figures\n"] if drawn else []
    parts += [f"![{caption}]({name}.svg)\n\n{caption}.\n" for name, caption in drawn.items()]
    return "\n".join(parts)


def _plain(name: str) -> str:
    """A backbone's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", name)


def _backbones(cells: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(cell.backbone for cell in cells))


def _made_of(results: Path, runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    done = [run.outcome for run in runs if run.outcome]
    machines = dict.fromkeys(map(_carried_out, done))
    declared = (results / "study.toml").is_file()
    lines = [
        "## How it was made\n",
        f"Made by `python -m training.report` from the {len(done):,} finished runs in "
        "`runs.jsonl`, which `python -m training.sweep` made"
        f"{' as `study.toml` and `zoo.toml` say' if declared else ''}. "
        f"{_progress(results, runs)}Backbone: {_backbones(cells)}. Machine: {'; '.join(machines)} "
        "(of the frozen computation; what trains is float32).",
        "",
        "A number is the mean of the dev metric ± its standard deviation over the seeds, whose "
        "number stands behind it. The learning rate of each cell, and the best state of each run, "
        "are chosen on rows held out of the train set, never on the dev set. `results.csv` has "
        "every cell, with the command that repeats its first run.",
    ]
    if mixtures := not_comparable(cells):
        lines.append(f"\n**Does not compare:** {'; '.join(mixtures)}.")
    for run in runs:
        if run.error:
            names = (str(run.options.get(name, "")) for name in ("task", "freeze", "lr", "seed"))
            lines.append(f"\nFailed: {' '.join(names)}: {run.error}")
    return "\n".join(lines) + "\n"


def _carried_out(found: RunOutcome) -> str:
    """Machine and precision of a run, in words."""
    machine = found.machine
    return (
        f"{machine.cpu}, {machine.cores} cores, {_counted(machine.workers, 'run')} at a time with "
        f"{_counted(machine.threads, 'thread')} each, precision {found.precision}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _progress(results: Path, runs: Sequence[Run]) -> str:
    """Says so when runs that the study declares are missing; nothing without its declaration."""
    declared = results / "study.toml"
    if not declared.is_file():
        return ""
    planned = plan(read_study(declared))
    missing = num_missing(planned, {run.key: run for run in runs})
    if not missing:
        return ""
    return (
        f"**The study is not finished: {missing:,} of its {len(planned):,} runs are missing**, and "
        "more of them can change what is chosen. "
    )


if __name__ == "__main__":
    sys.exit(main())
