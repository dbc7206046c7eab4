"""Defines the flags that both commands have, and runs them: their errors become messages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import deltas.errors
from deltas.errors import home_or_name
from training.data.files.delimited import DelimitedOptions
from training.errors import ConfigError, TaskError, TrainingError
from training.options import one_delimiter


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of both commands; they say how rows are read and answered."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--text-columns", help="columns with the texts (default: called like the task's fields)")
    add("--delimiter", help="separator of a delimited file, if it is not found by itself")
    add("--quoting", choices=("on", "off"), help="whether quotes enclose fields (default: found)")
    add("--backbone", type=home_or_name, help="hub id or folder (default: the packaged one)")
    devices, precisions = ("auto", "cpu", "cuda"), ("auto", "fp32", "bf16", "int8")
    add("--device", choices=devices, default="auto", help="auto, cpu or cuda (default: auto)")
    add(
        "--precision",
        choices=precisions,
        default="auto",
        help="auto, fp32, bf16 or int8; auto is that of a server (default: auto)",
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser


def delimited_options(options: argparse.Namespace) -> DelimitedOptions:
    """Return how delimited files are written, as far as the flags say so.

    Raises:
        ConfigError: no character that can separate fields.
    """
    quoting = None if options.quoting is None else options.quoting == "on"
    if options.delimiter is None:
        return DelimitedOptions(None, quoting)
    try:
        return DelimitedOptions(one_delimiter(options.delimiter), quoting)
    except ValueError as error:
        raise ConfigError(f"--delimiter: {error}") from error


def run_audit(command: Callable[[], int]) -> int:
    """Run a command; returns its exit code: 0 done, 1 unusable data, 2 misuse, 130 interrupted."""
    from app.errors import BadResultError, DeltaUnavailableError

    errors = TrainingError, BadResultError, DeltaUnavailableError
    misuse = ConfigError, TaskError
    return deltas.errors.run_command(command, errors=errors, misuse=misuse)


def print_line(text: str) -> None:
    """Write a line of the report to standard output."""
    sys.stdout.write(f"{text}\n")
