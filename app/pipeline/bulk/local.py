"""Answers windows of rows by an engine in this process, in batches without waste.

A window's rows are sorted by length and cut into batches of about equally many tokens, so no batch
is a small rest. While the engine runs a window, a thread reads and tokenizes the next one. The same
window makes the same batches, whatever came before it: that is why a run that goes on after a stop
gives the same bytes, and why `app.pipeline.bulk.cluster` gives them on any machine alike. Read
`app.pipeline.bulk.run` next. Tested by tests/unit/app/pipeline/bulk/test_run.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from app.engine.engine import Engine, EngineRow
from app.errors import BadResultError, DeltaUnavailableError
from app.pipeline.bulk.columns import ColumnReader, RowTexts
from app.pipeline.bulk.output import AnsweredRow, RowFormat
from app.pipeline.bulk.rows import RawRow, RowProblem
from app.pipeline.pipeline import RowLogits
from app.pipeline.predictions import Prediction, to_predictions
from deltas import Record

WINDOW_ROWS = 2048
BATCH_TOKENS = 4096

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class RawWindow:
    """Rows of one file, as they were read.

    Attributes:
        file: number of the file, from 0 on.
        rows: the rows.
        number: number of the first row in its file, from 0 on.
        reader: reads their columns.
        shared: columns of the output that all these rows have, and their values.
    """

    file: int
    rows: Sequence[RawRow]
    number: int
    reader: ColumnReader
    shared: Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """Rows that are ready for the engine.

    Attributes:
        raw: the rows as they were read.
        rows: the rows, those with a problem answered already.
        ready: the position of each other row, and the row as each delta reads it.
    """

    raw: RawWindow
    rows: list[AnsweredRow]
    ready: list[tuple[int, tuple[EngineRow, ...]]]


@dataclass(frozen=True)
class WrittenWindow:
    """The output of a window.

    Attributes:
        content: its bytes.
        file: number of its file.
        position: the position behind its last row in this file.
        number: number of the row behind it.
        num_rows: its rows.
        num_problems: those of them without an answer.
    """

    content: bytes
    file: int
    position: int
    number: int
    num_rows: int
    num_problems: int


class LocalAnswers:
    """Answers windows of rows by several deltas.

    Args:
        engine: the engine that holds the deltas.
        records: the deltas.
        row_format: writes the answers.
        top_k: number of scores to give, best first.
        threads: threads of a forward pass.
    """

    def __init__(
        self,
        engine: Engine,
        records: Sequence[Record],
        row_format: RowFormat,
        *,
        top_k: int | None,
        threads: int,
    ) -> None:
        self._engine = engine
        self._records = records
        self._format = row_format
        self._top_k = top_k
        self._threads = threads

    def written(self, windows: Iterable[RawWindow]) -> Generator[WrittenWindow]:
        """Yield the outputs of windows in their order.

        Each window is read and tokenized while the one before it is answered.

        Raises:
            DeltaUnavailableError: the file of a delta can't be loaded now.
        """
        with closing(ahead(map(self._read, windows))) as coming:
            for window in coming:
                yield self._write(window, self.answer(window))

    def answer(self, window: Window) -> list[AnsweredRow]:
        """Return the answers of a window, in the order of its rows.

        Raises:
            DeltaUnavailableError: the file of a delta can't be loaded now.
        """
        answered = list(window.rows)
        for batch in batches(window.ready):
            outcomes = iter(
                self._engine.predict([row for _, rows in batch for row in rows], self._threads)
            )
            for position, rows in batch:
                row = answered[position]
                answers: list[Prediction] = []
                problem = None
                for engine_row in rows:
                    outcome = next(outcomes)
                    if isinstance(outcome, DeltaUnavailableError):
                        raise outcome
                    logits = RowLogits(outcome, engine_row.tokens.truncated)
                    try:
                        answers.append(predict_row(engine_row.record, logits, self._top_k))
                    except RowProblem as error:
                        problem = error
                given = [] if problem else answers
                answered[position] = AnsweredRow(row.number, row.kept, given, problem)
        return answered

    def _read(self, raw: RawWindow) -> Window:
        answered, texts, positions = read_rows(raw.rows, raw.reader, raw.number)
        each = [
            tokens_of(self._engine, record, [row[n] for row in texts])
            for n, record in enumerate(self._records)
        ]
        ready = list(zip(positions, zip(*each, strict=True), strict=True))
        return Window(raw, answered, ready)

    def _write(self, window: Window, answered: Sequence[AnsweredRow]) -> WrittenWindow:
        raw = window.raw
        rows = [
            AnsweredRow(row.number, {**raw.shared, **row.kept}, row.answers, row.problem)
            for row in answered
        ]
        return WrittenWindow(
            content=self._format.rows(rows),
            file=raw.file,
            position=raw.rows[-1].end,
            number=raw.number + len(rows),
            num_rows=len(rows),
            num_problems=sum(row.problem is not None for row in rows),
        )


def read_rows(
    raw: Sequence[RawRow], reader: ColumnReader, number: int
) -> tuple[list[AnsweredRow], list[RowTexts], list[int]]:
    """Read the columns of rows.

    Returns all rows, without an answer as yet; the texts of those that have no problem; and the
    positions of these.
    """
    answered: list[AnsweredRow] = []
    texts: list[RowTexts] = []
    positions: list[int] = []
    for position, row in enumerate(raw):
        problem = None
        try:
            texts.append(reader.read(row))
            positions.append(position)
        except RowProblem as error:
            problem = error
        answered.append(AnsweredRow(number + position, reader.keep(row), (), problem))
    return answered, texts, positions


def predict_row(record: Record, logits: RowLogits, top_k: int | None) -> Prediction:
    """Return the prediction of one row.

    Raises:
        RowProblem: the logits are no answer.
    """
    manifest = record.manifest
    try:
        (prediction,) = to_predictions(manifest.task, [logits], top_k, manifest.decision)
    except BadResultError as error:
        raise RowProblem("internal_error", str(error)) from None
    return prediction


def tokens_of(engine: Engine, record: Record, texts: Sequence[tuple[str, ...]]) -> list[EngineRow]:
    """Tokenize the texts of some rows for a delta; there may be none."""
    return engine.tokenize(record, texts) if texts else []


def batches(
    ready: Sequence[tuple[int, tuple[EngineRow, ...]]], most: int = BATCH_TOKENS
) -> Iterator[list[tuple[int, tuple[EngineRow, ...]]]]:
    """Yield the rows in batches of about equally many tokens, the longest rows first."""
    lengths = {position: sum(row.num_tokens for row in rows) for position, rows in ready}
    left = sum(lengths.values())
    size = left / max(-(-left // most), 1)
    batch: list[tuple[int, tuple[EngineRow, ...]]] = []
    num_tokens = 0
    for item in sorted(ready, key=lambda item: (-lengths[item[0]], item[0])):
        length = lengths[item[0]]
        if batch and num_tokens + length / 2 > size:
            yield batch
            left -= num_tokens
            size = left / -(-left // most)
            batch, num_tokens = [], 0
        batch.append(item)
        num_tokens += length
    if batch:
        yield batch


def ahead(items: Iterator[_Item]) -> Generator[_Item]:
    """Yield items, the next of which is made in a thread while the last one is used."""
    end = object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
