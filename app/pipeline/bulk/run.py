"""Answers files of rows without a server: `deltabert predict`.

    files -> rows -> windows -> engine -> rows of the output -> part file

Each step is a module of this folder: `files`, `rows`, `columns`, `local`, `output`, `part`. This
one puts them together, and `app.pipeline.__main__` reads the command line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from app.engine.engine import Engine
from app.pipeline.bulk.columns import ColumnChoice, ColumnReader
from app.pipeline.bulk.files import STANDARD, FileError, InputFile, RowSource
from app.pipeline.bulk.local import WINDOW_ROWS, LocalAnswers, Window
from app.pipeline.bulk.output import (
    AnswerColumns,
    AnsweredRow,
    OutputFormat,
    RowFormat,
    format_of,
)
from app.pipeline.bulk.part import FileProgress, Output, PartFile, StandardOutput
from app.pipeline.bulk.rows import HeaderError
from deltas import Backbone, Record, Store
from deltas.errors import DeltaFormatError

FILE = "file"  # the column with the name of the input, if there are several


@dataclass(frozen=True)
class BulkOptions:
    """The choices of a run.

    Attributes:
        columns: columns of the texts, and those that are kept.
        top_k: number of scores to give; None gives none of them.
        threads: threads of a forward pass.
        max_chars: most characters in one text.
        overwrite: whether an output may be replaced.
        window_rows: rows that are answered between two states of the journal.
    """

    columns: ColumnChoice = field(default_factory=ColumnChoice)
    top_k: int | None = None
    threads: int = 1
    max_chars: int = 200_000
    overwrite: bool = False
    window_rows: int = WINDOW_ROWS


def open_engine(
    records: Sequence[Record], backbone: Backbone, *, device: str, precision: str, threads: int = 0
) -> Engine:
    """Return an engine that holds some deltas.

    Raises:
        DeltaError: a delta's file is damaged, or device or precision is not there.
    """
    store = Store([record.path for record in records], backbone=backbone.ref)
    engine = Engine(backbone, store, device=device, precision=precision, threads=threads)
    for path, reason in store.rejected:
        raise DeltaFormatError(path, reason)
    return engine


class FileRun:
    """Answers some files into one output.

    Args:
        engine: the engine that holds the deltas.
        deltas: the deltas by their names in the output.
        inputs: the files.
        output: path of the output, or "-".
        output_format: the format of the output's lines.
        options: the choices.

    Raises:
        FileError: an input or the output can't be used.
        HeaderError: a file lacks a column, or a column can't be kept.
    """

    def __init__(
        self,
        engine: Engine,
        deltas: dict[str, Record],
        inputs: Sequence[InputFile],
        output: str,
        output_format: OutputFormat,
        options: BulkOptions,
    ) -> None:
        self._records = list(deltas.values())
        self._options = options
        self._engine = engine
        self._inputs = inputs
        self._sources: list[RowSource] = []
        self._readers: list[ColumnReader] = []
        try:
            for file in inputs:
                self._begin(file)
            self._format = self._make_format(list(deltas), output_format)
            self.output: Output = (
                StandardOutput()
                if output == STANDARD
                else PartFile(Path(output), self._facts(output_format), overwrite=options.overwrite)
            )
        except BaseException:
            self._close_inputs()
            raise
        self._answers = LocalAnswers(
            engine, self._records, top_k=options.top_k, threads=options.threads
        )

    def answer(self) -> FileProgress:
        """Answer all rows that are not answered yet; returns the final state.

        Raises:
            DeltaUnavailableError: the file of a delta can't be loaded now.
        """
        output = self.output
        began = output.progress
        try:
            with tqdm(initial=began.num_rows, unit="row", file=sys.stderr, disable=None) as bar:
                if began == FileProgress():
                    output.write(self._format.begin(), began)
                for number in range(began.file, len(self._inputs)):
                    self._answer_file(number, bar)
            output.finish()
        finally:
            self.close()
        return output.progress

    def _answer_file(self, file: int, bar: tqdm[Any]) -> None:
        source, reader = self._sources[file], self._readers[file]
        state = self.output.progress
        position, number = (state.position, state.number) if state.file == file else (0, 0)
        rows = source.rows(position)
        size = self._options.window_rows
        for window in self._answers.windows(rows, reader, number, size):
            answered = self._answered(window, file)
            number += len(answered)
            state = self.output.progress
            problems = sum(row.problem is not None for row in answered)
            self.output.write(
                self._format.rows(answered),
                FileProgress(
                    file=file,
                    position=window.end,
                    number=number,
                    num_rows=state.num_rows + len(answered),
                    num_problems=state.num_problems + problems,
                ),
            )
            bar.update(len(answered))

    def _answered(self, window: Window, file: int) -> list[AnsweredRow]:
        answered = self._answers.answer(window)
        if len(self._inputs) == 1:
            return answered
        name = {FILE: self._inputs[file].name}
        return [
            AnsweredRow(row.number, name | dict(row.kept), row.answers, row.problem)
            for row in answered
        ]

    def close(self) -> None:
        """Close all files; what is not complete can go on."""
        self.output.close()
        self._close_inputs()

    def _close_inputs(self) -> None:
        for source in self._sources:
            source.close()

    def _begin(self, file: InputFile) -> None:
        """Open a file, and choose its columns: all files give those of the first one."""
        source = file.open()
        self._sources.append(source)
        tasks = [record.manifest.task for record in self._records]
        choice = self._options.columns
        if self._readers:
            choice = ColumnChoice(choice.texts, self._readers[0].kept)
        try:
            reader = ColumnReader(tasks, choice, self._options.max_chars)
            reader.begin(source.columns(), is_header=source.has_header)
        except HeaderError as error:
            raise HeaderError(f"{file.name}: {error}") from None
        self._readers.append(reader)

    def _make_format(self, names: Sequence[str], output_format: OutputFormat) -> RowFormat:
        kept = self._readers[0].kept
        if len(self._inputs) > 1:
            if FILE in kept:
                raise HeaderError(f"{FILE!r} can't be kept: the output has such a column itself")
            kept = (FILE, *kept)
        tasks = [record.manifest.task for record in self._records]
        with_scores = self._options.top_k is not None
        columns = AnswerColumns(names, tasks, kept, with_scores=with_scores)
        return format_of(output_format, columns)

    def _facts(self, output_format: OutputFormat) -> dict[str, Any]:
        """Return all on which the bytes of the output depend."""
        options, engine = self._options, self._engine
        return {
            "inputs": list(starmap(_file_facts, enumerate(self._inputs))),
            "deltas": [list(record.key) for record in self._records],
            "columns": [list(options.columns.texts), list(options.columns.keep)],
            "top_k": options.top_k,
            "format": output_format,
            "precision": engine.precision,
            "device": engine.device.type,
            "threads": options.threads,
            "window": options.window_rows,
        }


def _file_facts(number: int, file: InputFile) -> list[Any]:
    if file.path is None:
        raise FileError(
            f"input {number + 1} is standard input, which can't be read again after a stop; "
            "write to standard output as well (--output -)"
        )
    state = file.path.stat()
    return [str(file.path.resolve()), file.suffixed, state.st_size, state.st_mtime_ns]


def name_of_output(file: InputFile) -> str:
    """Return the output of a file if none is named: in the same folder and format."""
    if file.path is None:
        return STANDARD
    suffix = ".csv" if file.suffixed == "tsv" else file.path.suffix
    return str(file.path.with_name(f"{file.path.stem}.predictions{suffix}"))


def format_of_output(output: str, file: InputFile) -> OutputFormat:
    """Return the format of the output's lines, by its suffix, or by the input's format.

    Raises:
        FileError: the suffix is of no known format.
    """
    suffix = Path(output).suffix.lower() if output != STANDARD else f".{file.suffixed}"
    formats = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    formats[".parquet"] = "jsonl"  # made into parquet at the end
    if suffix not in formats or (suffix == ".tsv" and output != STANDARD):
        known = ".csv, .jsonl or .parquet"
        raise FileError(f"{output}: ends in {suffix or 'nothing'}; the output can be {known}")
    return cast("OutputFormat", formats[suffix])


def summary(output: str, progress: FileProgress, seconds: float, num_new: int) -> str:
    """Return a sentence about a finished run."""
    rate = num_new / max(seconds, 1e-9)
    problems = f", {progress.num_problems:,} of them with an error" if progress.num_problems else ""
    shown = "standard output" if output == STANDARD else json.dumps(output)[1:-1]
    return f"{shown}: {progress.num_rows:,} rows{problems}; {rate:,.0f} rows/s"
