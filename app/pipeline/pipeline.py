"""Takes the rows of a request from the body to logits: checks, tokenizes, queues.

Every problem of an input is found here, before its rows share a batch with the rows of other
requests. Read `app.batching.batcher` next, which queues the tokenized rows.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from anyio import CapacityLimiter, to_thread

from app.batching.batcher import Batcher
from app.batching.queue import Answer, BatchRun
from app.engine.cache import TOO_SLOW, DeltaCache, Key, PendingLoad
from app.engine.engine import Engine, EngineRow, Outcome
from app.errors import (
    MAX_LISTED,
    DeltaUnavailableError,
    InvalidDeltaError,
    InvalidInputError,
    Problem,
    TooLargeError,
)
from app.pipeline.bulk.lane import BackgroundLane
from deltas import InvalidTextError, Record, TaskSpec, TokenizedRow, tokenize_texts
from deltas.backbone.tokenizer import has_text, row_texts
from deltas.manifest import PairEncoding

_INLINE_CHARS = 2000  # tokenized in about the time that handing them to a thread takes
_TOKENIZER_THREADS = 2
_HEAD_TOKENS = 1  # that a row counts which only adds a head to the pass of an earlier one
_CHECK_EVERY_S = 1.1  # a little longer than an I/O thread takes to count as hanging
_TRIAL_S = 30.0  # for the row that tries a new delta out

Texts = list[tuple[str, ...]]  # the texts of each row, in the order of the task's fields


STAGES = ("read", "tokenize", "load", "queue", "compute", "write")


class Stage(NamedTuple):
    """A part of the time of a prediction, on the batcher's clock.

    Attributes:
        name: one of `STAGES`.
        began_at: time of its begin.
        ended_at: time of its end.
        batch: the batch that ran, of the stage `compute`.
    """

    name: str
    began_at: float
    ended_at: float
    batch: BatchRun | None = None


@dataclass
class Trace:
    """The numbers of a request for its log line, its metrics and its spans.

    Attributes:
        num_rows: number of rows, counted once for each delta.
        tokens: tokens of the rows, for each delta.
        queue_s: seconds that the first row waited for a batch.
        compute_s: seconds of the batches.
        route: route of a request that is refused before it has one.
        key: name of the API key.
        code: code of the error that answers the request.
        cause_status: status of that error in our own form, which other protocols may change.
        stages: stages that have ended.
        answered_at: time at which the logits were there.
    """

    num_rows: int = 0
    tokens: list[int] = field(default_factory=list)
    queue_s: float = 0.0
    compute_s: float = 0.0
    route: str | None = None
    key: str | None = None
    code: str | None = None
    cause_status: int | None = None
    stages: list[Stage] = field(default_factory=list)
    answered_at: float | None = None

    def end(self, stage: str, began_at: float) -> float:
        """Record that a stage ends now; returns the time."""
        now = time.monotonic()
        self.stages.append(Stage(stage, began_at, now))
        return now

    def end_batches(self, answer: Answer[Any], submitted_at: float) -> None:
        """Record the stages of an answer that has come from the batcher."""
        self.queue_s, self.compute_s = answer.queue_s, answer.compute_s
        self.stages.append(Stage("queue", submitted_at, submitted_at + answer.queue_s))
        self.stages += [Stage("compute", run.began_at, run.ended_at, run) for run in answer.runs]
        self.answered_at = time.monotonic()


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
        for name, text in zip(task.text_fields, row_of_texts, strict=True):
            if len(text) > max_chars:
                what = f"characters in row {position}, field {name!r}"
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

    Attributes:
        background: runs the rows of streams.
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
        self.background = BackgroundLane(batcher)
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
            trace: receives the numbers and the stages.
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
            began_at = time.monotonic()
            engine_rows = await self._tokenize(records, texts)
            ready_at = time.monotonic()
            trace.stages.append(Stage("tokenize", began_at, ready_at))
            if loads:
                await _wait_for(loads, self._cache)
                ready_at = trace.end("load", ready_at)
            trace.num_rows = num_rows
            trace.tokens = [
                sum(row.num_tokens for row in engine_rows[start : start + len(rows)])
                for start in range(0, num_rows, len(rows))
            ]
            answer = await submit(engine_rows)
        trace.end_batches(answer, ready_at)
        logits: list[RowLogits] = []
        for row, outcome in zip(engine_rows, answer.results, strict=True):
            if isinstance(outcome, DeltaUnavailableError):
                raise outcome
            logits.append(RowLogits(outcome, row.tokens.truncated))
        return [logits[start : start + len(rows)] for start in range(0, num_rows, len(rows))]

    async def prepare(self, record: Record, texts: Texts) -> list[EngineRow]:
        """Tokenize checked rows of a stream, while their delta is loaded.

        Raises:
            DeltaUnavailableError: the load takes too long.
        """
        loads = self._cache.prefetch([record])
        rows = await self._tokenize([record], [texts]) if texts else []
        if loads:
            await _wait_for(loads, self._cache)
        return rows

    async def try_out(self, record: Record) -> None:
        """Load a delta that may not be served yet, and answer a made-up row by it.

        Raises:
            InvalidDeltaError: the answer is NaN or infinite.
            DeltaUnavailableError: its file can't be loaded.
        """
        deadline = time.monotonic() + _TRIAL_S
        loads = self._cache.prefetch([record])
        if loads:
            await _wait_for(loads, self._cache)
        rows = await self._tokenize([record], [[Engine.trial(record)]])
        answer = await self._batcher.submit(rows, deadline=deadline, urgent=True)
        (outcome,) = answer.results
        if isinstance(outcome, DeltaUnavailableError):
            raise outcome
        if not all(map(math.isfinite, outcome)):
            raise InvalidDeltaError("answers NaN or infinite numbers; train it again")

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
        passes: set[tuple[Hashable, bool]] = set()
        for record, of_record in zip(records, texts, strict=True):
            task = record.manifest.task
            key = task.max_length, task.pairs, tuple(of_record)
            if key not in done:
                done[key] = await self._tokenize_texts(*key)
            # Heads that read means of one layer or of all take the same pass, as in the encoder.
            sees = key, task.pooling == "cls"
            is_shared = sees in passes and not record.manifest.entries
            rows += [
                EngineRow(row, record, _HEAD_TOKENS if is_shared else row.num_tokens)
                for row in done[key]
            ]
            if self._shares_passes and not record.manifest.entries:
                passes.add(sees)
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
