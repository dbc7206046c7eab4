"""Takes the rows of a request from the body to logits: checks, tokenizes, queues.

Every problem of an input is found here, before its rows share a batch with the rows of other
requests. Read `app.batching.batcher` next, which queues the tokenized rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread

from app.batching.batcher import Batcher
from app.engine.cache import TOO_SLOW, DeltaCache, Key, PendingLoad
from app.engine.engine import EngineRow, Outcome
from app.errors import (
    MAX_LISTED,
    DeltaUnavailableError,
    InvalidInputError,
    Problem,
    TooLargeError,
)
from deltas import InvalidTextError, Record, TaskSpec, TokenizedRow, tokenize_texts
from deltas.backbone.tokenizer import has_text, row_texts
from deltas.manifest import PairEncoding

_INLINE_CHARS = 2000  # tokenized in about the time that handing them to a thread takes
_TOKENIZER_THREADS = 2
_HEAD_TOKENS = 1  # that a row counts which only adds a head to the pass of an earlier one
_CHECK_EVERY_S = 1.1  # a little longer than an I/O thread takes to count as hanging

Texts = list[tuple[str, ...]]  # the texts of each row, in the order of the task's fields


@dataclass
class Trace:
    """The facts of a request for its log line.

    `route` is set if the request is refused unrouted, `key` is the name of its API key.
    """

    num_rows: int = 0
    num_tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    route: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class RowLogits:
    """The logits of a row, and whether its text was cut to the task's maximum length."""

    logits: list[float]
    truncated: bool


