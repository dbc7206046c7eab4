"""Errors between the page and the server, each with a sentence that a person can act on.

    ServerError            the server answered with an error, or with an unexpected body
    └── UnreachableError   no answer at all: not running, wrong address, too slow

`frontend.client` raises them; the panels show `message` and `hints`, never a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_MAX_HINTS = 6
_MAX_NAMES = 12

_SENTENCES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "The server can't use this input. {said}",
    HTTPStatus.UNAUTHORIZED: (
        "The server needs an API key that it knows. "
        "Set FRONTEND_API_KEY where the page is started. {said}"
    ),
    HTTPStatus.FORBIDDEN: "The page's API key is not for this. {said}",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The input is larger than the server accepts. {said}",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The server can't use this input. {said}",
    HTTPStatus.SERVICE_UNAVAILABLE: "The server is up but not ready to predict yet. {said}",
    HTTPStatus.GATEWAY_TIMEOUT: (
        "The server did not answer within its time limit. "
        "It may be busy: try again, or shorten the text."
    ),
}


@dataclass(eq=False)
class ServerError(Exception):
    """An answer of the server that is an error."""

    message: str  # one sentence for a person, with the next step
    hints: tuple[str, ...] = ()  # details, one line each: problems of the input, near matches
    status: int | None = None  # HTTP status; None if there was no HTTP answer
    request_id: str | None = None  # the id of the request in the server's log
    code: str | None = None  # the server's name of the error, for programs

    def __str__(self) -> str:
        """Return the sentence and its hints on one line, for logs."""
        return " ".join((self.message, *self.hints))


class UnreachableError(ServerError):
    """An address where no server answers."""


def explain_error(status: int, payload: Any, retry_after: str | None) -> ServerError:
    """Turn a response with an error status into an exception.

    Args:
        status: HTTP status.
        payload: decoded JSON body; None if the body wasn't JSON.
        retry_after: the `Retry-After` header, in seconds or as a date.
    """
    error = payload.get("error") if isinstance(payload, Mapping) else None
    if not isinstance(error, Mapping):
        return ServerError(
            f"Something answers with HTTP {status}, but not the way a DeltaBERT server does. "
            "Check the server's address (FRONTEND_API_URL).",
            status=status,
        )
    said = str(error.get("message") or "").strip()
    details, request_id = error.get("details"), error.get("request_id")
    sentence = _sentence(status, "" if isinstance(details, list) else said, retry_after)
    if error.get("code") == "rate_limited":
        sentence = f"The page's API key has reached a limit. {said}"
    return ServerError(
        sentence,
        hints=tuple(_hints(details, said)),
        status=status,
        request_id=str(request_id) if request_id else None,
        code=str(error.get("code") or "") or None,
    )


def _sentence(status: int, said: str, retry_after: str | None) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = f"in {retry_after} s" if (retry_after or "").isdigit() else "shortly"
        return f"The server has more requests than it can queue. Try again {wait}."
    if status in _SENTENCES:
        return _SENTENCES[status].format(said=said).strip()
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "The server failed on this request. Its log says why, under the request id below."
    return said or f"The server refused the request (HTTP {status})."


def _hints(details: Any, said: str) -> list[str]:
    """List the problems of the input, or near matches that the message doesn't name already."""
    if isinstance(details, Mapping):
        lines = []
        for key, lead in (("suggestions", "Did you mean"), ("available", "Available")):
            names = details.get(key)
            listed = ", ".join(map(str, names[:_MAX_NAMES])) if isinstance(names, list) else ""
            if listed and listed not in said:
                lines.append(f"{lead}: {listed}")
        return lines
    if isinstance(details, list):
        problems = [item for item in details if isinstance(item, Mapping)]
        more = len(problems) - _MAX_HINTS
        rest = [f"and {more} more"] if more > 0 else []
        return [_problem(item) for item in problems[:_MAX_HINTS]] + rest
    return []


def _problem(item: Mapping[str, Any]) -> str:
    problem = str(item.get("problem") or "not accepted")
    field = item.get("field")
    return f"{field}: {problem}" if field else problem
