"""Serves the routes with a JSON body: reads it, checks it, and calls the endpoint.

FastAPI documents these routes from the signatures of their endpoints but does not run them, because
it solves the dependencies of each request anew. That takes as long as all other work on a row
before the engine. Errors have the form of FastAPI's, so `app.errors` answers them like all others.
Read `app.http.routes.predictions` next. Tested by tests/http/test_json_route.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar, get_type_hints

from fastapi import Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError, WithJsonSchema
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.errors import ClientGoneError, NotReadyError, TooLargeError, UnsupportedBodyError
from app.http.context import NOT_STARTED, Serving
from app.http.query import check_query, known_names
from app.pipeline import Stage
from app.pipeline.bulk.output import OutputFormat

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
STICKY_HEADER = "X-Sticky-Key"

TaskName = Annotated[str, Path(description="A task of GET /tasks.", max_length=256)]
TimeoutMs = Annotated[
    int | None,
    # The header may be left out; it is never null.
    WithJsonSchema({"type": "integer", "minimum": 1}),
    Header(
        alias=TIMEOUT_HEADER,
        description="Milliseconds until the request gets 504; the server's limit also applies.",
    ),
]
StickyKey = Annotated[
    str | None,
    WithJsonSchema({"type": "string"}),
    Header(
        alias=STICKY_HEADER,
        description="Requests with the same key get the same version while versions share traffic.",
    ),
]


def _milliseconds(text: str) -> str:
    """Refuse all but digits, as `app.http.middleware` reads them; int() takes "+1" and "1_0"."""
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise ValueError("must be a whole number of milliseconds, 1 or more, in digits alone")
    return text


_TASK_NAME: TypeAdapter[str] = TypeAdapter(TaskName)
_TIMEOUT_MS: TypeAdapter[str] = TypeAdapter(Annotated[str, AfterValidator(_milliseconds)])
_NOTHING = object()  # the content of an empty body, which no model accepts
_NO_BODY = {"type": "missing", "loc": ("body",)}
_LARGE_BYTES = 128 * 2**10  # smaller bodies take a few milliseconds, whatever they hold
_MIN_VALUES, _VALUES_PER_ROW = 10_000, 16  # a row of two fields has 7
_STEP = 256 * 2**10
_STRING_PART = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_PARSER = ThreadPoolExecutor(1, "json")  # one body at a time, between which the event loop runs
# Types of bodies that are streams of rows, which only `app.http.routes.bulk` reads.
STREAM_TYPES: Mapping[str, OutputFormat] = {"application/x-ndjson": "jsonl", "text/csv": "csv"}
_JSON_TYPE = re.compile(r"application/([^/]+\+)?json")


class JsonRoute(APIRoute):
    """A route for endpoints that take `request`, `body`, `serving` and task names of the path.

    The endpoint is cancelled when the client closes the connection.
    """

    takes_streams: ClassVar[bool] = False

    async def stream(self, request: Request) -> Response:
        """Answer a stream of rows, if the route takes streams."""
        raise NotImplementedError

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]
        known, in_body = known_names(self.dependant), tuple(model.model_fields)

        async def handle(request: Request) -> Response:
            if self.takes_streams and media_type_of(request.headers) in STREAM_TYPES:
                check_encoding(request.headers)
                if errors := _parameter_errors(request):
                    raise RequestValidationError(errors)
                return await self.stream(request)
            if request.scope["query_string"]:
                check_query(request, known, in_body)
            self.check_headers(request.headers)
            errors = _parameter_errors(request)
            data = await self.read(request)
            serving = request.app.state.serving
            if not isinstance(serving, Serving):
                raise NotReadyError(NOT_STARTED)
            try:
                # `from_attributes` as in FastAPI, whose error messages depend on it.
                body = model.model_validate(data, from_attributes=True)
            except ValidationError as error:
                errors += _errors_at(("body",), error) if data is not _NOTHING else [_NO_BODY]
            if errors:
                raise RequestValidationError(errors)
            state = request.state
            state.trace.stages.append(Stage("read", state.arrived_at, time.monotonic()))
            task = asyncio.current_task()
            assert task is not None  # it runs in a coroutine
            watch = asyncio.create_task(_cancel_on_disconnect(request, task))
            try:
                return await endpoint(
                    request=request, body=body, serving=serving, **request.path_params
                )
            except asyncio.CancelledError:
                if watch.done() and not watch.cancelled() and task.uncancel() == 0:
                    raise ClientGoneError("the client closed the connection") from None
                raise  # the server is stopping
            finally:
                watch.cancel()

        return handle

    def check_headers(self, headers: Headers) -> None:
        """Refuse a body that is not plain JSON.

        Raises:
            UnsupportedBodyError: the body is compressed, or is no JSON.
        """
        check_encoding(headers)
        check_media_type(headers)

    async def read(self, request: Request) -> Any:
        """Return the values of the body."""
        return await read_json(request, request.body)


def media_type_of(headers: Headers) -> str:
    """Return the type of a body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_encoding(headers: Headers) -> None:
    """Refuse a compressed body.

    Raises:
        UnsupportedBodyError: the body is compressed.
    """
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        for encoding in headers.getlist(name):
            if encoding.lower() != plain:
                raise UnsupportedBodyError(
                    f"{name} {encoding[:64]!r} is not supported; send the body uncompressed"
                )


