"""Says what both clients send, how they read answers, and which requests they send once more.

A request is sent once more if its connection was lost, if a proxy or a server that restarts
answered (502, 503), or if the server is busy (429) and says when to come back. All requests of the
clients only read or predict, so sending one twice changes nothing. This module does no input and
output. Read `deltabert.client` next. Tested by tests/unit/deltabert/test_clients.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx2

from deltabert.answers import DeltaAnswers, Health, ServedDelta, ServedTask

Row: TypeAlias = str | Mapping[str, str]
Target: TypeAlias = str | tuple[str, str] | tuple[str, str, str]  # task, strategy, version

LOST = (
    httpx2.ConnectError,
    httpx2.ReadError,
    httpx2.WriteError,
    httpx2.RemoteProtocolError,
)
PAUSE_S = 0.2  # before a request is sent once more, unless the server names a time
_LONGEST_PAUSE_S = 30.0
_BAD_GATEWAY, _BUSY, _UNAVAILABLE = 502, 429, 503
_MOST_LISTED = 1000  # deltas in one answer
_OF_ROWS = {"invalid_input", "too_large"}  # codes of refusals that count rows

M = TypeVar("M", DeltaAnswers, ServedTask, ServedDelta)


class ClientError(Exception):
    """A request that got no answer, or was refused."""


class UnreachableError(ClientError):
    """The server could not be reached, or its connection was lost twice."""


class RefusedError(ClientError):
    """The server refused or failed a request.

    Attributes:
        status: status of the answer.
        code: stable name of the error, as docs/guide/serving.md lists them.
        details: facts about the error, such as all problems of the rows.
        request_id: id under which the server's log has the request.
        first_row: number of the request's first row in the list or stream; the message and the
            details count rows from there.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(error.get("code", "unknown"))
        self.details = error.get("details")
        self.request_id = error.get("request_id")
        self.first_row = 0
        super().__init__(f"{error.get('message', 'no message')} ({status} {self.code})")


@dataclass(frozen=True)
class Call:
    """A request as both clients send it.

    Attributes:
        method: GET or POST.
        path: path below the server's address, quoted.
        body: values of the JSON body; None sends none.
        query: parameters of the query.
    """

    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options of httpx: body and query."""
        query = dict(self.query) or None
        if self.body is None:
            return {"params": query}
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        try:
            content = text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: the server's refusal names its row
            content = json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json"}
        return {"params": query, "content": content, "headers": headers}


def http_options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the options of httpx that both clients take.

    The messages never quote the key: they end in logs.

    Raises:
        ValueError: the address is not one of HTTP, or the key can't be sent in a header.
    """
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(
            "the key is empty, or has characters that no key has, such as the end of a line; a key "
            "from a file needs strip()"
        )
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address of a server; write it like http://127.0.0.1:8000")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout_s}


def prediction(
    task: str, rows: Any, strategy: str | None, version: str | None, top_k: int | None
) -> Call:
    """Return the request for some rows of one task; what is not named stays with the server."""
    named = {"strategy": strategy, "version": version, "top_k": top_k}
    body = {"inputs": rows} | {name: value for name, value in named.items() if value is not None}
    return Call("POST", f"predict/{quote(task, safe='')}", body)


def fan_out(rows: Any, targets: Sequence[Target], top_k: int | None) -> Call:
    """Return the request for the same rows by several deltas."""
    names = ("task", "strategy", "version")
    listed = [
        dict(zip(names, (target,) if isinstance(target, str) else target, strict=False))
        for target in targets
    ]
    body: dict[str, Any] = {"inputs": rows, "targets": listed}
    return Call("POST", "predict", body if top_k is None else body | {"top_k": top_k})


def page_of_deltas(offset: int, filters: Mapping[str, str | None]) -> Call:
    """Return the request for a page of the deltas that are served."""
    named = {name: value for name, value in filters.items() if value is not None}
    page = {"limit": _MOST_LISTED, "offset": offset, "status": "served"}
    return Call("GET", "deltas", query=page | named)


def parts(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield the rows in lists of at most `size`, each read when it is needed.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"rows_per_request is {size}; it must be 1 or more")
    left = iter(rows)
    while part := list(islice(left, size)):
        yield part


@contextmanager
def counted_from(start: int) -> Iterator[None]:
    """Say in the refusal of a part of a list where the part begins, since it counts from there."""
    try:
        yield
    except RefusedError as error:
        error.first_row = start
        if start and error.code in _OF_ROWS:
            error.args = (f"{error}; rows are counted from row {start:,} of all",)
        raise


def answers_of(values: Any, num_rows: int) -> DeltaAnswers:
    """Return the answers to some rows.

    Raises:
        RefusedError: they have another form, or another number.
    """
    found = typed(DeltaAnswers, values)
    if len(found.rows) != num_rows:
        raise _unexpected(f"{len(found.rows):,} predictions for {num_rows:,} rows")
    return found


def typed(model: type[M], values: Any) -> M:
    """Return the values of an answer as their type.

    Raises:
        RefusedError: they have another form.
    """
    try:
        return model.read(values)
    except ValueError as error:
        raise _unexpected(str(error)) from error


def _unexpected(problem: str) -> RefusedError:
    message = f"the answer is none that this release of the client reads ({problem})"
    return RefusedError(httpx2.codes.OK, {"code": "unexpected_answer", "message": message})


def joined(answers: Sequence[DeltaAnswers]) -> DeltaAnswers:
    """Return the answers to the parts of a list as one."""
    rows = [row for answer in answers for row in answer.rows]
    return answers[0].model_copy(update={"rows": rows})


def pause_s(status: int, headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which a request is sent once more, or None if it is not."""
    told = headers.get("retry-after", "")
    wait_s = float(told) if told.isascii() and told.isdigit() else None
    if status == _BUSY:
        return wait_s if wait_s is not None and wait_s <= _LONGEST_PAUSE_S else None
    if status in (_BAD_GATEWAY, _UNAVAILABLE):
        return min(PAUSE_S if wait_s is None else wait_s, _LONGEST_PAUSE_S)
    return None


def read(status: int, content: bytes) -> Any:
    """Return the values of an answer.

    Raises:
        RefusedError: the server refused or failed the request, or something else answered.
    """
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if status == httpx2.codes.OK and values is not None:
        return values
    error = values.get("error") if isinstance(values, dict) else None
    if not isinstance(error, dict):
        shown = content[:200].decode(errors="replace")
        error = {"code": "no_deltabert", "message": f"this is no DeltaBERT server: {shown!r}"}
    raise RefusedError(status, error)


def unreachable(url: httpx2.URL, error: Exception) -> UnreachableError:
    """Return the error for a server that could not be reached; a password is not quoted."""
    reason = str(error) or type(error).__name__
    address = f"{url.scheme}://{url.netloc.decode()}{url.path}".rstrip("/")
    return UnreachableError(f"no answer from {address} ({reason}); is the server running there?")


def health_of(status: int, content: bytes) -> Health:
    """Return the state that `GET /health/ready` tells.

    Raises:
        RefusedError: something else than a DeltaBERT server answered.
    """
    try:
        return Health(ready=True, latency_ms=read(status, content)["latency_ms"])
    except RefusedError as error:
        if error.code == "no_deltabert":
            raise
        return Health(ready=False, problem=str(error))
