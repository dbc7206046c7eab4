"""Both clients split, keep order, and send once more only what may be sent once more.

The faults are made in front of the client, since a real server does not lose connections on demand;
tests/http/test_real_clients.py has the same methods with a real server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from deltabert import AsyncClient, Client, RefusedError, UnreachableError
from deltabert import protocol as protocol_module
from deltabert.protocol import parts, pause_s

Handler = Callable[[httpx2.Request], httpx2.Response]


def answer(request: httpx2.Request) -> httpx2.Response:
    """Answer as a server does; a row's label is its own text."""
    rows = json.loads(request.content)["inputs"]
    common: dict[str, Any] = {
        "decision": None,
        "score": 0.5,
        "scores": {},
        "truncated": False,
        "later": 1,
    }
    predictions = [{"label": row} | common for row in rows]
    facts = {"task": "sst2", "strategy": "bitfit", "version": "v1", "kind": "single_label"}
    return httpx2.Response(200, json=facts | {"backbone": "b", "predictions": predictions})


class Faulty:
    """Fails in the given ways first, then answers; keeps what it was sent."""

    def __init__(self, *faults: httpx2.Response | Exception) -> None:
        self.faults = list(faults)
        self.bodies: list[Any] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content))
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return answer(request)


def sync_rows(handler: Handler, rows: Any, **options: Any) -> list[str]:
    with Client("http://test", transport=httpx2.MockTransport(handler), **options) as client:
        return [row.label for row in client.predict("sst2", rows).rows]  # type: ignore[union-attr]


def async_rows(handler: Handler, rows: Any, **options: Any) -> list[str]:
    async def ask() -> list[str]:
        transport = httpx2.MockTransport(handler)
        async with AsyncClient("http://test", transport=transport, **options) as client:
            found = await client.predict("sst2", rows)
        return [row.label for row in found.rows]  # type: ignore[union-attr]

    return asyncio.run(ask())


