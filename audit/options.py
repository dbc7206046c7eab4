"""Defines the flags of both commands, runs them and prints their reports; errors become messages.

Tested by tests/unit/audit/test_joint.py and tests/unit/audit/test_abstain.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import deltas.errors
from deltas.errors import home_or_name
from training.data.files.delimited import DelimitedOptions
from training.errors import ConfigError, TaskError, TrainingError
from training.options import one_delimiter


def parser_of(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of both commands; they say how rows are read and answered."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--text-columns", help="columns with the texts (default: the names of the task's fields)")
    add("--delimiter", help="separator of a delimited file (default: found)")
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


class Report(Protocol):
    """The result of a command."""

    def as_json(self) -> dict[str, object]:
        """Return the report for programs."""

    def as_text(self) -> str:
        """Return the report for people."""


def run_audit(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], Report],
) -> int:
    """Measure as the arguments say, and print the report.

    Returns the exit code: 0 done, 1 unusable data, 2 misuse, 130 interrupted.
    """
    from app.errors import BadResultError, DeltaUnavailableError

    errors = TrainingError, BadResultError, DeltaUnavailableError
    misuse = ConfigError, TaskError

    def command() -> int:
        options = parser.parse_args(arguments)
        report = measure(options)
        text = json.dumps(report.as_json()) + "\n" if options.json else report.as_text()
        sys.stdout.write(text)
        return 0

    return deltas.errors.run_command(command, errors=errors, misuse=misuse)
