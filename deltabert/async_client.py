"""Offers a server to coroutines: the same methods as `deltabert.client`, and requests at a time.

Tested by tests/unit/deltabert/test_clients.py and tests/http/test_real_clients.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Any, Self

import httpx2

from deltabert.answers import DeltaAnswers, Health, RowAnswer, ServedDelta, ServedTask
from deltabert.client import ROWS_PER_REQUEST
from deltabert.protocol import (
    LOST,
    PAUSE_S,
    Call,
    Row,
    Target,
    answers_of,
    counted_from,
    fan_out,
    health_of,
    http_options,
    joined,
    page_of_deltas,
    parts,
    pause_s,
    prediction,
    read,
    typed,
    unreachable,
)


class AsyncClient:
    """A client of one server for coroutines; use it as a context, or close it.

    Args:
        url: address of the server.
        key: API key, if the server needs one.
        timeout_s: longest time without any data from the server.
        rows_per_request: most rows that go out in one request; the server has a limit, too.
        concurrency: most requests of one list or stream at a time.
        transport: way to the server for tests; None is the network.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        rows_per_request: int = ROWS_PER_REQUEST,
        concurrency: int = 4,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
        self.rows_per_request = rows_per_request
        self.concurrency = concurrency
        self._http = httpx2.AsyncClient(**http_options(url, key, timeout_s), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        task: str,
        rows: Row | Sequence[Row],
        *,
        strategy: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
    ) -> DeltaAnswers:
        """Return the answers of a task to one row or to a list of rows.

        A list that takes several requests is answered by one version, that of the first answer.

        Raises:
            RefusedError: the server refused the request.
            UnreachableError: the server could not be reached.
        """
        listed = [rows] if isinstance(rows, str) or not isinstance(rows, Sequence) else rows
        if not listed:
            await self._answer(task, [], strategy, version, top_k)  # the server refuses it
        found = self._answers(task, listed, strategy, version, top_k)
        return joined([answer async for answer in found])

    async def stream(
        self,
        task: str,
        rows: Iterable[Row] | AsyncIterable[Row],
        *,
        strategy: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
    ) -> AsyncIterator[RowAnswer]:
        """Yield the answer to each row, in order; rows are read as they are needed."""
        async for answer in self._answers(task, rows, strategy, version, top_k):
            for row in answer.rows:
                yield row

    async def _answers(
        self,
        task: str,
        rows: Iterable[Row] | AsyncIterable[Row],
        strategy: str | None,
        version: str | None,
        top_k: int | None,
    ) -> AsyncIterator[DeltaAnswers]:
        """Yield the answers to the parts of the rows; the first tells the version of all."""
        left = _parts(rows, self.rows_per_request)
        first = await anext(left, None)
        if first is None:
            return
        answer = await self._answer(task, first, strategy, version, top_k)
        yield answer
        strategy, version, start = answer.strategy, answer.version, len(first)
        running: deque[asyncio.Task[DeltaAnswers]] = deque()
        try:
            async for part in left:
                asked = self._answer(task, part, strategy, version, top_k, start)
                start += len(part)
                running.append(asyncio.create_task(asked))
                if len(running) >= self.concurrency:
                    yield await running.popleft()
            while running:
                yield await running.popleft()
        finally:
            for request in running:
                request.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _answer(
        self,
        task: str,
        rows: list[Row],
        strategy: str | None,
        version: str | None,
        top_k: int | None,
        start: int = 0,
    ) -> DeltaAnswers:
        with counted_from(start):
            values = await self._send(prediction(task, rows, strategy, version, top_k))
        return answers_of(values, len(rows))

    async def fan_out(
        self, rows: Row | Sequence[Row], targets: Sequence[Target], *, top_k: int | None = None
    ) -> list[DeltaAnswers]:
        """Return the answers of several deltas to the same rows, from one forward pass.

        Args:
            rows: one row, or a list of rows that fits one request.
            targets: tasks, or tuples of task and strategy, or of task, strategy and version.
            top_k: number of scores to give; None gives all.
        """
        found = await self._send(fan_out(rows, targets, top_k))
        is_list = isinstance(rows, Sequence) and not isinstance(rows, str)
        return [answers_of(each, len(rows) if is_list else 1) for each in found["results"]]

    async def tasks(self) -> list[ServedTask]:
        """Return all tasks that the key may use."""
        found = await self._send(Call("GET", "tasks"))
        return [typed(ServedTask, each) for each in found["tasks"]]

    async def deltas(
        self, *, task: str | None = None, strategy: str | None = None, q: str | None = None
    ) -> AsyncIterator[ServedDelta]:
        """Yield the served deltas, page by page.

        Args:
            task: only deltas of this task.
            strategy: only deltas of this strategy.
            q: only deltas whose name `task/strategy@version` contains this text.
        """
        filters = {"task": task, "strategy": strategy, "q": q}
        offset, is_last = 0, False
        while not is_last:
            page = await self._send(page_of_deltas(offset, filters))
            for each in page["deltas"]:
                yield typed(ServedDelta, each)
            offset, is_last = offset + len(page["deltas"]), page["next"] is None

    async def health(self) -> Health:
        """Return whether the server can predict; it makes a real prediction, sent only once."""
        response = await self._request(Call("GET", "health/ready"))
        return health_of(response.status_code, response.content)

    async def _send(self, call: Call) -> Any:
        """Return the values of an answer; send the request once more if that may help."""
        try:
            response = await self._once(call)
            wait_s = pause_s(response.status_code, response.headers)
        except LOST:
            wait_s = PAUSE_S
        if wait_s is not None:
            await asyncio.sleep(wait_s)
            response = await self._request(call)
        return read(response.status_code, response.content)

    async def _request(self, call: Call) -> httpx2.Response:
        try:
            return await self._once(call)
        except LOST as error:
            raise unreachable(self._http.base_url, error) from error

    async def _once(self, call: Call) -> httpx2.Response:
        try:
            return await self._http.request(call.method, call.path, **call.options)
        except LOST:
            raise
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error


async def _parts(rows: Iterable[Row] | AsyncIterable[Row], size: int) -> AsyncIterator[list[Row]]:
    """Yield the rows in lists of at most `size`, each read when it is needed."""
    if not isinstance(rows, AsyncIterable):
        for part in parts(rows, size):
            yield part
        return
    part = []
    async for row in rows:
        part.append(row)
        if len(part) >= size:
            yield part
            part = []
    if part:
        yield part
