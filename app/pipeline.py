"""The way of a request's rows: check, tokenize, batch. In: rows as sent. Out: logits.

Everything that can be wrong with an input is found here, before its rows meet those of others.

Checks the rows of a request against a task, before anything of it meets other requests.

Which fields a row has is decided by `deltas.backbone.tokenizer.row_texts`, the same function for all users of
deltas; here its findings are collected over all rows, and the server's own limits are added.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anyio import CapacityLimiter, to_thread

from app.batching.batcher import Batcher
from app.engine.cache import TOO_SLOW, DeltaCache, Key, PendingLoad
from app.engine.engine import Engine, EngineRow, Outcome
from app.errors import (
    MAX_LISTED,
    DeltaUnavailableError,
    InvalidInputError,
    Problem,
    TooLargeError,
)
from deltas import InvalidTextError, Record, TaskSpec
from deltas.backbone.tokenizer import row_texts


@dataclass
class Trace:
    """What the log line says about a prediction; the pipeline fills it in.

    Attributes:
        route: template of the path, where a request is answered before it is routed.
    """

    num_rows: int = 0
    num_tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    route: str | None = None


def list_rows(inputs: Any, max_rows: int, num_targets: int = 1) -> list[Any]:
    """The rows of a request; one that is not a list is a batch of one.

    Raises:
        InvalidInputError: there is none.
        TooLargeError: more rows, counted once per target, than one request may have.
    """
    rows = inputs if isinstance(inputs, list) else [inputs]
    if not rows:
        raise InvalidInputError([Problem(row=None, field="inputs", problem="is an empty list")])
    if len(rows) * num_targets > max_rows:
        what = "rows in one request" if num_targets == 1 else "rows x targets in one request"
        raise TooLargeError(
            what, len(rows) * num_targets, max_rows, "DELTABERT_MAX_ROWS_PER_REQUEST"
        )
    return rows


def read_texts(task: TaskSpec, rows: list[Any], max_chars: int) -> list[tuple[str, ...]]:
    """The texts of each row, in the order of the task's fields.

    Raises:
        InvalidInputError: with all wrong rows, not only the first.
        TooLargeError: a text is too long.
    """
    texts: list[tuple[str, ...]] = []
    problems: list[Problem] = []
    for position, row in enumerate(rows):
        try:
            texts.append(row_texts(task, row, position))
        except InvalidTextError as error:
            problems.append(Problem(row=error.row, field=error.field, problem=error.problem))
            if len(problems) == MAX_LISTED:
                break
    if problems:
        raise InvalidInputError(problems)
    for position, row_of_texts in enumerate(texts):
        for field, text in zip(task.text_fields, row_of_texts, strict=True):
            if len(text) > max_chars:
                what = f"characters in row {position}, field {field!r}"
                raise TooLargeError(what, len(text), max_chars, "DELTABERT_MAX_TEXT_CHARS")
    return texts


_INLINE_CHARS = 2000  # tokenized in about the time that handing them to a thread takes
_TOKENIZER_THREADS = 2
_LOOK_S = 1.1  # a little longer than a thread takes to count as hanging

Logits = list[float]


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    max_rows: int
    max_text_chars: int


@dataclass(frozen=True)
class RowLogits:
    """The engine's answer to one row."""

    logits: Logits
    truncated: bool


