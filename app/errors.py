"""The errors of serving, and the one table that maps them to HTTP statuses and codes: `STATUSES`.

The exceptions hold facts and know no HTTP; `describe_error` alone makes JSON of them. The errors of
`deltas.errors` that a request can cause are in the same table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypedDict

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from deltas import DeltaNotFoundError
from deltas.errors import PredictionsError

THE_SERVER = "the server (DELTABERT_MAX_QUEUE_S)"
THE_REQUEST = "the request's deadline (X-Request-Timeout-Ms or DELTABERT_DEADLINE_S)"
STOPPING = "the server is shutting down"
MAX_LISTED = 100  # problems or names in one answer
UNKNOWN_FIELD = "unknown_field"  # type of the pydantic error that `app.http.schemas` raises


class WaitLimit(NamedTuple):
    """The longest wait of rows, and the name of the limit for the message."""

    seconds: float
    name: str


class Problem(TypedDict):
    """One problem of the input; `row` and `field` are null if the problem belongs to none."""

    row: int | None
    field: str | None
    problem: str


class InvalidInputError(Exception):
    """The body is JSON, but not the JSON that the route or the task takes."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        first = self.problems[0]
        where = [f"row {first['row']}"] if first["row"] is not None else []
        where += [f"field {first['field']!r}"] if first["field"] else []
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{', '.join(where) or 'the body'} {first['problem']}{more}")


class TooLargeError(Exception):
    """A request exceeds a limit of the server.

    Args:
        what: things that were counted, in the plural.
        found: their number; None if counting stopped at the limit.
        allowed: the limit.
        setting: environment variable that sets the limit.
        remedy: sentence on what to do instead of raising a setting.
    """

    def __init__(
        self, what: str, found: int | None, allowed: int, setting: str = "", *, remedy: str = ""
    ) -> None:
        self.found = found
        self.allowed = allowed
        number = f"more than {allowed:,}" if found is None else f"{found:,}"
        remedy = remedy or f"Send fewer, or raise {setting}"
        super().__init__(f"too many {what}: {number} (limit {allowed:,}). {remedy}")


class UnsupportedBodyError(Exception):
    """The body is in a form that the server does not read."""


class OverloadedError(Exception):
    """Rows are refused, because the queue is full or they would wait too long.

    Args:
        queued_rows: number of rows that wait.
        queued_tokens: tokens of these rows.
        retry_after_s: estimated seconds to drain the queue.
        wait_s: estimated wait of the refused rows in seconds.
        limit: limit that the wait exceeds; None if the queue is full.
    """

    def __init__(
        self,
        queued_rows: int,
        queued_tokens: int,
        retry_after_s: int,
        wait_s: float = 0.0,
        limit: WaitLimit | None = None,
    ) -> None:
        self.retry_after_s = retry_after_s
        queued = f"{queued_rows:,} rows, {queued_tokens:,} tokens"
        why = f"the queue is full ({queued})"
        if limit is not None:
            wait, allowed = _distinct(wait_s, limit.seconds)
            why = (
                f"the estimated wait is {wait} s, but {limit.name} allows {allowed} s "
                f"({queued} queued)"
            )
        super().__init__(f"{why}; try again in {retry_after_s} s")


class MalformedRequestError(Exception):
    """Bytes on a connection are no HTTP request."""

    def __init__(self) -> None:
        super().__init__("this is no valid HTTP/1.1 request; the connection is closed")


class HeadTooLargeError(Exception):
    """Request line and headers are too large."""

    def __init__(self, allowed: int) -> None:
        super().__init__(
            f"request line and headers have more than {allowed:,} bytes. Send fewer headers, or "
            f"raise DELTABERT_MAX_HEAD_BYTES"
        )


class HeadTimeoutError(Exception):
    """Request line and headers have not arrived in time."""

    def __init__(self, allowed_s: float) -> None:
        super().__init__(
            f"request line and headers did not arrive within {allowed_s:g} s; send them at once, "
            f"or raise DELTABERT_CONNECTION_TIMEOUT_S"
        )


class TooManyConnectionsError(Exception):
    """All connections are in use, and each of them has a request."""

    retry_after_s = 1

    def __init__(self, allowed: int) -> None:
        super().__init__(
            f"all {allowed:,} connections have a request (DELTABERT_MAX_CONNECTIONS); try again "
            f"in {self.retry_after_s} s"
        )


class BodyTimeoutError(Exception):
    """A body has not arrived in time.

    Args:
        allowed_s: seconds that it had.
        setting: environment variable that sets them.
        is_part: whether it is the next part of a stream that has not arrived.
    """

    def __init__(
        self,
        allowed_s: float,
        setting: str = "DELTABERT_BODY_TIMEOUT_S",
        *,
        is_part: bool = False,
    ) -> None:
        noun, remedy = "the body", "Send a smaller one"
        if is_part:
            noun, remedy = "the next part of the body", "Send its parts sooner"
        super().__init__(
            f"{noun} did not arrive within {allowed_s:g} s. {remedy}, or raise {setting}"
        )


