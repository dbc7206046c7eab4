"""Describes the error responses of a route in the API's documentation, with real bodies."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError

from app.errors import (
    BodyTimeoutError,
    DeadlineExceededError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    Problem,
    TooLargeError,
    UnsupportedBodyError,
    describe_error,
)
from app.jobs import THE_SERVER, WaitLimit
from app.schemas import ErrorBody
from deltas import DeltaNotFoundError

_REQUEST_ID = "0123456789abcdef0123456789abcdef"
_ERRORS: dict[str, Exception] = {
    "The body is not valid JSON, or is nested too deeply.": RequestValidationError(
        [{"type": "json_invalid", "loc": ("body", 12), "ctx": {"error": "Expecting value"}}]
    ),
    "The body takes too long to arrive.": BodyTimeoutError(10.0),
    "No such task, strategy or version; near matches are given.": DeltaNotFoundError(
        "task", "sentimint", ["sentiment", "spam"]
    ),
    "More bytes, rows or characters than the server takes.": TooLargeError(
        "rows in one request", 5000, 1024, "DELTABERT_MAX_ROWS_PER_REQUEST"
    ),
    "The body is not JSON, or is compressed.": UnsupportedBodyError(
        "Content-Type is 'text/plain'; send the header Content-Type: application/json"
    ),
    "The input doesn't fit the route or the task; every problem is named.": InvalidInputError(
        [Problem(row=2, field="premise", problem="is missing")]
    ),
    "Too much is waiting; come back after the time in Retry-After.": OverloadedError(
        4096, 90000, 9, 8.4, WaitLimit(2.0, THE_SERVER)
    ),
    "The server failed; its log has the cause.": Exception(),
    "Starting, stopping or broken.": NotReadyError("the server is shutting down"),
    "Not answered in time.": DeadlineExceededError(30.0),
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses."""
    responses = {}
    for description, error in _ERRORS.items():
        status, body, _ = describe_error(error, _REQUEST_ID)
        if status in statuses:
            responses[status] = _response(status, description, body)
    return dict(sorted(responses.items()))


def _response(status: int, description: str, body: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "model": ErrorBody,
        "description": description,
        "content": {"application/json": {"example": body}},
    }
    if status == 429:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        }
    return response