def list_rows(inputs: Any, max_rows: int, num_targets: int = 1) -> list[Any]:
    """Return the rows of a request; an input that is not a list is one row.

    Raises:
        InvalidInputError: the list is empty.
        TooLargeError: the request has too many rows, counted once per target.
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


def read_texts(task: TaskSpec, rows: list[Any], max_chars: int) -> Texts:
    """Return the texts of each row, in the order of the task's fields.

    Raises:
        InvalidInputError: rows do not fit the task; the error lists all of them.
        TooLargeError: a text is too long.
    """
    texts: Texts = []
    problems: list[Problem] = []
    for position, row in enumerate(rows):
        try:
            texts.append(row_texts(task, row, position))
        except InvalidTextError as error:
            problems.append(Problem(row=error.row, field=error.field, problem=error.problem))
        else:
            named = row.items() if isinstance(row, Mapping) else [(None, row)]
            problems += [
                Problem(row=position, field=name, problem="has no text; leave the row out")
                for name, text in named
                if not has_text(text)
            ]
        if len(problems) >= MAX_LISTED:
            break
    if problems:
        raise InvalidInputError(problems)
    for position, row_of_texts in enumerate(texts):
        for field, text in zip(task.text_fields, row_of_texts, strict=True):
            if len(text) > max_chars:
                what = f"characters in row {position}, field {field!r}"
                raise TooLargeError(what, len(text), max_chars, "DELTABERT_MAX_TEXT_CHARS")
    return texts


class Pipeline:
    """Computes the logits of a request's rows for one delta or for several.

    Args:
        tokenizer: tokenizer of the backbone.
        cache: resident deltas; told which deltas the rows will need.
        batcher: runs the rows.
        shares_passes: whether the engine runs a text once for all deltas that train heads alone.
        max_rows: most rows in one request, counted once per delta.
        max_text_chars: most characters in one text.
    """

    def __init__(
        self,
        tokenizer: Any,
        cache: DeltaCache,
        batcher: Batcher[EngineRow, Outcome],
        *,
        shares_passes: bool,
        max_rows: int,
        max_text_chars: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._cache = cache
        self._batcher = batcher
        self._shares_passes = shares_passes
        self._max_rows = max_rows
        self._max_text_chars = max_text_chars
        self._tokenizer_threads = CapacityLimiter(_TOKENIZER_THREADS)

    async def predict(
        self,
        inputs: Any,
        records: Sequence[Record],
        *,
        key: Hashable,
        deadline: float,
        trace: Trace,
        limit: Callable[[int], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> list[list[RowLogits]]:
        """Return the logits of each row, for each delta.

        Args:
            inputs: one row, or a list of rows.
            records: deltas that answer the rows, at least one.
            key: lane of the queue that the rows wait in.
            deadline: time at which the answer must be there, on the batcher's clock.
            trace: receives the numbers for the log line.
            limit: makes a context from the number of rows, in which they are tokenized and run. It
                may refuse them.

        Raises:
            InvalidInputError: rows do not fit a task.
            TooLargeError: too many rows, or too long a text.
            DeltaUnavailableError: the file of a delta cannot be loaded now.
            Exception: any exception of `limit`, `Batcher.reserve` and `Batcher.submit`.
        """
        rows = list_rows(inputs, self._max_rows, len(records))
        texts = self._read(records, rows)
        num_rows = len(rows) * len(records)
        reserved = self._batcher.reserve(num_rows, key=key, deadline=deadline)
        async with reserved as submit, limit(num_rows):
            loads = self._cache.prefetch(records)
            engine_rows = await self._tokenize(records, texts)
            if loads:
                await _wait_for(loads, self._cache)
            trace.num_rows = num_rows
            trace.num_tokens = sum(row.num_tokens for row in engine_rows)
            answer = await submit(engine_rows)
        trace.queue_s, trace.compute_s = answer.queue_s, answer.compute_s
        logits: list[RowLogits] = []
        for row, outcome in zip(engine_rows, answer.results, strict=True):
            if isinstance(outcome, DeltaUnavailableError):
                raise outcome
            logits.append(RowLogits(outcome, row.tokens.truncated))
        return [logits[start : start + len(rows)] for start in range(0, num_rows, len(rows))]

    def _read(self, records: Sequence[Record], rows: list[Any]) -> list[Texts]:
        """Read the texts for each delta, once for deltas of the same task.

        Checking long texts again for each of many targets would block the event loop.
        """
        tasks = [record.manifest.task for record in records]
        distinct = {(task.name, task.text_fields): task for task in tasks}
        texts = {
            key: read_texts(task, rows, self._max_text_chars) for key, task in distinct.items()
        }
        return [texts[task.name, task.text_fields] for task in tasks]

    async def _tokenize(self, records: Sequence[Record], texts: list[Texts]) -> list[EngineRow]:
        """Tokenize for each delta, once for deltas that read the same texts in the same way."""
        done: dict[tuple[int, PairEncoding, tuple[tuple[str, ...], ...]], list[TokenizedRow]] = {}
        rows: list[EngineRow] = []
        passes: set[tuple[Hashable, str]] = set()
        for record, of_record in zip(records, texts, strict=True):
            task = record.manifest.task
            key = task.max_length, task.pairs, tuple(of_record)
            if key not in done:
                done[key] = await self._tokenize_texts(*key)
            is_shared = (key, task.pooling) in passes and not record.manifest.entries
            rows += [
                EngineRow(row, record, _HEAD_TOKENS if is_shared else row.num_tokens)
                for row in done[key]
            ]
            if self._shares_passes and not record.manifest.entries:
                passes.add((key, task.pooling))
        return rows

    async def _tokenize_texts(
        self, max_length: int, pairs: PairEncoding, texts: Sequence[tuple[str, ...]]
    ) -> list[TokenizedRow]:
        tokenize = partial(tokenize_texts, self._tokenizer, max_length, texts, pairs=pairs)
        if sum(len(text) for row in texts for text in row) <= _INLINE_CHARS:
            return tokenize()
        return await to_thread.run_sync(
            tokenize,
            limiter=self._tokenizer_threads,
            abandon_on_cancel=True,  # the deadline ends the request, not the thread
        )


async def _wait_for(loads: Mapping[Key, PendingLoad], cache: DeltaCache) -> None:
    """Wait until deltas are loaded, here and not in a batch, where other rows would wait too.

    Raises:
        DeltaUnavailableError: a load takes too long. The batch reports all other errors.
    """
    for key, load in loads.items():
        loading: asyncio.Future[Any] | None = None
        while not load.staged.done():
            left_s = load.deadline - time.monotonic()
            if left_s <= 0:
                raise DeltaUnavailableError(*key, TOO_SLOW)
            if loading is None:
                loading = asyncio.wrap_future(load.staged)
                loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen
            await asyncio.wait([loading], timeout=min(left_s, _CHECK_EVERY_S))
            cache.replace_hanging()