class BodiesOverloadedError(Exception):
    """The bodies of all requests together are too large, or the streams are too many.

    Args:
        allowed: most bytes of all bodies.
        num_streams: number of streams that run; None if bodies are too large.
    """

    retry_after_s = 1  # bodies leave the memory with their requests

    def __init__(self, allowed: int, num_streams: int | None = None) -> None:
        found = f"the bodies of all requests together have more than {allowed:,} bytes"
        if num_streams is not None:
            found = f"{num_streams:,} streams of rows run, as many as {allowed:,} bytes allow"
        super().__init__(
            f"{found} (DELTABERT_MAX_BODIES_BYTES); try again in {self.retry_after_s} s"
        )


class UnauthorizedError(Exception):
    """A request has no key, or one that is not known here."""

    challenge = 'Bearer realm="deltabert"'


class ForbiddenError(Exception):
    """A request's key is known, but not for this."""


class RateLimitedError(Exception):
    """A key has used up a limit of its own.

    Args:
        why: limit, and the key that has it.
        wait_s: seconds until the same request is allowed, if the key sends nothing else.
    """

    def __init__(self, why: str, wait_s: float) -> None:
        self.wait_s = wait_s
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(f"{why}; try again in {self.retry_after_s} s")


class ClientGoneError(Exception):
    """The client has closed the connection; only the log shows this error."""


class BatchFailedError(Exception):
    """The forward pass raised; the cause is chained."""


class BadResultError(Exception):
    """The forward pass returned numbers that are no answer, such as NaN."""


class NotReadyError(Exception):
    """The server cannot predict now."""


class DeltaUnavailableError(Exception):
    """A delta that the store knows could not be loaded when a row needed it."""

    def __init__(self, task: str, strategy: str, version: str, reason: str) -> None:
        super().__init__(
            f"the delta {task}/{strategy}, version {version}, cannot be loaded now: {reason}; "
            f"other deltas are served"
        )


class ConflictError(Exception):
    """A change of deltas does not fit the present state of the store."""


class InvalidDeltaError(Exception):
    """An uploaded or changed file is no delta that the server could answer by."""


class StorageError(Exception):
    """Files of deltas can't be read or written now."""


class DeadlineExceededError(Exception):
    """The request was not answered in time."""

    def __init__(self, allowed_s: float) -> None:
        super().__init__(f"not answered within {allowed_s:,.6g} s; try again, or send fewer rows")


class DeadlineTooShortError(Exception):
    """Rows are refused that would exceed their deadline on an idle server, too."""

    def __init__(self, num_rows: int, num_tokens: int, needed_s: float, left_s: float) -> None:
        needed, left = _distinct(needed_s, left_s)
        super().__init__(
            f"{num_rows:,} rows with {num_tokens:,} tokens would take {needed} s at the measured "
            f"speed, but {THE_REQUEST} leaves {left} s. Send fewer rows at once, or allow more time"
        )


def _distinct(more: float, less: float) -> tuple[str, str]:
    """Write two numbers with as few decimals, at least two, as make them look different."""
    for decimals in range(2, 16):
        shown = f"{more:.{decimals}f}", f"{less:.{decimals}f}"
        if shown[0] != shown[1]:
            break
    return shown


STATUSES: Mapping[type[Exception], tuple[int, str]] = {
    DeltaNotFoundError: (404, "not_found"),
    PredictionsError: (404, "no_predictions"),
    InvalidInputError: (422, "invalid_input"),
    TooLargeError: (413, "too_large"),
    UnsupportedBodyError: (415, "unsupported_body"),
    MalformedRequestError: (400, "malformed_request"),
    UnauthorizedError: (401, "unauthorized"),
    ForbiddenError: (403, "forbidden"),
    HeadTimeoutError: (408, "head_timeout"),
    HeadTooLargeError: (431, "head_too_large"),
    TooManyConnectionsError: (503, "too_many_connections"),
    BodyTimeoutError: (408, "body_timeout"),
    OverloadedError: (429, "overloaded"),
    BodiesOverloadedError: (429, "overloaded"),
    RateLimitedError: (429, "rate_limited"),
    ClientGoneError: (499, "client_gone"),
    BatchFailedError: (500, "internal_error"),
    BadResultError: (500, "internal_error"),
    NotReadyError: (503, "not_ready"),
    DeltaUnavailableError: (503, "delta_unavailable"),
    ConflictError: (409, "conflict"),
    InvalidDeltaError: (422, "invalid_delta"),
    StorageError: (503, "storage_failed"),
    DeadlineTooShortError: (504, "deadline_too_short"),
    DeadlineExceededError: (504, "deadline_exceeded"),
}
_HTTP_CODES = {400: "malformed_json", 404: "unknown_path", 405: "method_not_allowed"}
OTHER_CODE = "http_error"
# Every code that an error can have.
CODES = frozenset({code for _, code in STATUSES.values()} | {*_HTTP_CODES.values(), OTHER_CODE})
_GENERIC = "the server failed on this request; its log has the cause under this request id"


