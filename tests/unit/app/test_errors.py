"""The table of statuses and the one shape, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.errors import (
    BadResultError,
    BatchFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    Problem,
    TooLargeError,
    WaitLimit,
    describe_error,
    error_response,
)
from deltas import DeltaFormatError, DeltaNotFoundError


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    status, body, _ = describe_error(error, "id-1")
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details", "request_id"}
    assert body["error"]["request_id"] == "id-1"
    return status, body["error"]


def test_unknown_names_get_suggestions() -> None:
    status, error = describe(DeltaNotFoundError("task", "colour", ["colours", "x"]))
    assert (status, error["code"]) == (404, "not_found")
    assert error["details"] == {"suggestions": ["colours"], "available": ["colours", "x"]}


def test_a_long_list_of_names_is_cut() -> None:
    names = [f"task{n}" for n in range(1000)]
    _, error = describe(DeltaNotFoundError("task", "x", names))
    assert len(error["details"]["available"]) == 100


def test_problems_of_the_input() -> None:
    problems = [
        Problem(row=2, field="a", problem="is missing"),
        Problem(row=None, field=None, problem="is odd"),
    ]
    status, error = describe(InvalidInputError(problems))
    assert (status, error["code"], error["details"]) == (422, "invalid_input", problems)
    assert error["message"] == "row 2, field 'a' is missing (and 1 more)"
    assert str(InvalidInputError(problems[1:])) == "the body is odd"


def test_a_limit_is_named_with_its_setting() -> None:
    status, error = describe(TooLargeError("rows", 5000, 1024, "DELTABERT_X"))
    assert (status, error["code"]) == (413, "too_large")
    assert error["message"] == (
        "too many rows: 5,000 (limit 1,024). Send fewer, or raise DELTABERT_X"
    )
    _, error = describe(TooLargeError("bytes", None, 10, "DELTABERT_X"))
    assert error["message"].startswith("too many bytes: more than 10 (limit 10).")


def test_overload_and_deadline() -> None:
    status, body, headers = describe_error(OverloadedError(7, 70, 3), "id")
    assert (status, headers) == (429, {"Retry-After": "3"})
    assert body["error"] == {
        "code": "overloaded",
        "message": "the queue is full (7 rows, 70 tokens); try again in 3 s",
        "details": None,
        "request_id": "id",
    }
    _, error = describe(OverloadedError(7, 1070, 4, 3.5, WaitLimit(2, "the queue")))
    assert error["message"] == (
        "the estimated wait is 3.50 s, but the queue allows 2.00 s (7 rows, 1,070 tokens queued); "
        "try again in 4 s"
    )


@pytest.mark.parametrize(
    ("allowed_s", "shown"),
    [(0.001, "0.001"), (1.5, "1.5"), (30.0, "30"), (3600.0, "3,600"), (604800.0, "604,800")],
)
def test_a_deadline_is_written_in_plain_digits(allowed_s: float, shown: str) -> None:
    _, error = describe(DeadlineExceededError(allowed_s))
    assert error["message"].startswith(f"not answered within {shown} s;")


@pytest.mark.parametrize(
    ("wait_s", "allowed_s", "sentence"),
    [
        (2.001, 2.0, "is 2.001 s, but it allows 2.000 s"),
        (2.00000004, 2.0, "is 2.00000004 s, but it allows 2.00000000 s"),
        (1e-9, 0.0, "is 0.000000001 s, but it allows 0.000000000 s"),
    ],
)
def test_a_wait_never_looks_equal_to_its_limit(
    wait_s: float, allowed_s: float, sentence: str
) -> None:
    assert sentence in str(OverloadedError(1, 1, 1, wait_s, WaitLimit(allowed_s, "it")))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("secret"),
        DeltaFormatError(Path("/secret"), "secret"),
        BatchFailedError("secret"),
        BadResultError("secret"),
    ],
)
def test_failures_of_the_server_disclose_nothing(error: Exception) -> None:
    status, found = describe(error)
    assert (status, found["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(found)


def test_validation_errors_never_quote_the_input() -> None:
    items = [
        {"type": "string_type", "loc": ("body", "a", 3), "msg": "Wrong", "input": "secret"},
        {"type": "missing", "loc": ("body",), "msg": "Value error, none", "input": "secret"},
    ]
    status, error = describe(RequestValidationError(items))
    assert status == 422
    assert error["details"] == [
        {"row": None, "field": "a.3", "problem": "wrong"},
        {"row": None, "field": None, "problem": "is missing"},
    ]
    assert "secret" not in json.dumps(error)


def test_names_that_utf8_cannot_encode_are_answered() -> None:
    error = InvalidInputError([Problem(row=0, field="\ud800", problem="is odd")])
    response = error_response(error, "id")
    assert json.loads(bytes(response.body))["error"]["details"][0]["field"] == "\ud800"


def test_other_http_errors_keep_their_status() -> None:
    status, error = describe(HTTPException(418, "short and stout"))
    assert (status, error["code"], error["message"]) == (418, "http_error", "short and stout")
