"""Tables and figures of the study: `python -m training.report` makes docs/results from its lines.

Reads the results of `training.sweep` (runs.jsonl) and, if they are there, the earlier study's
numbers (earlier_study.csv), the declaration (study.toml) and the conclusions that a person wrote
(conclusions.md). Writes README.md, CSV files and figures beside them, and the rows of the server's
`/benchmark`. Equal lines give equal files. Read `training.study.aggregates` next, then
`training.study.significance`, `training.study.tables` and `training.study.figures`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from deltas.errors import home_path
from training.errors import ConfigError, DataError, run_command
from training.study import tables
from training.study.aggregates import MAIN, Cell, make_cells, not_comparable
from training.study.plan import plan, read_study
from training.study.results import Run, RunOutcome, read_runs
from training.study.significance import compare_parts

if TYPE_CHECKING:
    from deltas.publish.measured import CurveRow
    from deltas.publish.study import StudyRow

RESULTS = Path("docs/results")
_SHORTEST_CURVE = 2  # evaluations
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


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.report") -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    return run_command(lambda: _report(arguments, prog))


def _report(arguments: Sequence[str] | None, prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make the study's tables and figures from its results.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--results",
        type=home_path,
        default=RESULTS,
        help="folder of runs.jsonl (default: %(default)s)",
    )
    add("--out", type=home_path, help="folder to write into (default: the folder of --results)")
    add(
        "--benchmark",
        type=home_path,
        help="file of the rows for /benchmark (default: in the zoo for the committed results, else "
        "study.json in --out)",
    )
    add(
        "--earlier",
        type=home_path,
        help="numbers of an earlier study to show beside (default: earlier_study.csv in --results)",
    )
    options = parser.parse_args(arguments)
    from deltas.publish.study import study_path

    out = options.out or options.results
    # The server ships the committed study; a report on other runs must not replace it.
    rows = study_path() if options.results == RESULTS else out / "study.json"
    written = report(options.results, out, options.benchmark or rows, options.earlier)
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


def report(results: Path, out: Path, benchmark: Path, earlier: Path | None = None) -> list[Path]:
    """Write the report on a folder of results into `out`, and the server's rows into `benchmark`.

    `earlier` is a file of numbers to compare with, by default the folder's own if it has one.
    Returns the files written.

    Raises:
        ConfigError: there is no finished run, no such earlier file, or matplotlib is not installed.
        DataError: a damaged line, or other files of the folder that can't be read.
    """
    from deltas.format import write_atomically
    from deltas.publish.study import write_study

    runs = list(read_runs(results / "runs.jsonl").values())
    cells = make_cells(runs)
    if not cells:
        raise ConfigError(
            f"{results / 'runs.jsonl'} has no finished run; make some: python -m training.sweep"
        )
    if earlier and not earlier.is_file():
        raise ConfigError(f"--earlier {earlier}: no such file")
    # Everything is read before the first file is written: a mistake in one leaves no half report.
    page = _page(results, runs, cells, earlier)
    comparisons = [
        asdict(one)
        for _, alike in tables.by_backbone(cells)
        for found in compare_parts(alike).values()
        for one in found
    ]
    rows = [study_row(cell) for cell in cells]
    captions = _draw(cells, out)
    pages = {
        "README.md": page + _figures(captions),
        "results.csv": tables.csv_text([tables.cell_record(cell) for cell in cells]),
        "significance.csv": tables.csv_text(comparisons),
    }
    for name, text in pages.items():
        write_atomically(out / name, text.encode())
    write_study(benchmark, rows)
    images = [out / f"{name}.{ending}" for name in captions for ending in ("png", "svg")]
    return [*(out / name for name in pages), *images, benchmark]


def _draw(cells: Sequence[Cell], out: Path) -> dict[str, str]:
    """Draw the figures of each backbone; returns their captions by name."""
    try:
        from training.study import figures
    except ImportError as error:
        raise ConfigError(
            f"figures need matplotlib ({error}); install it with "
            "python -m pip install -c constraints.txt -e '.[report]'"
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    captions: dict[str, str] = {}
    for number, (words, alike) in enumerate(tables.by_backbone(cells)):
        ending = "-" + re.sub(r"[^\w.-]+", "-", alike[0].backbone) if number else ""
        names = figures.draw(tables.main_cells(alike), tables.sized_cells(alike), out, ending)
        captions |= {name: _CAPTIONS[name.removesuffix(ending)] + words for name in names}
    return captions


def study_row(cell: Cell) -> StudyRow:
    """Return a cell as a row of the server's `/benchmark`."""
    from deltas.publish.study import StudyRow

    first = cell.first
    facts = tables.cell_facts(cell) | {
        "mean": round(cell.mean, 6),
        "spread": None if cell.spread is None else round(cell.spread, 6),
        "split": first.dev_split,
        "split_rows": first.scores[first.dev_split].rows,
        "split_note": first.scores[first.dev_split].note,
        "train_note": first.data_note,
        "trainable_parameters": first.trained,
        "size_bytes": first.delta_bytes,
        "peak_bytes": round(cell.cost.peak_bytes),
    }
    return StudyRow(**{name: facts[name] for name in StudyRow.model_fields})