@pytest.fixture(params=[sync_rows, async_rows], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function (handler, rows, **options) -> labels of the rows."""
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"deltabert.{module}.PAUSE_S", 0.0)
    monkeypatch.setattr(protocol_module, "PAUSE_S", 0.0)
    return request.param


def test_lists_are_split_and_answered_in_order_by_one_version(ask: Any) -> None:
    server = Faulty()
    rows = [f"row {number}" for number in range(10)]
    assert ask(server, rows, rows_per_request=3) == rows
    assert sorted(len(body["inputs"]) for body in server.bodies) == [1, 3, 3, 3]
    assert server.bodies[0] == {"inputs": rows[:3]}
    for body in server.bodies[1:]:
        assert (body["strategy"], body["version"]) == ("bitfit", "v1")


FAULTS: dict[str, Callable[[], httpx2.Response | Exception]] = {
    "refused": lambda: httpx2.ConnectError("refused"),
    "lost": lambda: httpx2.ReadError("lost"),
    "closed": lambda: httpx2.RemoteProtocolError("closed"),
    "502": lambda: httpx2.Response(502, text="<html>"),
    "503": lambda: httpx2.Response(503, json={"error": {"code": "not_ready"}}),
    "429": lambda: httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_safe_is_sent_once_more(ask: Any, fault: str) -> None:
    server = Faulty(FAULTS[fault]())
    assert ask(server, ["a"]) == ["a"]
    assert server.bodies == [{"inputs": ["a"]}] * 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (400, {}),
        (401, {}),
        (422, {}),
        (500, {}),
        (504, {}),
        (429, {}),
        (429, {"retry-after": "999"}),
    ],
)
def test_other_refusals_are_told_at_once(ask: Any, status: int, headers: dict[str, str]) -> None:
    error = {"code": "some_code", "message": "some reason", "details": [1], "request_id": "r"}
    server = Faulty(httpx2.Response(status, headers=headers, json={"error": error}))
    with pytest.raises(RefusedError, match="some reason") as caught:
        ask(server, "a")
    assert (caught.value.status, caught.value.code) == (status, "some_code")
    assert (caught.value.details, caught.value.request_id) == ([1], "r")
    assert len(server.bodies) == 1


def test_nothing_is_sent_a_third_time(ask: Any) -> None:
    server = Faulty(httpx2.ReadError("lost"), httpx2.ReadError("lost again"), httpx2.ReadError(""))
    with pytest.raises(UnreachableError, match=r"no answer from http://test/? \(lost again\)"):
        ask(server, "a")
    assert len(server.bodies) == 2
    busy = [httpx2.Response(503, json={"error": {"code": "not_ready"}}) for _ in range(3)]
    server = Faulty(*busy)
    with pytest.raises(RefusedError):
        ask(server, "a")
    assert len(server.bodies) == 2


def test_a_timeout_is_not_sent_again(ask: Any) -> None:
    server = Faulty(httpx2.ReadTimeout("too slow"))
    with pytest.raises(UnreachableError, match="too slow"):
        ask(server, "a")
    assert len(server.bodies) == 1


def test_another_server_is_told_apart(ask: Any) -> None:
    with pytest.raises(RefusedError, match="this is no DeltaBERT server: '<html>'"):
        ask(Faulty(httpx2.Response(200, text="<html>")), "a")


def test_a_stream_reads_rows_as_it_needs_them(ask: Any) -> None:
    read = 0

    def rows() -> Iterator[str]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield f"row {number}"

    with Client(
        "http://test", transport=httpx2.MockTransport(Faulty()), rows_per_request=5
    ) as client:
        found = client.stream("sst2", rows())
        assert [next(found).label for _ in range(7)] == [f"row {n}" for n in range(7)]  # type: ignore[union-attr]
    assert read == 10


def test_an_async_stream_keeps_order_and_bounds_what_runs() -> None:
    running = most = 0

    async def slow(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        last = json.loads(request.content)["inputs"][-1]
        await asyncio.sleep(0.02 if last.endswith("3") else 0.001)
        running -= 1
        return answer(request)

    async def ask_all() -> list[str]:
        transport = httpx2.MockTransport(slow)
        async with AsyncClient(
            "http://test", transport=transport, rows_per_request=2, concurrency=3
        ) as client:
            rows = (f"row {number}" for number in range(20))
            return [row.label async for row in client.stream("sst2", rows)]  # type: ignore[union-attr]

    assert asyncio.run(ask_all()) == [f"row {number}" for number in range(20)]
    assert most == 3


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="write it like http"):
        Client("localhost:8000")
    with pytest.raises(ValueError, match="concurrency is 0"):
        AsyncClient("http://test", concurrency=0)
    with pytest.raises(ValueError, match="rows_per_request is 0"):
        list(parts(["a"], 0))


def test_pauses_are_those_of_the_server() -> None:
    assert pause_s(429, {"retry-after": "7"}) == 7
    assert pause_s(503, {"retry-after": "7"}) == 7
    assert pause_s(503, {"retry-after": "soon"}) == protocol_module.PAUSE_S
    assert pause_s(200, {}) is None


@pytest.mark.parametrize("key", ["dbk_secret\n", "dbk secret", "dbk_s\u00e9cret", "dbk_\0", ""])
def test_a_key_that_no_header_can_have_is_refused_without_quoting_it(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="the key is empty, or has characters") as caught:
            kind("http://test", key=key)
        assert "dbk" not in str(caught.value)


def test_a_password_in_the_address_is_not_quoted() -> None:
    fail = httpx2.MockTransport(Faulty(*[httpx2.ConnectError("refused")] * 2))
    with (
        Client("http://me:secret@test:81/api", transport=fail) as client,
        pytest.raises(UnreachableError, match="no answer from http://test:81/api ") as caught,
    ):
        client.predict("sst2", "a")
    assert "secret" not in str(caught.value)


def test_a_refusal_says_from_where_its_rows_are_counted(ask: Any) -> None:
    def refuse_last(request: httpx2.Request) -> httpx2.Response:
        if "bad" not in json.loads(request.content)["inputs"]:
            return answer(request)
        error = {"code": "invalid_input", "message": "row 1 has no text"}
        return httpx2.Response(422, json={"error": error})

    rows = [*(f"row {number}" for number in range(7)), "bad", "more"]
    with pytest.raises(
        RefusedError, match=r"row 1 has no text .*counted from row 6 of all"
    ) as found:
        ask(refuse_last, rows, rows_per_request=3)
    assert found.value.first_row == 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predictions": []}, "0 predictions for 1 rows"),
        ({"kind": "new"}, "kind: Input should be"),
        ({"predictions": None}, "predictions: Input should be"),
    ],
)
def test_an_answer_in_another_form_is_an_error_of_the_client(
    ask: Any, changes: dict[str, Any], says: str
) -> None:
    def changed(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=json.loads(answer(request).content) | changes)

    with pytest.raises(RefusedError, match=says) as found:
        ask(changed, ["a"])
    assert found.value.code == "unexpected_answer"


def test_half_a_surrogate_pair_is_left_to_the_server(ask: Any) -> None:
    """The server names its row; the client can't write it as UTF-8."""
    server = Faulty(httpx2.Response(422, json={"error": {"code": "invalid_input"}}))
    with pytest.raises(RefusedError):
        ask(server, ["a", "\ud800"])
    assert server.bodies == [{"inputs": ["a", "\ud800"]}]


def test_rows_may_come_from_coroutines() -> None:
    async def texts() -> AsyncIterator[str]:
        for number in range(7):
            await asyncio.sleep(0)
            yield f"row {number}"

    async def ask() -> list[str]:
        transport = httpx2.MockTransport(answer)
        async with AsyncClient("http://test", transport=transport, rows_per_request=3) as client:
            found = client.stream("sst2", texts())
            return [row.label async for row in found]  # type: ignore[union-attr]

    assert asyncio.run(ask()) == [f"row {number}" for number in range(7)]
