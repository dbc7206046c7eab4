"""Offers a server to programs that wait for its answers.

Long lists are split into requests, and each goes out once more if `deltabert.protocol` says so.
`deltabert.async_client` offers the same to coroutines. Tested by
tests/unit/deltabert/test_clients.py and tests/http/test_real_clients.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import httpx2

from deltabert.answers import DeltaAnswers, Health, RowAnswer, ServedDelta, ServedTask
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

ROWS_PER_REQUEST = 256


class Client:
    """A client of one server; use it as a context, or close it.

    Args:
        url: address of the server.
        key: API key, if the server needs one.
        timeout_s: longest time without any data from the server.
        rows_per_request: most rows that go out in one request; the server has a limit, too.
        transport: way to the server for tests; None is the network.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        rows_per_request: int = ROWS_PER_REQUEST,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.rows_per_request = rows_per_request
        self._http = httpx2.Client(**http_options(url, key, timeout_s), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
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
            self._answer(task, [], strategy, version, top_k)  # the server refuses it
        return joined(list(self._answers(task, listed, strategy, version, top_k)))

    def stream(
        self,
        task: str,
        rows: Iterable[Row],
        *,
        strategy: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
    ) -> Iterator[RowAnswer]:
        """Yield the answer to each row, in order; rows are read as they are needed."""
        for answer in self._answers(task, rows, strategy, version, top_k):
            yield from answer.rows

    def _answers(
        self,
        task: str,
        rows: Iterable[Row],
        strategy: str | None,
        version: str | None,
        top_k: int | None,
    ) -> Iterator[DeltaAnswers]:
        """Yield the answers to the parts of the rows; the first tells the version of all."""
        start = 0
        for part in parts(rows, self.rows_per_request):
            answer = self._answer(task, part, strategy, version, top_k, start)
            strategy, version, start = answer.strategy, answer.version, start + len(part)
            yield answer

    def _answer(
        self,
        task: str,
        rows: list[Row],
        strategy: str | None,
        version: str | None,
        top_k: int | None,
        start: int = 0,
    ) -> DeltaAnswers:
        with counted_from(start):
            values = self._send(prediction(task, rows, strategy, version, top_k))
        return answers_of(values, len(rows))

    def fan_out(
        self, rows: Row | Sequence[Row], targets: Sequence[Target], *, top_k: int | None = None
    ) -> list[DeltaAnswers]:
        """Return the answers of several deltas to the same rows, from one forward pass.

        Args:
            rows: one row, or a list of rows that fits one request.
            targets: tasks, or tuples of task and strategy, or of task, strategy and version.
            top_k: number of scores to give; None gives all.
        """
        found = self._send(fan_out(rows, targets, top_k))
        is_list = isinstance(rows, Sequence) and not isinstance(rows, str)
        return [answers_of(each, len(rows) if is_list else 1) for each in found["results"]]

    def tasks(self) -> list[ServedTask]:
        """Return all tasks that the key may use."""
        return [typed(ServedTask, each) for each in self._send(Call("GET", "tasks"))["tasks"]]

    def deltas(
        self, *, task: str | None = None, strategy: str | None = None, q: str | None = None
    ) -> Iterator[ServedDelta]:
        """Yield the served deltas, page by page.

        Args:
            task: only deltas of this task.
            strategy: only deltas of this strategy.
            q: only deltas whose name `task/strategy@version` contains this text.
        """
        filters = {"task": task, "strategy": strategy, "q": q}
        offset, is_last = 0, False
        while not is_last:
            page = self._send(page_of_deltas(offset, filters))
            yield from (typed(ServedDelta, each) for each in page["deltas"])
            offset, is_last = offset + len(page["deltas"]), page["next"] is None

    def health(self) -> Health:
        """Return whether the server can predict; it makes a real prediction, sent only once."""
        response = self._request(Call("GET", "health/ready"))
        return health_of(response.status_code, response.content)

    def _send(self, call: Call) -> Any:
        """Return the values of an answer; send the request once more if that may help."""
        try:
            response = self._once(call)
            wait_s = pause_s(response.status_code, response.headers)
        except LOST:
            wait_s = PAUSE_S
        if wait_s is not None:
            time.sleep(wait_s)
            response = self._request(call)
        return read(response.status_code, response.content)

    def _request(self, call: Call) -> httpx2.Response:
        try:
            return self._once(call)
        except LOST as error:
            raise unreachable(self._http.base_url, error) from error

    def _once(self, call: Call) -> httpx2.Response:
        try:
            return self._http.request(call.method, call.path, **call.options)
        except LOST:
            raise
        except httpx2.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