def curve_rows(cells: Sequence[Cell]) -> list[CurveRow]:
    """Return the curves of the study's main part; seeds with other steps than the first are out."""
    from deltas.publish.measured import CurveRow

    rows = []
    for cell in cells:
        histories = [found.history for found in cell.outcomes.values()]
        alike = [each for each in histories if each.step == histories[0].step]
        if cell.part != MAIN or len(histories[0].step) < _SHORTEST_CURVE:
            continue
        by_step = list(zip(*(each.metric for each in alike), strict=True))
        rows.append(
            CurveRow(
                task=cell.task,
                strategy=cell.method,
                metric=cell.first.metric,
                seeds=len(alike),
                learning_rate=cell.rate,
                step=list(alike[0].step),
                median=[round(median(values), 6) for values in by_step],
                low=[round(min(values), 6) for values in by_step],
                high=[round(max(values), 6) for values in by_step],
            )
        )
    return rows


def _page(results: Path, runs: Sequence[Run], cells: Sequence[Cell], earlier: Path | None) -> str:
    """Write README.md up to its figures: the conclusions, the origin of the numbers, tables."""
    backbones = tables.by_backbone(cells)
    parts = ["# Results of the study\n"]
    conclusions, earlier = results / "conclusions.md", earlier or results / "earlier_study.csv"
    if conclusions.is_file():
        try:
            parts.append(conclusions.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError("not text in UTF-8; save it as UTF-8", path=conclusions) from error
    parts.append(_origin(results, runs, cells))
    for section in (tables.scores_section, tables.significance_section, tables.rates_section):
        parts += [section(alike, words) for words, alike in backbones]
    parts.append("## Rows\n\n" + tables.rows_table(cells))
    parts += [tables.costs_section(alike, words) for words, alike in backbones]
    if earlier.is_file():
        records = tables.read_earlier(earlier)
        parts += [tables.earlier_section(records, alike, words) for words, alike in backbones]
    return "\n".join(parts)


def _figures(captions: Mapping[str, str]) -> str:
    """Write the end of README.md; `captions` are those of the figures, by name."""
    shown = [f"\n![{caption}]({name}.svg)\n\n{caption}.\n" for name, caption in captions.items()]
    return "".join(["\n## Figures\n", *shown]) if shown else ""


def _origin(results: Path, runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    done = [run.outcome for run in runs if run.outcome]
    machines = "; ".join(dict.fromkeys(map(_machine_text, done)))
    backbones = ", ".join(dict.fromkeys(cell.backbone for cell in cells))
    declared, progress = results / "study.toml", ""
    if declared.is_file():
        planned, made = plan(read_study(declared)), {run.key: run for run in runs}
        if missing := sum(run.find(made) is None for run in planned):
            progress = (
                f"**The study is not finished: {missing:,} of its {len(planned):,} runs are "
                "missing**, and more of them can change what is chosen. "
            )
    lines = [
        "## How it was made\n",
        f"Made by `python -m training.report` from the {len(done):,} finished runs in "
        "`runs.jsonl`, which `python -m training.sweep` made"
        f"{' as the files `*.toml` beside it say' if declared.is_file() else ''}. "
        f"{progress}Backbone: {backbones}. Machine: {machines} "
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


def _machine_text(outcome: RunOutcome) -> str:
    machine = outcome.machine
    runs = f"{machine.workers} run{'s' * (machine.workers != 1)}"
    threads = f"{machine.threads} thread{'s' * (machine.threads != 1)}"
    return (
        f"{machine.cpu}, {machine.cores} cores, {runs} at a time with {threads} each, "
        f"precision {outcome.precision}"
    )


if __name__ == "__main__":
    sys.exit(main())
