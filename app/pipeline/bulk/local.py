"""Answers windows of rows by an engine in this process, in batches without waste.

A window's rows are sorted by length and cut into batches of about equally many tokens, so no batch
is a small rest. While the engine runs a window, a thread reads and tokenizes the next one. The same
window makes the same batches, whatever came before it: that is why a run that goes on after a stop
gives the same bytes. Read `app.pipeline.bulk.run` next. Tested by
tests/unit/app/pipeline/bulk/test_run.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from app.engine.engine import Engine, EngineRow
from app.errors import BadResultError, DeltaUnavailableError
from app.pipeline.bulk.columns import ColumnReader, RowTexts
from app.pipeline.bulk.output import AnsweredRow
from app.pipeline.bulk.rows import RawRow, RowProblem
from app.pipeline.pipeline import RowLogits
from app.pipeline.predictions import Prediction, to_predictions
from deltas import Record

WINDOW_ROWS = 2048
BATCH_TOKENS = 4096

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Window:
    """Rows that are ready for the engine.

    Attributes:
        rows: the rows, those with a problem answered already.
        ready: the position of each other row, and the row as each delta reads it.
        end: the position behind the last row in its file.
    """

    rows: list[AnsweredRow]
    ready: list[tuple[int, tuple[EngineRow, ...]]]
    end: int


class LocalAnswers:
    """Answers windows of rows by several deltas.

    Args:
        engine: the engine that holds the deltas.
        records: the deltas.
        top_k: number of scores to give, best first.
        threads: threads of a forward pass.
    """

    def __init__(
        self, engine: Engine, records: Sequence[Record], *, top_k: int | None, threads: int
    ) -> None:
        self._engine = engine
        self._records = records
        self._top_k = top_k
        self._threads = threads

    def windows(
        self, rows: Iterator[RawRow], reader: ColumnReader, number: int, size: int = WINDOW_ROWS
    ) -> Iterator[Window]:
        """Yield windows, each of which is read and tokenized while the one before it is used.

        Args:
            rows: rows of one file.
            reader: reads their columns.
            number: number of the first row in its file, from 0 on.
            size: rows in a window.
        """
        return ahead(self._read(rows, reader, number, size))

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

    def _read(
        self, rows: Iterator[RawRow], reader: ColumnReader, number: int, size: int
    ) -> Iterator[Window]:
        while raw := list(islice(rows, size)):
            answered, texts, positions = read_rows(raw, reader, number)
            each = [
                tokens_of(self._engine, record, [row[n] for row in texts])
                for n, record in enumerate(self._records)
            ]
            ready = list(zip(positions, zip(*each, strict=True), strict=True))
            number += len(raw)
            yield Window(answered, ready, raw[-1].end)


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


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield items, the next of which is made in a thread while the last one is used."""
    end = object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
