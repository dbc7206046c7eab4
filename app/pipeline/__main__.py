"""Answers files of rows without a server: `deltabert predict`, or `python -m app.pipeline`.

It reads the command line and opens the deltas; `app.pipeline.bulk.run` does the work. Nothing large
is imported before the arguments are known to be sound. Tested by
tests/integration/app/test_predict_command.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltas.errors import home_or_name, home_path, run_command

if TYPE_CHECKING:
    from deltas import Backbone, Record

_EPILOG = """\
The output has the kept columns, the answer of each task, and `error` for rows that could not be
answered. Without --output each FILE gets FILE.predictions.SUFFIX beside it. A run that was stopped
goes on when the same command is given again.
"""


class _MisuseError(Exception):
    """The arguments don't fit each other."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app.pipeline") -> int:
    """Answer files; returns the exit code: 0 done, 1 unusable files, 2 misuse, 130 interrupted."""
    options = _parser(prog).parse_args(arguments)

    def command() -> int:
        from app.errors import DeltaUnavailableError
        from app.pipeline.bulk.files import FileError
        from app.pipeline.bulk.rows import HeaderError

        try:
            return _predict(options)
        except (FileError, HeaderError, DeltaUnavailableError) as error:
            raise _FailedError(str(error)) from error

    return run_command(
        command,
        interrupted="stopped; the same command goes on from here",
        errors=(_FailedError, _MisuseError),
        misuse=(_MisuseError,),
    )


class _FailedError(Exception):
    """Files can't be answered."""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answer files of rows (CSV, TSV, JSON Lines, parquet) without a server.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help='files of rows, "-" for standard input')
    add(
        "--task",
        action="append",
        required=True,
        metavar="TASK[/STRATEGY][@VERSION]",
        help="a delta that answers; repeat it for several",
    )
    add("--output", metavar="FILE", help='.csv, .jsonl or .parquet, "-" for standard output')
    add("--overwrite", action="store_true", help="replace an output, or the part of another run")
    add("--deltas", action="append", type=home_path, metavar="DIR", help="folders before the zoo")
    add("--text-columns", type=_names, metavar="A[,B]", help="columns with the texts")
    add("--keep", type=_names, metavar="A,B", help='columns for the output ("*": all; default: id)')
    add("--top-k", type=_positive, metavar="N", help="add a column with the N best scores")
    add("--format", choices=("csv", "tsv", "jsonl", "parquet"), help="format of all FILEs")
    add("--backbone", type=home_or_name, help="hub id or folder (default: the packaged one)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    precisions = ("auto", "fp32", "bf16", "int8")
    add("--precision", choices=precisions, default="auto", help="as of a server (default: auto)")
    add("--threads", type=_positive, help="threads of a forward pass (default: all cores)")
    return parser


def _predict(options: argparse.Namespace) -> int:
    from app.engine.tuning import num_cpus
    from app.pipeline.bulk.columns import ColumnChoice
    from app.pipeline.bulk.files import STANDARD, input_file
    from app.pipeline.bulk.run import (
        BulkOptions,
        FileRun,
        format_of_output,
        name_of_output,
        open_engine,
        summary,
    )
    from deltas.backbone.backbone import load_backbone
    from deltas.hardware import keep_compiled_products, keep_freed_memory

    files = [input_file(name, options.format) for name in options.files]
    if len({file.path for file in files}) < len(files):
        raise _MisuseError("a file is named twice; name it once")
    if options.output is None:
        groups = [([file], name_of_output(file)) for file in files]
    else:
        groups = [(files, options.output)]
    formats = [format_of_output(output, group[0]) for group, output in groups]
    for _, output in groups:
        _check_output(output, overwrite=options.overwrite)
    backbone = load_backbone(options.backbone)
    keep_compiled_products()
    keep_freed_memory()
    deltas = _deltas(options, backbone)
    chosen = BulkOptions(
        columns=ColumnChoice(options.text_columns or (), options.keep or ()),
        top_k=options.top_k,
        threads=options.threads or num_cpus(),
        overwrite=options.overwrite,
    )
    engine = open_engine(
        list(deltas.values()),
        backbone,
        device=options.device,
        precision=options.precision,
        threads=chosen.threads,
    )
    for (group, output), output_format in zip(groups, formats, strict=True):
        run = FileRun(engine, deltas, group, output, output_format, chosen)
        began, before = time.monotonic(), run.output.progress.num_rows
        if before:
            sys.stderr.write(f"going on behind {before:,} rows of an earlier run\n")
        progress = run.answer()
        seconds = time.monotonic() - began
        sys.stderr.write(summary(output, progress, seconds, progress.num_rows - before) + "\n")
        if output == STANDARD:
            sys.stdout.flush()
    return 0


def _check_output(output: str, *, overwrite: bool) -> None:
    """Refuse an output before the libraries and the deltas are loaded, which takes seconds."""
    if output != "-" and Path(output).exists() and not overwrite:
        raise _MisuseError(
            f"{output} exists; replace it with --overwrite, or choose another output"
        )


def _deltas(options: argparse.Namespace, backbone: Backbone) -> dict[str, Record]:
    """Return the deltas by the names that the command line gives them.

    Raises:
        DeltaError: there is no such delta.
    """
    from deltas import Store, zoo_path
    from deltas.errors import DeltaError

    folders: list[Path] = options.deltas or []
    for folder in folders:
        if not folder.exists():
            raise DeltaError(f"{folder}: no such folder")
    store = Store([*folders, zoo_path()], backbone=backbone.ref)
    found: dict[str, Record] = {}
    for name in options.task:
        named, _, version = name.partition("@")
        task, _, strategy = named.partition("/")
        record = store.resolve(task, strategy or None, version or None)
        if name in found:
            raise _MisuseError(f"--task {name} is named twice; name it once")
        found[name] = record
    return found


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