def describe_error(error: Exception, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers; unexpected errors are a 500 that discloses nothing."""
    status, code, message = 500, "internal_error", _GENERIC
    details: Any = None
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        status, code, message, details = _describe_validation(error)
    elif isinstance(error, HTTPException):
        status, code = error.status_code, _HTTP_CODES.get(error.status_code, OTHER_CODE)
        message, headers = _http_message(error), dict(error.headers or {})
    elif type(error) in STATUSES:
        status, code = STATUSES[type(error)]
        if status != HTTPStatus.INTERNAL_SERVER_ERROR:
            message, details = str(error), _details(error)
        headers = _headers(error)
    body = {"code": code, "message": message, "details": details, "request_id": request_id}
    return status, {"error": body}, headers


class ErrorResponse(Response):
    """The response to a request that has failed.

    Attributes:
        code: code of the error.
        cause_status: status of the error in `STATUSES`; another protocol may answer another one.
    """

    code: str
    cause_status: int


# Writes status and content of an error as another protocol does; returns status and body.
WriteError = Callable[[int, Mapping[str, Any]], tuple[int, dict[str, Any]]]


def error_response(
    error: Exception, request_id: str, write: WriteError | None = None
) -> ErrorResponse:
    """Return the response to a request that has failed.

    Args:
        error: cause of the failure.
        request_id: id of the request.
        write: writes the error for clients of another protocol; None for our own form.
    """
    cause_status, body, headers = describe_error(error, request_id)
    content, status = body["error"], cause_status
    if write is not None:
        status, body = write(cause_status, content)
    # Pure ASCII, because names from the input may hold characters that UTF-8 cannot encode.
    response = ErrorResponse(json.dumps(body), status, headers, media_type="application/json")
    response.code, response.cause_status = content["code"], cause_status
    return response


def _headers(error: Exception) -> dict[str, str]:
    match error:
        case UnauthorizedError():
            return {"WWW-Authenticate": error.challenge}
        case (
            OverloadedError()
            | BodiesOverloadedError()
            | TooManyConnectionsError()
            | RateLimitedError()
        ):
            return {"Retry-After": str(error.retry_after_s)}
        case _:
            return {}


def _details(error: Exception) -> Any:
    match error:
        case DeltaNotFoundError():
            return {"suggestions": error.suggestions, "available": error.available[:MAX_LISTED]}
        case InvalidInputError():
            return error.problems[:MAX_LISTED]
        case TooLargeError():
            return {"found": error.found, "allowed": error.allowed}
        case _:
            return None


def _http_message(error: HTTPException) -> str:
    match error.status_code:
        case 400:
            return "the body is not valid JSON, or is nested too deeply"
        case 404:
            return "no such path; GET /docs lists all paths"
        case 405:
            return f"this path allows {(error.headers or {}).get('Allow', 'other methods')} only"
        case _:
            return str(error.detail)


def _describe_validation(error: RequestValidationError) -> tuple[int, str, str, Any]:
    """Describe errors of pydantic without the input in them, which may be text, or huge."""
    items = error.errors()
    if items[0]["type"] == "json_invalid":
        position, reason = items[0]["loc"][-1], items[0]["ctx"]["error"]
        return 400, "malformed_json", f"not valid JSON at character {position}: {reason}", None
    problems = [Problem(row=None, field=_field(item), problem=_sentence(item)) for item in items]
    return 422, "invalid_input", str(InvalidInputError(problems)), problems[:MAX_LISTED]


def _field(item: Mapping[str, Any]) -> str | None:
    """Write ("body", "targets", 0, "task") as "targets.0.task"; None is the whole body."""
    _source, *parts = item["loc"]  # body, path, query or header
    if item["type"] == UNKNOWN_FIELD:
        parts.append(item["ctx"]["field"])
    return ".".join(str(part)[:64] for part in parts) or None


_OBJECT = "must be a JSON object (a valid dictionary), like {...}"
_SENTENCES = {
    "missing": "is missing",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "extra_forbidden": "is not a field of this request",
    "string_unicode": "must be valid Unicode; it has half of a surrogate pair",
}


def _sentence(item: Mapping[str, Any]) -> str:
    if item["type"] in _SENTENCES:
        return _SENTENCES[item["type"]]
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should", "must", 1)
    return message[0].lower() + message[1:]