class Pipeline:
    """From rows to logits, for one delta or for several."""

    def __init__(
        self, engine: Engine, batcher: Batcher[EngineRow, Outcome], limits: RequestLimits
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._limits = limits
        self._tokenizer_threads = CapacityLimiter(_TOKENIZER_THREADS)

    async def run(
        self,
        inputs: Any,
        records: Sequence[Record],
        *,
        key: Hashable = None,
        deadline: float,
        trace: Trace,
    ) -> list[list[RowLogits]]:
        """Run the same rows through one or more deltas.

        Args:
            inputs: a row or a list of rows, as in the request.
            records: the deltas.
            key: whose share of the engine they use, for the batcher.
            deadline: on the batcher's clock.
            trace: filled in for the log.

        Returns:
            One list a delta, in the order of the deltas; in it one item a row, in their order.

        Raises:
            InvalidInputError, TooLargeError: the rows don't fit a delta's task, or are too many.
            DeltaUnavailableError: a delta's file could not be loaded.
            Exception: whatever the batcher raises.
        """
        rows = list_rows(inputs, self._limits.max_rows, len(records))
        texts = self._read(records, rows)
        num_rows = len(rows) * len(records)
        async with self._batcher.reserve(num_rows, key=key, deadline=deadline) as submit:
            coming = self._engine.cache.prefetch(records)
            engine_rows = await self._tokenize(records, texts)
            await _wait_for(coming, self._engine.cache)
            trace.num_rows = len(engine_rows)
            trace.num_tokens = sum(row.num_tokens for row in engine_rows)
            answer = await submit(engine_rows)
        trace.queue_s, trace.compute_s = answer.queue_s, answer.compute_s
        flat: list[RowLogits] = []
        for row, outcome in zip(engine_rows, answer.results, strict=True):
            if isinstance(outcome, DeltaUnavailableError):
                raise outcome
            flat.append(RowLogits(outcome, row.tokens.truncated))
        return [flat[start : start + len(rows)] for start in range(0, len(flat), len(rows))]

    def _read(self, records: Sequence[Record], rows: list[Any]) -> list[list[tuple[str, ...]]]:
        """The texts for each delta; those of one task read them alike, so once is enough."""
        by_task: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]] = {}
        for task in (record.manifest.task for record in records):
            if (task.name, task.text_fields) not in by_task:
                read = read_texts(task, rows, self._limits.max_text_chars)
                by_task[task.name, task.text_fields] = read
        tasks = (record.manifest.task for record in records)
        return [by_task[task.name, task.text_fields] for task in tasks]

    async def _tokenize(
        self, records: Sequence[Record], texts: list[list[tuple[str, ...]]]
    ) -> list[EngineRow]:
        """Tokenize for each delta; deltas that read the same text to the same length share it."""
        done: list[tuple[int, list[tuple[str, ...]], list[EngineRow]]] = []
        rows: list[EngineRow] = []
        for record, own_texts in zip(records, texts, strict=True):
            length = record.manifest.task.max_length
            shared = next((r for n, t, r in done if n == length and t == own_texts), None)
            if shared is None:
                shared = await self._tokenize_one(record, own_texts)
                done.append((length, own_texts, shared))
            rows += [replace(row, record=record) for row in shared]
        return rows

    async def _tokenize_one(self, record: Record, texts: list[tuple[str, ...]]) -> list[EngineRow]:
        if sum(len(text) for row in texts for text in row) <= _INLINE_CHARS:
            return self._engine.tokenize(record, texts)
        return await to_thread.run_sync(
            self._engine.tokenize,
            record,
            texts,
            limiter=self._tokenizer_threads,
            abandon_on_cancel=True,  # the deadline ends the request, not the thread
        )


async def _wait_for(coming: Mapping[Key, PendingLoad], slots: DeltaCache) -> None:
    """Wait for deltas that are being loaded, here, where nobody else's rows wait for them.

    Raises:
        DeltaUnavailableError: one takes too long. Others' errors are left for the batch to find.
    """
    for key, item in coming.items():
        if item.staged.done():
            continue
        if time.monotonic() > item.deadline:  # it hangs: no more callbacks on it
            raise DeltaUnavailableError(*key, TOO_SLOW)
        loading = asyncio.wrap_future(item.staged)
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen
        while not item.staged.done():
            left_s = item.deadline - time.monotonic()
            if left_s <= 0:
                raise DeltaUnavailableError(*key, TOO_SLOW)
            await asyncio.wait([loading], timeout=min(left_s, _LOOK_S))
            slots.replace_hanging()
