"""Bodies that trickle in, stop, or are too much together: an answer in time, and no memory held."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message

from app.process.settings import Settings

MakeApp = Callable[..., FastAPI]
Part = bytes | Callable[[], Awaitable[Any]]  # what comes, or what is waited for before the next
WHOLE = b'{"inputs": "a good film"}'
ADMIN = f'admin = {{sha256 = "{sha256(b"key").hexdigest()}", scopes = ["admin"], tasks = ["*"]}}'
HALF, OTHER_HALF = WHOLE[:15], WHOLE[15:]


async def never() -> None:
    await asyncio.Event().wait()


async def a_moment() -> None:
    await asyncio.sleep(0.05)


async def send_parts(
    app: FastAPI,
    parts: Sequence[Part],
    method: str = "POST",
    path: str = "/predict/toy2",
    **headers: str,
) -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and body of the answer to a request whose body comes in parts."""
    unread = list(parts)
    answer: list[Message] = []

    async def receive() -> Message:
        while unread and not isinstance(unread[0], bytes):
            await unread.pop(0)()  # type: ignore[operator]
        if not unread:
            await never()
        return {"type": "http.request", "body": unread.pop(0), "more_body": bool(unread)}

    async def send(message: Message) -> None:
        answer.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http"}
    scope |= {"server": ("test", 80), "client": ("test", 1)}
    given = {"content-type": "application/json"} | headers
    scope["headers"] = [(n.replace("_", "-").encode(), v.encode()) for n, v in given.items()]
    await app(scope, receive, send)
    start, *rest = answer
    body = b"".join(message.get("body", b"") for message in rest)
    return start["status"], dict(start["headers"]), json.loads(body)


def run(app: FastAPI, test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with app.router.lifespan_context(app):
            await test()

    asyncio.run(main())


@pytest.mark.parametrize(
    "parts",
    [
        [never, WHOLE],
        [HALF, never, OTHER_HALF],
        [part for _ in range(99) for part in (b" ", a_moment)],
    ],
    ids=["never begins", "stops", "trickles"],
)
def test_a_slow_body_is_a_408_and_the_end_of_its_connection(
    make_app: MakeApp, parts: Sequence[Part]
) -> None:
    """A client that sends the rest later would hold the connection for that time."""
    app = make_app(body_timeout_s=0.3)

    async def test() -> None:
        status, headers, body = await asyncio.wait_for(send_parts(app, parts), 10)
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        assert body["error"]["message"] == (
            "the body did not arrive within 0.3 s. Send a smaller one, or raise "
            "DELTABERT_BODY_TIMEOUT_S"
        )
        assert headers[b"connection"] == b"close"

    run(app, test)


def test_a_body_that_comes_in_time_may_wait_for_its_answer(make_app: MakeApp, gate: Any) -> None:
    app = make_app(body_timeout_s=0.2)

    async def test() -> None:
        gate.close()
        asyncio.get_running_loop().call_later(0.5, gate.is_open.set)
        status, headers, _ = await send_parts(app, [HALF, a_moment, OTHER_HALF])
        assert status == 200
        assert b"connection" not in headers

    run(app, test)


def test_bodies_are_bounded_together(make_app: MakeApp, gate: Any) -> None:
    """Bodies of waiting requests count, bodies of answered requests do not."""
    app = make_app(max_body_bytes=1500, max_bodies_bytes=2000)
    large = WHOLE[:-1] + b" " * 1000 + b"}"

    async def test() -> None:
        gate.close()
        waiting = asyncio.create_task(send_parts(app, [large]))
        assert await asyncio.to_thread(gate.entered.wait, 5)
        status, headers, body = await send_parts(app, [large[:990], large[990:]])
        assert (status, body["error"]["code"]) == (429, "overloaded")
        assert body["error"]["message"] == (
            "the bodies of all requests together have more than 2,000 bytes "
            "(DELTABERT_MAX_BODIES_BYTES); try again in 1 s"
        )
        assert headers[b"retry-after"] == b"1"
        small = asyncio.create_task(send_parts(app, [WHOLE]))
        gate.is_open.set()
        assert [(await task)[0] for task in (waiting, small)] == [200, 200]
        for _ in range(4):
            assert (await send_parts(app, [large]))[0] == 200

    run(app, test)


def test_one_body_is_never_more_than_all() -> None:
    with pytest.raises(ValueError, match="MAX_BODY_BYTES is 3000, more than DELTABERT_MAX_BODIES"):
        Settings(max_body_bytes=3000, max_bodies_bytes=2000)


def test_the_deadline_counts_from_the_arrival(make_app: MakeApp) -> None:
    """However long the body takes."""
    app = make_app()

    async def test() -> None:
        parts: list[Part] = [HALF, a_moment, a_moment, OTHER_HALF]
        status, _, body = await send_parts(app, parts, x_request_timeout_ms="60")
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
        assert "within 0.06 s" in body["error"]["message"]

    run(app, test)


MANY = {
    "lists": b'{"inputs": [' + b"[]," * 500_000 + b"[]]}",
    "members": b'{"inputs": {' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}}",
    "nested": b'{"inputs": [' + b"[[[[]]]]," * 100_000 + b"[]]}",
    "behind a quote": b'{"inputs": ["\\"", ' + b"0," * 500_000 + b"0]}",
    "utf-16": ('{"inputs": ["\\"", ' + "0," * 500_000 + "0]}").encode("utf-16"),
}


