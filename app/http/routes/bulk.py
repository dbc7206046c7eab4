"""Answers streams of rows: `POST /predict/{task}` with a body of NDJSON or CSV.

Rows are read, answered and written window by window, so a stream of any size takes the same memory.
One window is read ahead. A client that does not read its answer, a key whose rate is used up and
the requests of others all hold the stream up, and a stream that is held up reads no more of its
body. An error before the first row is answered like that of any request. A later one that ends the
stream becomes the last line of the answer, and the connection is cut, so that no client takes half
an answer for a whole one. Tested by tests/http/test_streams.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.errors import (
    STOPPING,
    BatchFailedError,
    ClientGoneError,
    DeadlineExceededError,
    DeltaUnavailableError,
    InvalidInputError,
    NotReadyError,
    Problem,
    RateLimitedError,
    UnsupportedBodyError,
    describe_error,
)
from app.http.context import Serving
from app.http.json_route import STREAM_TYPES, TIMEOUT_HEADER, media_type_of
from app.http.schemas import StreamQuery
from app.keys.keyring import Caller, Keyring
from app.pipeline.bulk.columns import ColumnChoice, ColumnReader
from app.pipeline.bulk.local import predict_row, read_rows
from app.pipeline.bulk.output import AnswerColumns, AnsweredRow, OutputFormat, format_of
from app.pipeline.bulk.rows import CsvRows, HeaderError, JsonLines, RawRow, RowProblem, split_names
from app.pipeline.pipeline import RowLogits
from deltas import Record

logger = logging.getLogger(__name__)

WINDOW_ROWS = 64  # read ahead of the engine, and answered at once
MAX_KEPT = 1024  # columns that each row of an answer repeats, however short its own row is
DELTA_HEADER = "X-Delta"  # names the delta that answers, which a line of the answer does not
_Targets = Sequence[tuple[str, str | None, str | None]]


async def answer_stream(
    request: Request,
    serving: Serving,
    caller: Caller | None,
    find: Callable[[_Targets], list[Record]],
) -> Response:
    """Read the begin of a stream, and return the response that reads the rest.

    Raises:
        DeadlineExceededError: the stream's time is over before its header has come.
        InvalidInputError: the query, or the header of the rows, does not fit.
        DeltaNotFoundError: there is no such delta.
        RateLimitedError: the key has used up its requests.
    """
    task = request.path_params.get("task")
    if task is None:
        raise UnsupportedBodyError(
            "POST /predict takes JSON alone; send a stream of rows to POST /predict/{task}"
        )
    if TIMEOUT_HEADER in request.headers:
        raise _wrong(TIMEOUT_HEADER, "does not apply to a stream of rows; leave it out")
    query = _read_query(request)
    given, taken = _types(request)
    if caller is not None:
        caller.check_task(task)
        async with caller.usage.admit(0):  # the request; its rows are counted as they come
            pass
    (record,) = find([(task, query.strategy, query.version)])
    choice = ColumnChoice(_names(query, "text_columns"), _names(query, "keep"))
    max_chars: int = request.app.state.settings.max_text_chars
    try:
        reader = ColumnReader([record.manifest.task], choice, max_chars, max_kept=MAX_KEPT)
        parts = _PartReader(request.receive, CsvRows() if given == "csv" else JsonLines())
        async with _in_time(request):
            reader.begin(await parts.columns(), is_header=given == "csv")
        columns = AnswerColumns(
            [task],
            [record.manifest.task],
            reader.kept,
            with_scores=query.top_k is not None,
        )
    except HeaderError as error:
        raise _wrong(None, str(error)) from None
    return _RowStream(
        _Asked(request, serving, caller, record, query.top_k), parts, reader, taken, columns
    )


@asynccontextmanager
async def _in_time(request: Request) -> AsyncIterator[None]:
    """End a block when the time of a stream is over, which runs from the request's arrival.

    Raises:
        DeadlineExceededError: the time is over.
    """
    limit_s: float = request.app.state.settings.stream_timeout_s
    left_s = request.state.arrived_at + limit_s - time.monotonic()
    limit = asyncio.timeout(left_s if limit_s else None)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceededError(limit_s) from None


def _wrong(field: str | None, problem: str) -> InvalidInputError:
    return InvalidInputError([Problem(row=None, field=field, problem=problem)])


def _read_query(request: Request) -> StreamQuery:
    items = request.query_params.multi_items()
    named = [name for name, _ in items]
    for name in named:
        if named.count(name) > 1:
            raise _wrong(name, "is in the query more than once; give it once")
    try:
        return StreamQuery.model_validate(dict(items))
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError(
            [{**item, "loc": ("query", *item["loc"])} for item in found]
        ) from None


def _types(request: Request) -> tuple[OutputFormat, OutputFormat]:
    """Return the format of the body and that of the answer, which `Accept` may choose."""
    given = STREAM_TYPES[media_type_of(request.headers)]
    for accepted in request.headers.get("accept", "").split(","):
        if accepted.partition(";")[0].strip().lower() in STREAM_TYPES:
            return given, STREAM_TYPES[accepted.partition(";")[0].strip().lower()]
    return given, given


def _names(query: StreamQuery, field: str) -> tuple[str, ...]:
    """Return the columns that a field of the query names.

    Raises:
        InvalidInputError: a quote around a name is not closed.
    """
    try:
        return tuple(filter(None, split_names(getattr(query, field))))
    except ValueError as error:
        raise _wrong(field, str(error)) from None


@dataclass(frozen=True)
class _Asked:
    """The request, and the delta that answers it."""

    request: Request
    serving: Serving
    caller: Caller | None
    record: Record
    top_k: int | None


class _PartReader:
    """Reads rows from the parts of a body, and never more than a part ahead."""

    def __init__(self, receive: Receive, parser: CsvRows | JsonLines) -> None:
        self._receive = receive
        self._parser = parser
        self._rows: deque[RawRow] = deque()
        self.has_ended = False

    async def columns(self) -> tuple[str, ...]:
        """Return the names of the header, or of the first row.

        Raises:
            HeaderError: there is no header, or it can't be read.
        """
        while not (self._parser.header or self._rows or self.has_ended):
            await self._read_part()
        if self._parser.header:
            return self._parser.header
        first = self._rows[0].value if self._rows else None
        return tuple(first) if isinstance(first, dict) else ()

    async def next_rows(self, most: int) -> list[RawRow]:
        """Return the rows that have arrived, at most `most`; none at the end of the body."""
        while not (self._rows or self.has_ended):
            await self._read_part()
        return [self._rows.popleft() for _ in range(min(most, len(self._rows)))]

    async def wait_for_leaving(self) -> None:
        """Wait until the client closes the connection; call it after the end of the body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _read_part(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client closed the connection")
        part = message.get("body", b"")
        # A part may hold thousands of rows, which would stop the event loop.
        self._rows += await asyncio.to_thread(self._parser.feed, part)
        if not message.get("more_body", False):
            self.has_ended = True
            self._rows += await asyncio.to_thread(self._parser.finish)


class _RowStream(Response):
    """Answers the rows of a body while they arrive."""

    def __init__(
        self,
        asked: _Asked,
        parts: _PartReader,
        reader: ColumnReader,
        taken: OutputFormat,
        columns: AnswerColumns,
    ) -> None:
        task, strategy, version = asked.record.key
        media_type = next(name for name, known in STREAM_TYPES.items() if known == taken)
        name = f"{task}/{strategy}@{version}".encode(errors="replace").decode("latin-1")
        super().__init__(media_type=media_type, headers={DELTA_HEADER: name})
        del self.headers["content-length"]
        self._asked = asked
        self._parts = parts
        self._reader = reader
        self._format = format_of(taken, columns)
        self._number = 0
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers; an error that ends the stream is the last of them."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )

        async def write(content: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        try:
            async with _in_time(self._asked.request):
                await write(self._format.begin())
                await self._answer_all(write)
        except ClientGoneError:
            logger.info("the client of a stream has gone after %d rows", self._number)
            return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the client gets it
            if isinstance(error, asyncio.CancelledError):  # only the end of the server cancels it
                error = NotReadyError(STOPPING)
            await write(self._format.failure(self._problem_of(error, ends_stream=True)))
            return  # without the end of the answer: the connection is cut
        await write(b"", more=False)

    async def _answer_all(self, write: Callable[[bytes], Any]) -> None:
        leaving: asyncio.Task[None] | None = None
        coming = asyncio.create_task(self._next_rows())
        try:
            while rows := await coming:
                coming = asyncio.create_task(self._next_rows())
                if self._parts.has_ended and leaving is None:
                    leaving = asyncio.create_task(self._parts.wait_for_leaving())
                if leaving is not None and leaving.done():
                    raise ClientGoneError("the client closed the connection")
                await write(self._format.rows(await self._answer(rows)))
        finally:
            tasks = [task for task in (coming, leaving) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next_rows(self) -> list[RawRow]:
        caller = self._asked.caller
        most = WINDOW_ROWS if caller is None else min(WINDOW_ROWS, caller.usage.max_rows)
        return await self._parts.next_rows(int(most))

    async def _answer(self, raw: Sequence[RawRow]) -> list[AnsweredRow]:
        """Answer a window of rows."""
        record, pipeline = self._asked.record, self._asked.serving.pipeline
        answered, texts, positions = read_rows(raw, self._reader, self._number)
        self._number += len(raw)
        async with self._admitted(len(positions)):
            rows = await pipeline.prepare(record, [of_task for (of_task,) in texts])
            outcomes = await pipeline.background.logits(rows)
        for position, row, outcome in zip(positions, rows, outcomes, strict=True):
            number, kept = answered[position].number, answered[position].kept
            try:
                if isinstance(outcome, DeltaUnavailableError | BatchFailedError):
                    raise self._problem_of(outcome)
                logits = RowLogits(outcome, row.tokens.truncated)
                answer = predict_row(record, logits, self._asked.top_k)
            except RowProblem as problem:
                answered[position] = AnsweredRow(number, kept, (), problem)
            else:
                answered[position] = AnsweredRow(number, kept, (answer,))
        self._count(len(rows), sum(row.num_tokens for row in rows))
        return answered

    @asynccontextmanager
    async def _admitted(self, num_rows: int) -> AsyncIterator[None]:
        """Count rows for the key; wait while its rate, or its share of the queue, is used up."""
        async with AsyncExitStack() as stack:
            while (caller := self._caller()) is not None:
                try:
                    admission = caller.usage.admit(num_rows, num_requests=0)
                    await stack.enter_async_context(admission)
                    break
                except RateLimitedError as error:
                    await asyncio.sleep(error.wait_s)
            yield

    def _caller(self) -> Caller | None:
        """Return the key with its present rights, which may change while a stream runs.

        Raises:
            UnauthorizedError: the key was removed, or has expired.
            ForbiddenError: the key may no longer predict with this task.
        """
        if self._asked.caller is None:
            return None
        keyring: Keyring = self._asked.request.app.state.keyring
        caller = keyring.renewed(self._asked.caller)
        caller.check_scope("predict")
        caller.check_task(self._asked.record.key[0])
        return caller

    def _count(self, num_rows: int, num_tokens: int) -> None:
        metrics, trace = self._asked.serving.metrics, self._asked.request.state.trace
        task, strategy, _ = self._asked.record.key
        metrics.on_rows(task, strategy, num_rows, num_tokens)
        if self._asked.caller is not None:
            metrics.on_key_rows(self._asked.caller.key.name, num_rows)
        trace.num_rows += num_rows
        trace.tokens = [sum(trace.tokens) + num_tokens]

    def _problem_of(self, error: Exception, *, ends_stream: bool = False) -> RowProblem:
        """Return an error as the client gets it, and log it."""
        state = self._asked.request.state
        status, body, _ = describe_error(error, state.request_id)
        problem = RowProblem(body["error"]["code"], body["error"]["message"])
        state.trace.code = problem.code
        # A delta that can't be loaded fails every row, and the answer names each of them.
        if ends_stream or problem.code not in self._logged:
            self._logged.add(problem.code)
            logger.log(
                logging.ERROR if status == 500 else logging.WARNING,
                "a stream has failed: %s" if ends_stream else "rows of a stream fail: %s",
                error,
                exc_info=error if status == 500 else None,
            )
        return problem
