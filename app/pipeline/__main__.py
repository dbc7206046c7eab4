"""Answers files of rows without a server: `deltabert predict`, or `python -m app.pipeline`.

It reads the command line and opens the deltas; `app.pipeline.bulk.run` does the work. Nothing large
is imported before the arguments are known to be sound. Tested by
tests/unit/app/pipeline/test_main.py and tests/integration/app/test_predict_command.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deltas.errors import home_or_name, home_path, parse_arguments, run_command

if TYPE_CHECKING:
    from app.pipeline.bulk.cluster import RayWorkers
    from app.pipeline.bulk.files import InputFile
    from deltas import Backbone, Record

_EPILOG = """\
The output has the kept columns, the answer of each task, and `error` for rows that could not be
answered. Without --output each FILE gets FILE.predictions.SUFFIX beside it. A run that was stopped
goes on when the same command is given again. A folder stands for its files, and needs --output.
"""


class _MisuseError(Exception):
    """The arguments don't fit each other."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app.pipeline") -> int:
    """Answer files; returns the exit code: 0 done, 1 unusable files, 2 misuse, 130 interrupted."""
    options = parse_arguments(_parser(prog), arguments)

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
    add("files", nargs="+", metavar="FILE", help='files or folders, "-" for standard input')
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
    add(
        "--text-columns",
        type=_names,
        metavar="A[,B]",
        help="columns with the texts (a name with a comma in quotes)",
    )
    add("--keep", type=_names, metavar="A,B", help='columns for the output ("*": all; default: id)')
    add("--top-k", type=_positive, metavar="N", help="add a column with the N best scores")
    add("--format", choices=("csv", "tsv", "jsonl", "parquet"), help="format of all FILEs")
    add("--backbone", type=home_or_name, help="hub id or folder (default: the packaged one)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    precisions = ("auto", "fp32", "bf16", "int8")
    add("--precision", choices=precisions, default="auto", help="as for a server (default: auto)")
    add("--threads", type=_positive, help="threads of a forward pass (default: all cores)")
    add("--ray", action="store_true", help="answer on a cluster of Ray; needs the extra ray")
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="the cluster (HOST:PORT or auto); default: one that is started on this machine",
    )
    return parser


def _predict(options: argparse.Namespace) -> int:
    from app.engine.tuning import num_cpus
    from app.pipeline.bulk.columns import ColumnChoice
    from app.pipeline.bulk.files import STANDARD
    from app.pipeline.bulk.run import BulkOptions, FileRun, format_of_output, open_engine, summary
    from deltas.backbone.backbone import load_backbone
    from deltas.hardware import keep_compiled_products, keep_freed_memory

    if options.ray or options.ray_address:
        _check_ray(options)
    groups = _groups(options)
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
    with _workers(options, list(deltas.values()), engine.precision, chosen.threads) as workers:
        for (group, output), output_format in zip(groups, formats, strict=True):
            run = FileRun(engine, deltas, group, output, output_format, chosen)
            began, before = time.monotonic(), run.output.progress.num_rows
            if before:
                sys.stderr.write(f"going on behind {before:,} rows of an earlier run\n")
            progress = run.answer(workers.answers(run) if workers else None)
            seconds = time.monotonic() - began
            sys.stderr.write(summary(output, progress, seconds, progress.num_rows - before) + "\n")
            if output == STANDARD:
                sys.stdout.flush()
    return 0


def _groups(options: argparse.Namespace) -> list[tuple[list[InputFile], str]]:
    """Return the files of each output."""
    from app.pipeline.bulk.run import name_of_output

    files = [file for name in options.files for file in _files(name, options)]
    if len({file.path for file in files}) < len(files):
        raise _MisuseError("a file is named twice; name it once")
    if options.output is not None:  # it may be one of them: all are read before it is replaced
        return [(files, options.output)]
    groups = [([file], name_of_output(file)) for file in files]
    owners: dict[Path, str] = {}  # the input of each output
    for (file,), output in groups:
        if file.path is not None and (before := owners.get(file.path.resolve())):
            raise _MisuseError(
                f"{file.path} is also the output of {before}, which would replace it before it is "
                "read; name another file with --output"
            )
        if before := owners.get(Path(output).resolve()):
            raise _MisuseError(
                f"the answers of {before} and of {file.name} would go to the same file {output}; "
                "name one file for both with --output, or answer them one at a time"
            )
        owners[Path(output).resolve()] = file.name
    return groups


def _files(name: str, options: argparse.Namespace) -> list[InputFile]:
    """Return the file of a name, or the files of a folder without the output."""
    from app.pipeline.bulk.files import STANDARD, input_files

    found = input_files(name, options.format)
    if name == STANDARD or not Path(name).is_dir():
        return found
    if options.output is None:
        raise _MisuseError(f"{name} is a folder; name the file of all answers with --output")
    own = Path(options.output).resolve()
    left = [file for file in found if file.path is not None and file.path.resolve() != own]
    if not left:
        raise _MisuseError(
            f"{name} has no files of rows besides the output {options.output}; name the file "
            "itself to answer it, or choose another folder"
        )
    return left


def _check_ray(options: argparse.Namespace) -> None:
    """Refuse --ray where it can't work.

    The address may be given alone.
    """
    options.ray = True
    if find_spec("ray") is None:
        raise _MisuseError("--ray needs the library ray; pip install 'deltabert[ray]'")
    if options.device == "cuda":
        raise _MisuseError("--ray answers on CPUs; leave out --device cuda")
    options.device = "cpu"


@contextmanager
def _workers(
    options: argparse.Namespace, records: Sequence[Record], precision: str, threads: int
) -> Iterator[RayWorkers | None]:
    """Connect with Ray within the block; without --ray this process answers, which is None."""
    if not options.ray:
        yield None
        return
    from app.pipeline.bulk.cluster import RayWorkers, connected

    with connected(options.ray_address, threads):
        yield RayWorkers(records, options.backbone, precision, threads)


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
    from app.pipeline.bulk.rows import split_names

    try:
        names = split_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not names or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