@pytest.mark.parametrize("kind", MANY)
def test_a_body_of_very_many_values_is_not_parsed(
    client: TestClient, check_error: Any, kind: str
) -> None:
    """Parsing millions of values stops the event loop for a second."""
    headers = {"Content-Type": "application/json"}
    response = client.post("/predict/toy2", content=MANY[kind], headers=headers)
    error = check_error(response, 413, "too_large")
    assert error["message"] == (
        "too many values in the body: more than 16,384 (limit 16,384). Send fewer, or raise "
        "DELTABERT_MAX_ROWS_PER_REQUEST"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_commas_in_texts_are_no_values(client: TestClient, encoding: str) -> None:
    rows = [{"sentence": 'a, "good", [film], {this} \\ ' * 40}] * 600
    content = json.dumps({"inputs": rows}).encode(encoding)
    headers = {"Content-Type": "application/json"}
    response = client.post("/predict/toy2", content=content, headers=headers)
    assert response.status_code == 200, response.text
    assert len(response.json()["predictions"]) == 600


def test_a_large_body_that_is_no_json_names_the_place(client: TestClient, check_error: Any) -> None:
    headers = {"Content-Type": "application/json"}
    no_json = [b" " * 200_000 + b"x", b'"' + b"a" * 199_999 + b"\xff"]
    for content in no_json:
        response = client.post("/predict/toy2", content=content, headers=headers)
        assert "at character 200000" in check_error(response, 400, "malformed_json")["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/traffic/toy2/head"),
        ("PUT", "/deltas/toy2/head"),
        ("POST", "/deltas/toy2/head/rollback"),
    ],
)
@pytest.mark.parametrize("keys", [None, ADMIN])
def test_no_body_of_a_change_is_read_without_its_key(
    make_app: MakeApp, keys: str | None, method: str, path: str
) -> None:
    """Else anyone could fill the memory, or have a large body parsed in the event loop."""
    app = make_app(keys=keys)

    async def test() -> None:
        async with asyncio.timeout(10):
            status, _, _ = await send_parts(app, [never], method, path)
        assert status == (401 if keys else 403)

    run(app, test)


def test_only_files_may_be_as_large_as_deltas(start: Any, check_error: Any) -> None:
    server = start(keys=ADMIN, max_body_bytes=2000)
    answer = server.put(
        "/traffic/toy2/head", content=b" " * 2001, headers={"Authorization": "Bearer key"}
    )
    error = check_error(answer, 413, "too_large")
    assert "DELTABERT_MAX_BODY_BYTES" in error["message"]


@pytest.mark.parametrize("is_slow", [True, False])
def test_an_upload_that_trickles_is_given_up(
    make_app: MakeApp, tmp_path: Any, is_slow: bool
) -> None:
    """Each part comes in the time of a part, but all of them together take too long."""
    app = make_app(keys=ADMIN, deltas=(tmp_path,), upload_timeout_s=0.4 if is_slow else 60)

    async def test() -> None:
        parts = [part for _ in range(24) for part in (b" ", a_moment)]
        status, headers, body = await asyncio.wait_for(
            send_parts(app, parts[:-1], "PUT", "/deltas/toy2/head", authorization="Bearer key"), 30
        )
        if not is_slow:
            assert (status, body["error"]["code"]) == (422, "invalid_delta")
            return
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        assert body["error"]["message"] == (
            "the body did not arrive within 0.4 s. Send a smaller one, or raise "
            "DELTABERT_UPLOAD_TIMEOUT_S"
        )
        assert headers[b"connection"] == b"close"
        assert list(tmp_path.iterdir()) == [], "the part that came is removed"

    run(app, test)
