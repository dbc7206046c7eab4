"""Answers files of rows without a server: `deltabert predict`.

    files -> rows -> windows -> engine -> rows of the output -> part file

Each step is a module of this folder: `files`, `rows`, `columns`, `local`, `output`, `part`. This
one puts them together, and `app.pipeline.__main__` reads the command line. With --ray,
`app.pipeline.bulk.cluster` stands in the place of the engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Protocol, cast

from tqdm import tqdm

from app.engine.engine import Engine
from app.pipeline.bulk.columns import ColumnChoice, ColumnReader
from app.pipeline.bulk.files import ANSWERED, STANDARD, FileError, InputFile, RowSource
from app.pipeline.bulk.local import WINDOW_ROWS, LocalAnswers, RawWindow, WrittenWindow
from app.pipeline.bulk.output import AnswerColumns, OutputFormat, RowFormat, format_of
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


class Answers(Protocol):
    """Answers windows of rows: an engine in this process, or a cluster."""

    def written(self, windows: Iterable[RawWindow]) -> Generator[WrittenWindow]:
        """Yield the outputs of windows in their order."""


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
        self.records = list(deltas.values())
        self.options = options
        self.engine = engine
        self.inputs = inputs
        self._standard: RowSource | None = None  # can't be opened twice
        self._readers: list[ColumnReader] = []
        try:
            for file in inputs:
                self._begin(file)
            self.row_format = self._make_format(list(deltas), output_format)
            self.output: Output = (
                StandardOutput()
                if output == STANDARD
                else PartFile(Path(output), self._facts(output_format), overwrite=options.overwrite)
            )
        except BaseException:
            self._close_standard()
            raise

    def answer(self, answers: Answers | None = None) -> FileProgress:
        """Answer all rows that are not answered yet; returns the final state.

        Args:
            answers: answers the windows; None takes the engine.

        Raises:
            DeltaUnavailableError: the file of a delta can't be loaded now.
            FileError: a cluster has lost a window too often.
        """
        options, output = self.options, self.output
        answers = answers or LocalAnswers(
            self.engine,
            self.records,
            self.row_format,
            top_k=options.top_k,
            threads=options.threads,
        )
        began = output.progress
        try:
            with (
                tqdm(initial=began.num_rows, unit="row", file=sys.stderr, disable=None) as bar,
                closing(self._windows(began)) as windows,
                closing(answers.written(windows)) as written,
            ):
                if began == FileProgress():
                    output.write(self.row_format.begin(), began)
                for window in written:
                    output.write(window.content, _behind(output.progress, window))
                    bar.update(window.num_rows)
            output.finish()
        finally:
            self.close()
        return output.progress

    def _windows(self, state: FileProgress) -> Generator[RawWindow]:
        """Yield the rows behind a state; a window never holds rows of two files."""
        for number in range(state.file, len(self.inputs)):
            file = self.inputs[number]
            is_begun = number == state.file
            position, done = (state.position, state.number) if is_begun else (0, 0)
            shared = {FILE: file.name} if len(self.inputs) > 1 else {}
            with closing(self._standard or file.open()) as source:
                source.columns()
                rows = source.rows(position)
                while raw := list(islice(rows, self.options.window_rows)):
                    yield RawWindow(number, raw, done, self._readers[number], shared)
                    done += len(raw)

    def close(self) -> None:
        """Close all files; what is not complete can go on."""
        self.output.close()
        self._close_standard()

    def _close_standard(self) -> None:
        if self._standard is not None:
            self._standard.close()

    def _begin(self, file: InputFile) -> None:
        """Read a file's columns, and choose from them: all files give those of the first one."""
        source = file.open()
        if file.path is None:
            self._standard = source
        tasks = [record.manifest.task for record in self.records]
        choice = self.options.columns
        if self._readers:
            choice = ColumnChoice(choice.texts, self._readers[0].kept)
        try:
            reader = ColumnReader(tasks, choice, self.options.max_chars)
            reader.begin(source.columns(), is_header=source.has_header)
        except HeaderError as error:
            raise HeaderError(f"{file.name}: {error}") from None
        finally:
            if file.path is not None:  # thousands of files are not open at a time
                source.close()
        self._readers.append(reader)

    def _make_format(self, names: Sequence[str], output_format: OutputFormat) -> RowFormat:
        kept = self._readers[0].kept
        if len(self.inputs) > 1:
            if FILE in kept:
                raise HeaderError(f"{FILE!r} can't be kept: the output has such a column itself")
            kept = (FILE, *kept)
        tasks = [record.manifest.task for record in self.records]
        with_scores = self.options.top_k is not None
        try:
            columns = AnswerColumns(names, tasks, kept, with_scores=with_scores)
        except HeaderError as error:
            raise HeaderError(f"{self.inputs[0].name}: {error}") from None
        return format_of(output_format, columns)

    def _facts(self, output_format: OutputFormat) -> dict[str, Any]:
        """Return all on which the bytes of the output depend."""
        options, engine = self.options, self.engine
        inputs = list(starmap(_file_facts, enumerate(self.inputs)))
        return {
            # As a digest: the journal is written for every window, and files may be thousands.
            "inputs": sha256(json.dumps(inputs).encode()).hexdigest(),
            "deltas": [list(record.key) for record in self.records],
            "columns": [list(options.columns.texts), list(options.columns.keep)],
            "top_k": options.top_k,
            "format": output_format,
            "precision": engine.precision,
            "device": engine.device.type,
            "threads": options.threads,
            "window": options.window_rows,
        }


def _behind(state: FileProgress, window: WrittenWindow) -> FileProgress:
    """Return the state behind a window."""
    return FileProgress(
        file=window.file,
        position=window.position,
        number=window.number,
        num_rows=state.num_rows + window.num_rows,
        num_problems=state.num_problems + window.num_problems,
    )


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
    return str(file.path.with_name(f"{file.path.stem}{ANSWERED}{suffix}"))


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
