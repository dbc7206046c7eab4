"""`make bench-quality`: answers of the default command beside baselines, on all visible sets.

    GLUE_DIR=... python -m tests.bench.quality [--own DIR] [--sets a,b] [--methods a,b]

Every run is a process of its own, one at a time, as a user would start it. Each one adds a line to
the file of results, and a run that has a line is skipped: the same command continues after a stop,
even after kill -9. At the end, a page and a figure are written beside the results.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.quality import report
from tests.bench.quality.results import BASELINES, TODAY, Variant, read_runs, select_runs
from tests.bench.quality.runs import Bench, plan, tell
from tests.bench.quality.sets import GLUE_SETS, LoadedSet, QualitySet, fresh_sets, public_sets
from training.errors import ConfigError, TrainingError, listing, run_command
from training.fit import parse_arguments

DEFAULT_JSON = Path("docs/performance/quality.jsonl")
FRESH_JSON = Path("runs/quality/fresh.jsonl")
_STOPPED = "stopped; the same command continues with the run that was stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the missing runs and the report; returns 0, or 1 if a run has failed."""
    options = parse(arguments)
    return run_command(lambda: _bench(options), _STOPPED)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--sets", type=_words, default=(), help="only these sets: cola,mr (default: all in reach)")
    add(
        "--methods",
        type=_words,
        default=("all",),
        help="all, baselines, ours, stock, or names, any --freeze strategy too (default: all)",
    )
    add("--seeds", type=_numbers, default=(0, 1, 2, 3, 4), help="(default: 0,1,2,3,4)")
    add("--glue", help="folder of GLUE's parquet files (default: $GLUE_DIR)")
    add("--own", type=Path, help="folder of clinc150, sst5, goemotions, mr, cr and subj")
    add(
        "--fresh",
        type=Path,
        action="append",
        default=[],
        help="a file, or a folder with train and test, of any other set; may be repeated",
    )
    add("--text-columns", default="", help="of --fresh: a or a,b (default: all but the last)")
    add("--label-column", default="", help="of --fresh (default: the last column)")
    add(
        "--train-rows",
        type=int,
        help="train rows to draw from each larger set (default: 8,000 of sst2, qqp, mnli, qnli)",
    )
    add("--fit-args", default="", help='more options of training.fit: --fit-args="--epochs 1"')
    add("--recipe", default=TODAY.recipe, help="name of our defaults (default: %(default)s)")
    add("--stock-epochs", type=float, help="epochs of stock runs (default: the steps of our full)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of a run")
    add("--json", type=Path, help=f"file of results (default: {DEFAULT_JSON}, fresh: {FRESH_JSON})")
    add("--dry-run", action="store_true", help="list the missing runs")
    add("--report-only", action="store_true", help="make no run, only page and figure")
    options = parser.parse_args(arguments)
    if options.json is None:
        options.json = FRESH_JSON if options.fresh else DEFAULT_JSON
    return options


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def variant_of(options: argparse.Namespace) -> Variant:
    """Return the conditions of the runs that the options ask for."""
    config = parse_arguments(["--task", "rte", *shlex.split(options.fit_args)])
    return Variant(
        recipe=options.recipe,
        asked_rows=options.train_rows,
        fit_args=shlex.join(shlex.split(options.fit_args)),
        backbone=Path(config.backbone).name if config.backbone else "",
        max_length=config.max_length,
    )


def _bench(options: argparse.Namespace) -> int:
    variant = variant_of(options)
    failed = 0
    if not options.report_only:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if options.glue:
            os.environ["GLUE_DIR"] = str(Path(options.glue).resolve())
        failed = make_runs(options, variant)
    if options.dry_run:
        return 0
    runs = list(read_runs(options.json).values())
    target = options.json.with_suffix(".md")
    if options.json == DEFAULT_JSON and variant != TODAY:  # the project's page has one variant
        target = FRESH_JSON.with_name("variant.md")
    report.write(runs, variant, target)
    chosen = select_runs(runs, variant)
    if chosen:
        sys.stdout.write(report.table(report.goal_rows(chosen)))
    sys.stdout.write(f"{len(chosen)} runs; all tables are in {target}\n")
    return 1 if failed else 0


def choose_sets(options: argparse.Namespace) -> list[QualitySet]:
    """Return the sets that the options ask for.

    Raises:
        ConfigError: a set is unknown, or not in reach.
    """
    found: list[QualitySet] = []
    for path in options.fresh:
        found += fresh_sets(path, options.text_columns, options.label_column)
    if not options.fresh or options.sets:
        found += GLUE_SETS if os.environ.get("GLUE_DIR") else ()
        found += public_sets(options.own) if options.own else []
    names = [each.name for each in found]
    for name in options.sets:
        if name not in names:
            raise ConfigError(
                f"--sets {name}: in reach are {listing(names)}; GLUE needs GLUE_DIR or --glue, the "
                "six public sets need --own"
            )
    if not found:
        raise ConfigError("no set is in reach: set GLUE_DIR, or give --glue, --own or --fresh")
    return [each for each in found if each.name in (options.sets or names)]


def make_runs(options: argparse.Namespace, variant: Variant) -> int:
    """Make the missing runs, one process at a time; returns the number of failures."""
    loaded, failures = [], []
    for each in choose_sets(options):
        try:
            extra = shlex.split(options.fit_args)
            loaded.append(LoadedSet(each, options.train_rows, extra))
        except TrainingError as error:
            failures.append(f"{each.name}: {error}")
    bench = Bench(options, variant)
    missing = bench.missing(list(plan(loaded, options)))
    tell(f"{len(missing)} runs to make; Ctrl-C stops, the same command continues")
    while missing:
        if options.dry_run:
            sys.stdout.write("".join(f"{run.title}\n" for run in missing))
            break
        first = missing[0]
        group = [first]
        if first.method in BASELINES:  # runs on one set share its features in one process
            group = [run for run in missing if run.rows is first.rows and run.method in BASELINES]
        missing = [run for run in missing if run not in group]
        try:
            bench.make(group)
        except TrainingError as error:
            failures.append(f"{first.title}: {error}")
            tell(failures[-1])
        tell(f"{len(missing)} runs left")
    if failures:
        tell("failed, and tried again by the same command:")
        tell("\n".join(failures))
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