def check_media_type(headers: Headers) -> None:
    """Refuse a body that its header does not call JSON.

    Raises:
        UnsupportedBodyError: the header names another type, or there is none.
    """
    media_type = media_type_of(headers)
    if not _JSON_TYPE.fullmatch(media_type):
        raise UnsupportedBodyError(
            f"Content-Type is {repr(media_type[:64]) if media_type else 'missing'}; "
            "send the header Content-Type: application/json"
        )


def _parameter_errors(request: Request) -> list[Any]:
    """Check the path parameters and the timeout header."""
    checks: list[tuple[tuple[str, str], TypeAdapter[Any], str]] = [
        (("path", name), _TASK_NAME, value) for name, value in request.path_params.items()
    ]
    for timeout in request.headers.getlist(TIMEOUT_HEADER):
        checks.append((("header", TIMEOUT_HEADER), _TIMEOUT_MS, timeout))
    errors = []
    for location, adapter, value in checks:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            errors += _errors_at(location, error)
    return errors


def _errors_at(location: tuple[str, ...], error: ValidationError) -> list[Any]:
    """Return pydantic's errors with the location that FastAPI puts in front."""
    return [{**item, "loc": (*location, *item["loc"])} for item in error.errors(include_url=False)]


async def read_json(request: Request, body: Callable[[], Awaitable[bytes]]) -> Any:
    """Return the values of a JSON text that `body` returns, or `_NOTHING` if it is empty.

    Raises:
        RequestValidationError: the text is no JSON.
        TooLargeError: it has too many values.
        HTTPException: it is nested too deeply, or did not arrive.
    """
    try:
        raw = await body()
        if len(raw) > _LARGE_BYTES:
            max_values = max(_MIN_VALUES, _VALUES_PER_ROW * _max_rows(request))
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_PARSER, _parse_large, raw, max_values)
        if raw:
            return json.loads(raw)
    except json.JSONDecodeError as error:
        item = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([item]) from error
    except UnicodeDecodeError as error:
        reason = f"the body is not {error.encoding.upper()} there (byte 0x{raw[error.start]:02x})"
        context = {"error": f"{reason}; encode it as UTF-8"}
        item = {"type": "json_invalid", "loc": ("body", error.start), "ctx": context}
        raise RequestValidationError([item]) from error
    except (ValueError, RecursionError, ClientDisconnect) as error:
        raise HTTPException(400) from error
    return _NOTHING


def _max_rows(request: Request) -> int:
    max_rows: int = request.app.state.settings.max_rows_per_request
    return max_rows


def _parse_large(raw: bytes, max_values: int) -> Any:
    """Parse a large body, unless it has so many values that this would stop the event loop.

    Raises:
        TooLargeError: the body has too many values.
        ValueError: the body is no JSON.
    """
    text = raw.decode(json.detect_encoding(raw), "surrogatepass")  # as json.loads does
    if count_values(text, max_values) > max_values:
        setting = "DELTABERT_MAX_ROWS_PER_REQUEST"
        raise TooLargeError("values in the body", None, max_values, setting)
    return json.loads(text)


def count_values(text: str, limit: int) -> int:
    """Count strings, commas and opening brackets of a JSON text, which are at least its values.

    Counting stops beyond `limit`. Each step looks at little text, so that other threads have their
    turns; the parser gives them none until it is done.
    """
    count = position = 0
    while count <= limit and position < len(text):
        quote = text.find('"', position, position + _STEP)
        end = quote if quote >= 0 else position + _STEP
        count += sum(text.count(mark, position, end) for mark in ",[{") + (quote >= 0)
        position = _after_string(text, quote + 1) if quote >= 0 else end
    return count


def _after_string(text: str, position: int) -> int:
    """Return the position behind the string whose characters begin at `position`."""
    quote = text.find('"', position)
    if quote >= 0 and text.find("\\", position, quote) < 0:
        return quote + 1
    while position < len(text) - 1 and text[position] != '"':
        part = _STRING_PART.match(text, position, position + _STEP)
        assert part is not None  # it may be empty
        # A step may end between a backslash and its character.
        position = part.end() if part.end() > position else position + 2
    return position + 1


async def _cancel_on_disconnect(request: Request, task: asyncio.Task[Any]) -> None:
    """Wait for the event after the body, which is the disconnect, and cancel the task."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def json_response(text: str) -> Response:
    """Answer with finished JSON; FastAPI would check again what the models have checked."""
    return Response(text, media_type="application/json")
